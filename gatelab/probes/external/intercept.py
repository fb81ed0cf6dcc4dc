"""intercepted: the attention of families that look up no attention function, noticed as its softmax runs.

    with intercepted(model, called, skip=registered.__contains__):
        model(**inputs)

Notable: a mode of torch sees every function that the model calls, and hooks say which module calls it. A softmax is taken for
attention where it stands in one of the model's blocks, its rows and columns are the tokens, and it is followed by a product
with values (or is [B, H, T, S], as no router's is). Nothing is changed or computed again, so the outputs are the model's own;
a custom kernel, and attention within chunks of tokens, are not seen. The mode costs a call of Python for each function:
blocks of which nothing is wanted, and what runs between blocks, run without it.
"""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

# A block, or what is in one, has a number in its name.
_NUMBERED = re.compile(r"(^|\.)\d+(\.|$)")
_TOKENS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")
_SOFTMAXES = ("softmax", "special_softmax")
_PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm")
# What may stand between a softmax and its product with the values: it leaves each weight what and where it is, or hides it.
_CARRIERS = (
    "dropout", "to", "type", "type_as", "float", "half", "bfloat16", "view", "reshape", "flatten", "unflatten", "contiguous",
    "clone", "unsqueeze", "squeeze", "expand", "masked_fill",
)  # fmt: skip
# The mildest masks in use add −10⁴ to a logit.
_OUT_OF_REACH = -9e3


@dataclass(frozen=True)
class Softmaxed:
    """A softmax over the keys, by the module `name`: its input and its output (less what was hidden after it), [B, H, T, S],
    and the values that the output was multiplied with, of G heads, which divides H; None where no product was seen, since
    something else was done to the weights first."""

    name: str
    module: nn.Module
    logits_BHTS: Tensor
    weights_BHTS: Tensor
    v_BGSK: Tensor | None

    @property
    def mask_B1TS(self) -> Tensor:
        """Which keys a query may see: those whose logit some head has in reach. A bias that only lowers logits, as ALiBi's,
        is small in some head."""
        return (self.logits_BHTS > _OUT_OF_REACH).any(dim=1, keepdim=True)


@dataclass(frozen=True)
class Fused:
    """A call of torch's fused attention, by the module `name`. G divides H; `mask` is [B or 1, H or 1, T or 1, S] as torch
    takes it, or None; `scale` None is 1/√K; a call that is causal hides what is later by place, whatever T and S."""

    name: str
    module: nn.Module
    q_BHTK: Tensor
    k_BGSK: Tensor
    v_BGSK: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float | None

    @property
    def mask_B1TS(self) -> Tensor | None:
        """Which keys a query may see in some head, whether the mask is boolean or added to the logits; None without."""
        if self.mask is None:
            return None
        sees_BHTS = self.mask if self.mask.dtype == torch.bool else self.mask > _OUT_OF_REACH
        return sees_BHTS.any(dim=1, keepdim=True)

    @property
    def bias_BHTS(self) -> Tensor | None:
        """What a mask adds to the logits of keys that may be seen, if it does, as ALiBi's; 0 at those hidden in every head."""
        if self.mask is None or self.mask.dtype == torch.bool:
            return None
        bias_BHTS = self.mask.masked_fill(~self.mask_B1TS, 0.0)
        return bias_BHTS if bias_BHTS.any() else None


Intercepted = Softmaxed | Fused
# needless(module, arguments, keywords) -> whether nothing in it is to be noticed
Needless = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool]


