"""The loss of a long text, token by token, when some of its keys are dropped: does a model need its first tokens?

Source: StreamingLLM (arXiv 2309.17453), whose comparison of a bare window with a window behind kept first tokens this is.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..decoder import Decoder
from .continuation import refuse_no_decoder
from .keep import Keep, check_keep, new_cache


@torch.no_grad()
def streaming_losses(
    model: Decoder, tokens_BT: Tensor, keeps: Sequence[Keep], *, at_once: int = 1
) -> dict[str, Tensor]:
    """The loss in nats of each token after the first, [B, T − 1] in float32, by the slug of what was kept.

    Args:
        keeps: in the order of the result, as in [Keep(), Keep(last=256), Keep(first=4, last=252)].
        at_once: tokens a pass. More take less time, and the window then moves by so many: each sees what was kept before
            the pass and what the pass had before it. 1 is the literature's.

    Raises:
        ValueError: for fewer than two tokens, at_once below 1, two equal keeps, what `new_cache` refuses, no decoder.
    """
    refuse_no_decoder(model)
    if not isinstance(tokens_BT, Tensor) or tokens_BT.dim() != 2 or tokens_BT.shape[1] < 2:
        given = f"of shape {tuple(tokens_BT.shape)}" if isinstance(tokens_BT, Tensor) else type(tokens_BT).__name__
        raise ValueError(f"tokens {given}: expected a tensor [batch, tokens] of ids, two tokens at least")
    if at_once < 1:
        raise ValueError(f"at_once={at_once}: expected how many tokens a pass reads, 1 or more")
    # All before any, so that nothing is computed where one is refused.
    for keep in keeps:
        check_keep(model.config, keep, at_once=at_once)
    slugs = [keep.slug for keep in keeps]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"keeps {', '.join(slugs)}: each is measured once; leave out the second of two equal ones")
    losses: dict[str, Tensor] = {}
    for slug, keep in zip(slugs, keeps, strict=True):
        # The last token is predicted and not read.
        n_sequences, n_tokens = tokens_BT.shape
        cache, of_passes = new_cache(model, n_sequences, n_tokens - 1, keep, at_once=at_once), []
        for inputs_BT, targets_BT in zip(
            tokens_BT[:, :-1].split(at_once, dim=1), tokens_BT[:, 1:].split(at_once, dim=1), strict=True
        ):
            logits_BTV = model(inputs_BT, cache=cache).float()
            of_passes.append(F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none"))
        losses[slug] = torch.cat(of_passes, dim=1)
    return losses
