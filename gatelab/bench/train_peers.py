"""What else trains the same model: our trainer as a plain compiled loop, and transformers' Llama in a loop that a user would write.

Notable: transformers draws its weights otherwise, so its first step is not that of ours, and the exact contract does not apply.
It is held to have as many weights, a first loss where one of random logits lies, and a loss that falls on a batch that is taken
over and over. Compiled on CUDA, as the trainer is.
"""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.model import ModelConfig
from ..config.run import Run
from ..models.sizes import count_parameters
from ..train.group import pick_dtype

LLAMA = "transformers' Llama, compiled loop"
# What a Llama may have its own of.
_SHARED = (
    "vocab_size", "max_seq_len", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "norm_eps", "rope_theta",
    "tied_embeddings", "init_std",
)  # fmt: skip
_POOL = 8  # batches of random tokens, taken in turn
_FALLS = 8  # steps on one batch, in which its loss must fall


def has_transformers() -> bool:
    """Whether it is installed."""
    return find_spec("transformers") is not None


def unlike_llama(model: ModelConfig) -> str:
    """Why transformers' Llama has not the shape of a model, or nothing."""
    plain = ModelConfig(**{name: getattr(model, name) for name in _SHARED})
    more = [name for name in ModelConfig.model_fields if getattr(model, name) != getattr(plain, name)]
    return f"not run: Llama has no {', '.join(more)} of this model" if more else ""


@dataclass
class LlamaLoop:
    """Steps of LlamaForCausalLM in float32 weights, its products in the trainer's type by autocast, fused AdamW and the clipping of
    a run; batches of random tokens that lie on the device before."""

    run: Run
    device: torch.device
    micro_batch: int

    def __post_init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        c, optim = self.run.model, self.run.optim
        config = LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim,
            max_position_embeddings=c.max_seq_len, rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied_embeddings,
            initializer_range=c.init_std, use_cache=False, attn_implementation="sdpa",
        )  # fmt: skip
        torch.manual_seed(0)
        self._model = LlamaForCausalLM(config).to(self.device).train()
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self._dtype = pick_dtype(self.run.train.precision, self.device)
        shape = (_POOL, self.run.train.batch_size, self.run.train.seq_len + 1)
        self._pool = torch.randint(0, c.vocab_size, shape, device=self.device)
        self._loss = torch.compile(self._loss_of, dynamic=False) if self.device.type == "cuda" else self._loss_of
        self._taken = 0

    def contract(self) -> str:
        """`holds (loss alone)`, or `FAIL` with what is wrong."""
        c = self.run.model
        n, wanted = sum(p.numel() for p in self._model.parameters()), count_parameters(c)
        if n != wanted:
            return f"FAIL weights: {n}, expected {wanted}"
        first, *_, last = [self._step(self._pool[0]).item() for _ in range(_FALLS + 1)]
        # Normed channels times weights of that spread are logits of a variance, half of which comes on top; twice that and a bit.
        uniform, most = math.log(c.vocab_size), 0.1 + c.d_model * c.init_std**2
        if not abs(first - uniform) <= most:
            return f"FAIL first loss: {first:.4g}, expected {uniform:.4g} ± {most:.2g}"
        return "holds (loss alone)" if last < first else f"FAIL loss: {first:.4g}, and {last:.4g} {_FALLS} steps later"

    def take(self, n: int) -> None:
        """Train on.

        Raises:
            ValueError: when the loss is no longer finite.
        """
        for _ in range(n):
            self._taken += 1
            loss = self._step(self._pool[self._taken % _POOL])
        if not loss.isfinite():
            raise ValueError("the loss is no longer finite")

    def close(self) -> None:
        """Give up the model."""
        self._model = self._optimizer = self._pool = self._loss = None

    def _step(self, ids_BT: Tensor) -> Tensor:
        parts = ids_BT.split(self.micro_batch or len(ids_BT))
        total = torch.zeros((), device=self.device)
        for part_BT in parts:
            loss = self._loss(part_BT) / len(parts)
            loss.backward()
            total += loss.detach()
        if self.run.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self.run.optim.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total

    def _loss_of(self, ids_BT: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            out: Any = self._model(input_ids=ids_BT[:, :-1])
        return F.cross_entropy(out.logits.flatten(0, 1).float(), ids_BT[:, 1:].flatten())
