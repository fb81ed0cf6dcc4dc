"""What no gate can be: one table of sentences."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .gate_axes import SITES, SOURCES

if TYPE_CHECKING:
    from .gate import GateSpec


# What cannot be, each with a sentence that says why and what to write instead.
REFUSALS: dict[str, tuple[Callable[["GateSpec"], bool], str]] = {
    "headwise out": (
        lambda s: s.granularity not in SITES[s.site].granularities,
        "site {spec.site!r} ({site.paper}) is {site.what}, which is gated {site.granularities[0]}; use "
        "{spec.site}-{site.granularities[0]}",
    ),
    "shared out": (
        lambda s: s.site == "out" and s.sharing == "shared",
        "the layer's output has no heads to average over; leave out the word 'shared'",
    ),
    "shared headwise": (
        lambda s: s.granularity == "headwise" and s.sharing == "shared",
        "one score a head, averaged over the heads, is one number a token; use {spec.site}-elementwise-shared, or leave "
        "out the word 'shared'",
    ),
    "source at site": (
        lambda s: s.site not in SOURCES[s.source_kind][1],
        "the source {source!r} is not there at site {spec.site!r}; expected one of {sources}",
    ),
    "static bias": (
        lambda s: not s.has_projection and s.bias,
        "source {source!r} has a learned constant already: leave out the word 'bias'",
    ),
    "static rank": (
        lambda s: not s.has_projection and (s.rank is not None or s.mlp is not None),
        "source {source!r} has no projection that rank or mlp could change; leave it out",
    ),
    "elementwise lse": (
        lambda s: s.source == "lse" and s.granularity != "headwise",
        "the log-sum-exp is one number a head; use sdpa-headwise-lse",
    ),
    "lse start": (
        lambda s: s.source == "lse" and (s.init != "random" or s.around is not None),
        "a gate on the log-sum-exp has no one value to start at; leave out init and around",
    ),
    "rank and mlp": (
        lambda s: s.rank is not None and s.mlp is not None,
        "rank and mlp both say what lies between source and logits; keep one",
    ),
    "low-rank slice": (
        lambda s: s.source == "head_slice" and s.rank is not None,
        "a head's slice of x is narrow already; use mlp, or leave out rank",
    ),
    "init and around": (
        lambda s: s.init != "random" and s.around is not None,
        "init starts with zero weights and around with random ones; keep one",
    ),
    "static around": (
        lambda s: s.source == "static" and s.around is not None,
        "a static gate has no random weights to vary it; use init={spec.around:g}",
    ),
    "forget elsewhere": (
        lambda s: s.form == "forget" and s.site != "scores",
        "only attention scores can be forgotten; use scores-headwise-forget",
    ),
    "forget activation": (
        lambda s: s.form == "forget" and s.activation not in ("sigmoid", "ns_sigmoid"),
        "what is kept of a score is a share between 0 and 1; use the activation sigmoid or ns_sigmoid",
    ),
    "static scores": (
        lambda s: s.site == "scores" and s.source == "static" and s.form != "forget",
        "a constant is the same at every key: added to the logits the softmax ignores it, and as a factor it is "
        "sdpa-headwise-static",
    ),
}
