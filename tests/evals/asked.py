"""Tiny models that are asked, and what log-probabilities are by definition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import save_model, save_tokenizer
from torch import Tensor, nn

from gatelab.evals.harness.external import ExternalPasses
from gatelab.evals.harness.own import OwnPasses
from gatelab.evals.harness.passes import Passes
from gatelab.models.external import External, Loading, load_external
from gatelab.models.interop import import_model, load_model

Ids = list[int]


def ids(n: int, seed: int) -> Ids:
    return torch.randint(2, 290, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def counted(passes: Passes, patch: pytest.MonkeyPatch) -> dict[str, int]:
    """The tokens that are read from now on, by the way of reading them."""
    read = {"begin": 0, "go_on": 0, "whole": 0}
    for name in read:
        plain = getattr(passes, name)

        def counting(*given: object, name: str = name, plain: Callable[..., object] = plain) -> object:
            read[name] += sum(map(len, given[-1]))
            return plain(*given)

        patch.setattr(passes, name, counting)
    return read


def checkpoint(
    folder: Path, *, architecture: str = "LlamaForCausalLM", begins: bool = True, **changes: Any
) -> External:
    """A random model of transformers in a folder, with a tokenizer that may begin texts with a BOS."""
    # As the tokenizer has them: bos <s>, eos </s>.
    save_model(folder, architecture, **({"bos_token_id": 0, "eos_token_id": 1} | changes))
    save_tokenizer(folder, begins=begins)
    found = load_external(folder, Loading(head=True))
    # The tiny tokenizer does not state them.
    found.tokenizer.eos_token, found.tokenizer.pad_token = "</s>", "</s>"
    found.tokenizer.save_pretrained(folder)
    return found


def both(folder: Path, **changes: Any) -> tuple[External, dict[str, Passes]]:
    """The same weights as transformers computes them, and as we do."""
    (folder / "theirs").mkdir()
    found = checkpoint(folder / "theirs", **changes)
    import_model(folder / "theirs", folder / "ours")
    return found, {"transformers": ExternalPasses(found.model), "ours": OwnPasses(load_model(folder / "ours"))}


@torch.no_grad()
def log_p(model: nn.Module, context: Ids, continuation: Ids, dtype: torch.dtype = torch.float64) -> tuple[float, bool]:
    """By definition, in float64 unless stated: Σ log p(token | all before it), and whether each token has the largest logit."""
    tokens_BT = torch.tensor([[*context, *continuation]])
    out = model.to(dtype)(tokens_BT)
    model.float()
    logits_TV: Tensor = (out if isinstance(out, Tensor) else out.logits)[0].double()
    start = len(context) - 1
    total, is_greedy = 0.0, True
    for i, token in enumerate(continuation):
        row_V = logits_TV[start + i]
        total += float(row_V[token] - torch.logsumexp(row_V, dim=0))
        is_greedy &= int(row_V.argmax()) == token
    return total, is_greedy
