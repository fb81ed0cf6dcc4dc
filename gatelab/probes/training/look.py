"""look: the probes' rows of held-out sequences in the middle of somebody's training, which does not notice.

    if step % 100 == 0:
        rows += look(model, heldout_ids, step=step)

Notable: weights, gradients, modes of the modules and random numbers are afterwards what they were, so a training with looks
is bit for bit the one without. The head is not run: logits over a vocabulary are the largest tensor of a pass. Looks are
as precise as the pass around them; put `torch.autocast` around where training has it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ...config.run import ProbeConfig
from ...nn.attention import GatedAttention
from ...record import Row
from ..capture import Recorder, capture
from ..external import observe

# Token ids [B, T], or what the model takes by keyword (a tokenizer's output), or several of these.
Heldout = Tensor | Mapping[str, Tensor] | Sequence[Tensor | Mapping[str, Tensor]]

# Bounds the memory of a look, not its result: at most so many tokens, or one sequence, a pass.
_TOKENS = 8192


def look(
    model: nn.Module,
    heldout: Heldout,
    names: Sequence[str] | None = None,
    *,
    config: ProbeConfig | None = None,
    run: str = "",
    step: int = 0,
) -> list[Row]:
    """The rows of the named probes, averaged over all held-out sequences.

    Args:
        model: with GatedAttention layers, or of transformers; in DistributedDataParallel, PEFT or torch.compile too. A
            compiled model is run as it was before it was compiled.
        heldout: ids [B, T], or a mapping of what the model takes by keyword, every value [B, …]; or a sequence of these,
            of any lengths.
        names: of probes, see `gatelab probes`; None takes all that the model allows.

    Raises:
        ValueError: what `capture` and `observe` refuse, ids that are none, parameters sharded over processes, an adapter
            that lengthens the prompt.
    """
    return looked(model, heldout, names, config=config).rows(run, step)


@torch.no_grad()
def looked(
    model: nn.Module, heldout: Heldout, names: Sequence[str] | None = None, *, config: ProbeConfig | None = None
) -> Recorder:
    """The recorder of a look; `observe`'s says what could not be seen."""
    refuse_sharded(model)
    core, watch = _core(model)
    device = next((p.device for p in core.parameters()), torch.device("cpu"))
    with _undisturbed(core), watch(core, names, config=config) as recorder:
        for inputs in _passes(heldout):
            _run(core, inputs, recorder, device)
    return recorder


def refuse_sharded(model: nn.Module) -> None:
    """Refuses what no process can run alone.

    Raises:
        ValueError: parameters that are sharded over processes.
    """
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()) or any(
        isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters()
    ):
        raise ValueError(
            "the parameters of this model are sharded over processes (FSDP, ZeRO 3, tensor parallelism), and a look runs "
            "on one; probe the checkpoints that the training saves"
        )


def _core(model: nn.Module) -> tuple[nn.Module, Callable[..., Any]]:
    """What is run, without wrappers and head, and what watches it."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    modeling = sys.modules.get("transformers.modeling_utils")
    is_own = any(isinstance(m, GatedAttention) for m in model.modules())
    if is_own or modeling is None or not isinstance(model, modeling.PreTrainedModel):
        return model, capture  # which says what it needs
    core = model.base_model
    return core if isinstance(core, modeling.PreTrainedModel) else model, observe


def _wrapped(model: nn.Module) -> nn.Module | None:
    if hasattr(model, "_orig_mod"):
        return model._orig_mod
    if isinstance(model, DataParallel | DistributedDataParallel):
        return model.module
    if not hasattr(model, "get_base_model"):
        return None
    # PEFT: its layers stand inside of the model, but for what is put before the tokens.
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            "this adapter puts learned tokens before the prompt, which a look would leave out; one inside of the layers, "
            "such as LoRA, can be looked at"
        )
    return model.get_base_model()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, uncompiled; modes, compiled calls and random numbers are put back."""
    modules = list(model.modules())
    before = [(m, m.training, m._compiled_call_impl) for m in modules]
    indices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        for module in modules:
            # Not eval(): some adapters merge their weights then.
            module.training, module._compiled_call_impl = False, None
        with torch.random.fork_rng(devices=sorted(indices), device_type="cuda"):
            yield
    finally:
        for module, is_training, compiled in before:
            module.training, module._compiled_call_impl = is_training, compiled


def _run(model: nn.Module, inputs: Tensor | dict[str, Tensor], recorder: Recorder, device: torch.device) -> None:
    config = getattr(model, "config", None)
    is_both = getattr(config, "is_encoder_decoder", False)
    if isinstance(inputs, Tensor) and is_both:
        raise ValueError(
            "an encoder-decoder reads two sequences; give the held-out ones as a mapping with input_ids and "
            "decoder_input_ids"
        )
    ids_BT = inputs if isinstance(inputs, Tensor) else inputs["input_ids"]
    vocab_size = getattr(config, "vocab_size", None)
    # A GPU answers an id that does not exist by losing the process.
    if isinstance(vocab_size, int) and ids_BT.max() >= vocab_size:
        raise ValueError(
            f"held-out ids reach {ids_BT.max()}, and the model has {vocab_size}; is it another tokenizer's?"
        )
    recorder.tokens_BT = None if is_both else ids_BT.to(device)
    # Whole sequences: a cache would only take memory.
    fixed = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}
    if isinstance(inputs, Tensor):
        model(inputs.to(device), **fixed)
    else:
        model(**{name: value.to(device) for name, value in inputs.items()}, **fixed)


def _passes(heldout: Heldout) -> Iterator[Tensor | dict[str, Tensor]]:
    """Parts of at most so many tokens, after a look at what came."""
    if isinstance(heldout, Tensor):
        _check_ids(heldout)
        yield from heldout.split(max(1, _TOKENS // heldout.shape[1]))
    elif isinstance(heldout, Mapping):
        strange = [name for name, value in heldout.items() if not isinstance(value, Tensor)]
        if strange or "input_ids" not in heldout:
            raise ValueError(
                f"held-out sequences as a mapping of {', '.join(map(str, heldout)) or 'nothing'}: expected tensors, "
                "input_ids among them; a tokenizer gives them with return_tensors='pt'"
            )
        ids_BT = heldout["input_ids"]
        _check_ids(ids_BT)
        size = max(1, _TOKENS // ids_BT.shape[1])
        for first in range(0, len(ids_BT), size):
            yield {name: value[first : first + size] for name, value in heldout.items()}
    elif isinstance(heldout, Sequence) and heldout and not isinstance(heldout, str):
        for part in heldout:
            yield from _passes(part)
    else:
        came = "an empty one" if isinstance(heldout, Sequence) and not heldout else type(heldout).__name__
        raise ValueError(
            f"held-out sequences: {came} came; expected token ids [B, T], a mapping of tensors, or a sequence of these"
        )


def _check_ids(ids_BT: Tensor) -> None:
    if ids_BT.dim() != 2 or not len(ids_BT) or ids_BT.shape[1] < 2 or ids_BT.is_floating_point():
        raise ValueError(
            f"held-out ids of shape {tuple(ids_BT.shape)} in {ids_BT.dtype}: expected whole numbers [B, T], T of at least 2"
        )
    if ids_BT.min() < 0:
        raise ValueError(f"held-out ids hold {ids_BT.min()}, which is a label's mark and no token; give the input_ids")
