"""Bytes that a forward pass keeps for the backward pass, on any device.

Notable: every storage counts once and whole, whoever made it: the output too, which the projection after it keeps. So a gate
that keeps the output twice, before and after its product, is seen to. A storage of which the inputs are slices counts as they
do: what lies between them is no business of the call.
"""

from collections import Counter
from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def bytes_kept(call: Callable[..., Tensor], inputs: dict[str, Tensor]) -> int:
    """Of `call(**inputs)`, whose inputs ask for gradients and do not overlap; the inputs and the output among them."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no storage takes another's place

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.nbytes():
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(t.detach())
        return t

    with saved_tensors_hooks(count, lambda t: t):
        out = call(**inputs)
    count(out)
    given: Counter[int] = Counter()
    for t in inputs.values():
        given[t.untyped_storage().data_ptr()] += t.numel() * t.element_size()
    return sum((sizes | given).values())