@contextmanager
def intercepted(
    model: nn.Module,
    called: Callable[[Intercepted], None],
    *,
    skip: Callable[[nn.Module], bool] = lambda _: False,
    needless: Needless = lambda *_: False,
    blocks: Collection[nn.Module] = (),
    named: dict[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Give `called` the attention calls of `model` while it runs, each as soon as its values are known.

    What `called` computes is not seen, nor is what hooks of a block or of the model compute after it.

    Args:
        model: of transformers, run on a batch of tokens or their embeddings; not compiled.
        skip: modules whose calls are not wanted, asked as a softmax runs: those seen on another way.
        needless: asked with its module and arguments as a block begins: whether nothing in it is to be noticed.
        blocks: those of which nothing runs unless they are called themselves: what is in one has hooks from the first time
            that it runs and is not needless.
        named: the model's modules by name, where they are known; None asks the model.
    """
    named = dict(model.named_modules()) if named is None else named
    mode = _Interception({module: name for name, module in named.items()}, called, skip, needless, blocks)
    mode.handles += [
        model.register_forward_pre_hook(mode.begin, with_kwargs=True),
        model.register_forward_hook(mode.end, prepend=True, always_call=True),
    ]
    block = None
    for name, module in named.items():
        # What a module holds follows it.
        if block is None or not name.startswith(block):
            block = f"{name}." if module in blocks else None
            if module is not model and _NUMBERED.search(name):
                mode.hook(module)
    try:
        yield
    finally:
        for handle in mode.handles:
            handle.remove()
        mode.end()


@dataclass
class _Pending:
    """A softmax whose product with the values has not been seen; `carriers` hold its weights on the way there."""

    name: str
    module: nn.Module
    logits: Tensor
    weights: Tensor
    carriers: list[Tensor]


class _Interception(TorchFunctionMode):
    """A mode while a block runs, but not one that is `excused`; `stack` holds the block and the modules in it that are
    running, the innermost last."""

    def __init__(
        self,
        names: dict[nn.Module, str],
        called: Callable[[Intercepted], None],
        skip: Callable[[nn.Module], bool],
        needless: Needless,
        blocks: Collection[nn.Module],
    ):
        super().__init__()
        self.names, self.called, self.skip, self.needless, self.blocks = names, called, skip, needless, blocks
        self.hooked: set[nn.Module] = set()
        self.handles: list[RemovableHandle] = []
        self.stack: list[nn.Module] = []
        self.excused: nn.Module | None = None
        self.pending: list[_Pending] = []
        self.lengths: set[int] = set()
        self.n_sequences, self.n_past = 0, 0
        self.is_active = False

    def hook(self, module: nn.Module) -> None:
        """Have a module tell when it runs, unless it does; torch's own layers without children call nothing but themselves: a
        softmax is its parent's."""
        is_own = not type(module).__module__.startswith("torch.nn") or next(module.children(), None) is not None
        if is_own and module not in self.hooked:
            self.hooked.add(module)
            self.handles.append(module.register_forward_pre_hook(self.enter_module, with_kwargs=True))
            self.handles.append(module.register_forward_hook(self.leave_module, prepend=True, always_call=True))

    def begin(self, model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.end()
        given = signature(model.forward).bind_partial(*args, **keywords).arguments
        given |= given.pop("kwargs", {})
        tokens = [x for name in _TOKENS if isinstance(x := given.get(name), Tensor) and x.dim() > 1]
        main = given.get(getattr(model, "main_input_name", "input_ids"))
        self.n_sequences = next((len(x) for x in (*tokens, main) if isinstance(x, Tensor) and x.dim() > 1), 0)
        self.lengths = {x.shape[1] for x in tokens}
        cache = given.get("past_key_values")
        self.n_past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
        self.is_active = self.n_sequences > 0

    def end(self, *_: Any) -> None:
        """Also after an error."""
        if self.stack:
            self.__exit__(None, None, None)
        self.stack.clear()
        self.pending.clear()
        self.is_active, self.excused = False, None

    def enter_module(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not self.is_active or self.excused is not None:
            return
        for x in (*args, *keywords.values()):
            # Hidden states [B, T, D], of queries or of a context.
            if isinstance(x, Tensor) and x.dim() == 3 and x.shape[0] == self.n_sequences and x.is_floating_point():
                self.lengths.add(x.shape[1])
        if not self.stack:
            if self.needless(module, args, keywords):
                self.excused = module
                return
            self.__enter__()
        self.stack.append(module)
        if module in self.blocks:
            for inner in module.modules():
                self.hook(inner)

    def leave_module(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if module is self.excused:
            self.excused = None
        if module not in self.stack:
            return
        del self.stack[self.stack.index(module) :]
        if not self.stack:
            self.__exit__(None, None, None)
            left, self.pending = self.pending, []
            for pending in left if output is not None else ():  # None after an error
                if pending.weights.dim() > 3:
                    self._report(pending, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _SOFTMAXES:
            self._softmax(*args, **kwargs, result=result)
        elif name == "scaled_dot_product_attention":
            self._fused(*args, **kwargs)
        elif self.pending and name in _CARRIERS:
            if isinstance(result, Tensor) and (pending := self._carried(args[0] if args else None)):
                pending.carriers.append(result)
                if name == "masked_fill":
                    pending.weights = result.detach()
        elif self.pending and name in _PRODUCTS:
            # The last two: `baddbmm` adds to its first.
            *_, weights, v = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            pending = self._carried(weights)
            if pending and v.dim() == weights.dim() and v.shape[-2] == pending.weights.shape[-1]:
                self._product(pending, v)
        elif self.pending and name == "einsum":
            self._einsum(args[0], *(args[1] if isinstance(args[1], (list, tuple)) else args[1:]))
        return result

    def _softmax(
        self,
        input: Tensor,
        dim: int | None = None,
        *_: Any,
        result: Tensor,
        dtype: torch.dtype | None = None,
        **__: Any,
    ) -> None:
        module = self.stack[-1]
        is_over_tokens = input.dim() >= 3 and dim in (-1, input.dim() - 1) and self._fits(*input.shape[-2:])
        if is_over_tokens and self._is_batch(input) and not self.skip(module):
            self.pending.append(_Pending(self.names[module], module, input.detach(), result.detach(), [result]))

    def _fits(self, n_queries: int, n_keys: int) -> bool:
        return n_queries in self.lengths and (n_keys in self.lengths or n_keys - self.n_past in self.lengths)

    def _carried(self, x: Any) -> _Pending | None:
        return next((p for p in self.pending if any(x is carrier for carrier in p.carriers)), None)

    def _einsum(self, equation: str, *operands: Tensor) -> None:
        if not operands or not (pending := self._carried(operands[0])):
            return
        given, _, out = equation.replace(" ", "").partition("->")
        rows, *others = given.split(",")
        if len(others) != 1 or "." in equation:
            return
        # Of the values' letters one is neither the queries' nor the keys' nor a batch's: the channel's.
        channels = [letter for letter in others[0] if letter not in rows]
        if len(channels) == 1 and rows[-1] in others[0] and rows[-2] not in others[0] and rows[-1] not in out:
            missing = [letter for letter in rows[:-2] if letter not in others[0]]
            letters = others[0] + "".join(missing)
            v = operands[1].reshape(*operands[1].shape, *(1 for _ in missing))
            self._product(pending, v.permute([letters.index(x) for x in (*rows[:-2], rows[-1], channels[0])]))

    def _product(self, pending: _Pending, v: Tensor) -> None:
        self.pending.remove(pending)
        self._report(pending, v.detach())

    def _report(self, pending: _Pending, v: Tensor | None) -> None:
        logits_BHTS, weights_BHTS = (self._unfolded(x) for x in (pending.logits, pending.weights))
        v_BGSK = None if v is None or not self._is_batch(v) else self._unfolded(v)
        self.called(Softmaxed(pending.name, pending.module, logits_BHTS, weights_BHTS, v_BGSK))

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        module = self.stack[-1]
        is_whole = query.dim() >= 3 and query.shape[-2] in self.lengths
        if not is_whole or not all(map(self._is_batch, (query, key, value))) or self.skip(module):
            return
        if attn_mask is not None:
            attn_mask = attn_mask.detach()
            is_folded = attn_mask.dim() == 3 and query.dim() == 3 and len(attn_mask) > 1
            attn_mask = self._unfolded(attn_mask) if is_folded else attn_mask[(None,) * (4 - attn_mask.dim())]
        q_BHTK, k_BGSK, v_BGSK = (self._unfolded(x.detach()) for x in (query, key, value))
        self.called(Fused(self.names[module], module, q_BHTK, k_BGSK, v_BGSK, attn_mask, is_causal, scale))

    def _is_batch(self, x: Tensor) -> bool:
        return len(x) == self.n_sequences if x.dim() > 3 else len(x) % self.n_sequences == 0

    def _unfolded(self, x: Tensor) -> Tensor:
        """Of [B·H, …], [B, H, …] or [B, G, R, …] with two more axes: [B, H, …]."""
        return x.unflatten(0, (self.n_sequences, -1)) if x.dim() == 3 else x.flatten(1, -3)
