"""A block computed twice: its input alone is kept for the backward pass, which computes it again (arXiv 1604.06174).

Notable: routers and attention tell what they saw by appending to lists. Here a block has lists of its own, whose tensors are
results, and what the first time gave goes on: choices count once however often a block runs, and torch.compile sees a function
without consequences.
"""

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..nn.moe import Routing
from ..nn.watch import Watch
from .block import Block, Pass


def through_twice(block: Block, x_BTD: Tensor, given: Pass) -> Tensor:
    """What `block(x_BTD, given)` returns and appends, without a cache. Generators' states are kept
    where weights of attention are dropped: nothing else in a block is random."""
    skip_queries = None if given.watch is None else given.watch.skip_queries

    def compute(
        x_BTD: Tensor, segment_ids_BT: Tensor | None, context_BSD: Tensor | None, bias_BHTS: Tensor | None
    ) -> tuple[Tensor, ...]:
        routed: list[Routing] = []
        watch = None if skip_queries is None else Watch(skip_queries)
        own = Pass(segment_ids_BT, routed=routed, watch=watch)
        own.context_BSD, own.bias_BHTS = context_BSD, bias_BHTS
        out_BTD = block(x_BTD, own)
        choices = [t for r in routed for t in (r.counts_X, r.probability_X, r.z)]
        return out_BTD, *choices, *([] if watch is None else watch.first_mass_BH)

    out_BTD, *told = checkpoint(
        compute, x_BTD, given.segment_ids_BT, given.context_BSD, given.bias_BHTS,
        use_reentrant=False, preserve_rng_state=any(getattr(m, "dropout", 0.0) for m in block.modules()),
    )  # fmt: skip
    if block.has_router:
        counts_X, probability_X, z, *told = told
        if given.routed is not None:
            # Of stacked models there are as many rows of counts, and the tokens of one count.
            n_models = counts_X.shape[0] if counts_X.dim() == 2 else 1
            n_tokens = x_BTD.shape[0] * x_BTD.shape[1] // n_models
            given.routed.append(Routing(counts_X, probability_X, z, n_tokens))
    if given.watch is not None:
        given.watch.first_mass_BH += told
    return out_BTD
