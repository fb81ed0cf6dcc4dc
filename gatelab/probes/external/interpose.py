"""interposed: a function around every attention function that a transformers model looks up.

    with interposed(model, around):
        model(**inputs)

Notable: the model's own function computes, under a name of ours in transformers' registry, and the mask function goes with
it, without which transformers drops the causal mask. Blocks nest: the inner function is called first, and what it calls is
the outer one, so that an intervention can be observed.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import nn

# around(attend, module, query, key, value, mask, **keywords) -> what attend returns, (output [B, T, H, K], weights).
Around = Callable[..., Any]

# They ask for the implementation by its name when they build masks, so another name would change what they compute.
_BY_NAME = ("axk2", "deepseek_v32", "dots3_note", "glm_moe_dsa", "hy_v4", "minimax_m3_vl", "mistral_large4")
_PREFIX = "gatelab-"
_number = count()


@dataclass(frozen=True)
class Attend:
    """The function that was replaced, called as transformers calls it: (module, query, key, value, mask, **keywords), of
    shapes [B, H or G, T or S, K]. `is_sdpa`: torch's fused attention, which adds a causal mask where none is given."""

    name: str | None
    is_sdpa: bool

    def __call__(self, module: nn.Module, *args: Any, **keywords: Any) -> Any:
        """What it computes."""
        from transformers import AttentionInterface

        function = _eager_function(module) if self.name in (None, "eager") else AttentionInterface()[self.name]
        return function(module, *args, **keywords)


@contextmanager
def interposed(model: nn.Module, around: Around, *, modules: Iterable[nn.Module] | None = None) -> Iterator[None]:
    """Call `around` in the place of the model's attention functions, with the function replaced as its first argument.
    `modules`: the model's, where they are known; None asks the model.

    A model set to another implementation than `sdpa` and `eager` runs as `sdpa` meanwhile. Families that look up no
    attention function, or build their masks by its name, run as ever.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.configuration_utils import PreTrainedConfig

    def interpose(original: str | None) -> str:
        base = original if original in (None, "eager", "sdpa") or original.startswith(_PREFIX) else "sdpa"
        kind = (base or "eager").rsplit("-", 1)[-1]
        attend = Attend(base, kind == "sdpa")

        def attention(module: nn.Module, *args: Any, **keywords: Any) -> Any:
            return around(attend, module, *args, **keywords)

        key = f"{_PREFIX}{next(_number)}-{kind}"
        AttentionInterface.register(key, attention)
        AttentionMaskInterface.register(key, AttentionMaskInterface()[base or "eager"])
        return key

    modules = list(model.modules() if modules is None else modules)
    models = [m for m in modules if isinstance(m, PreTrainedModel)]
    fixed = {id(m.config) for m in models if not m._can_set_attn_implementation() or m.config.model_type in _BY_NAME}
    # Not as attributes: a module that has none looks for it in three places.
    configs = {id(c): c for m in modules if isinstance(c := vars(m).get("config"), PreTrainedConfig)}
    before = {i: c._attn_implementation for i, c in configs.items() if i not in fixed}
    keys = {original: interpose(original) for original in set(before.values())}
    try:
        for i, original in before.items():
            configs[i]._attn_implementation_internal = keys[original]
        yield
    finally:
        for i, original in before.items():
            configs[i]._attn_implementation_internal = original
        for key in keys.values():
            AttentionInterface._global_mapping.pop(key)
            AttentionMaskInterface._global_mapping.pop(key)


def _eager_function(module: nn.Module) -> Callable[..., Any]:
    """The family's own: it stands in the file of its attention."""
    file = type(module).forward.__module__
    function = getattr(sys.modules[file], "eager_attention_forward", None)
    if function is None:
        raise ValueError(f"{file} names its eager attention otherwise; load the model with attn_implementation='sdpa'")
    return function
