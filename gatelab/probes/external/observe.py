"""observe: collect the probes' rows while a transformers model runs.

    with observe(model, ["sinks", "massive"]) as recorder:
        model(**tokenizer(text, return_tensors="pt"))
    rows, missing = recorder.rows(), recorder.unobserved

The model's attention function is replaced, through transformers' registry, by one that calls the very function it
replaces and keeps q, k and v until the block ends; the mask function goes with it, without which transformers drops the
causal mask. So the model's output is what it was, and its memory too: a model set to eager attention builds its
T×T matrices as ever, and the probes add a block of queries at a time. Families that compute their softmax in their own code
are watched there. What is not a softmax over the keys that a view can
state exactly is named in `unobserved`, and has no rows. A long sequence is read in stretches, with a cache:

    with observe(model) as recorder:
        read_in_stretches(model, ids_BT, recorder, at_once=2048)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...config.base import nearest
from ...config.run import ProbeConfig
from ...record import Row
from ..capture import PROBES, Recorder
from ..probe import Probe, fetch
from .intercept import intercepted
from .interpose import interposed
from .watch import Stretches, Watch


@dataclass(frozen=True)
class Unobserved:
    """A module whose attention, if it has any, has no rows, and why."""

    module: str
    class_name: str
    why: str


class Observed(Recorder):
    """The probes of one observation, and what they could not see."""

    def __init__(self, probes: list[Probe]):
        super().__init__(probes)
        self.stretches: Stretches | None = None
        self.watch: Watch | None = None
        self._unobserved: dict[str, Unobserved] = {}
        self._seen: set[str] = set()

    @property
    def unobserved(self) -> list[Unobserved]:
        """What ran and has no attention rows, in the order it was met."""
        return [missed for name, missed in self._unobserved.items() if name not in self._seen]

    def saw(self, name: str) -> None:
        """Note a module that was observed."""
        self._seen.add(name)
        self.n_layers_seen += 1

    def miss(self, name: str, module: nn.Module, why: str) -> None:
        """Note a module that cannot be observed."""
        self._unobserved.setdefault(name, Unobserved(name, type(module).__name__, why))

    @contextmanager
    def in_stretches(self, n_tokens: int) -> Iterator[None]:
        """The forward passes in this block read one batch of sequences of `n_tokens`, each going on from the cache of the
        one before; the probes see them when the block ends. Causal self-attention alone is observed.

        Raises:
            ValueError: when other than `n_tokens` were read.
        """
        self.stretches = Stretches(n_tokens)
        try:
            yield
            self.watch.finish(self.stretches)
        finally:
            self.stretches = None

    def rows(self, run: str = "", step: int = 0) -> list[Row]:
        """Everything measured so far, averaged over all sequences seen; rows of the residual stream alone where no
        attention could be observed.

        Raises:
            ValueError: when no forward pass was seen.
        """
        self.watch.waiting.show()  # of a block that ran without its model
        fetch(self.probes)
        rows = [row for probe in self.probes for row in probe.rows(run, step)]
        return rows if rows or self.unobserved else super().rows(run, step)


@contextmanager
def observe(
    model: nn.Module,
    names: Sequence[str] | None = None,
    *,
    config: ProbeConfig | None = None,
    domains: tuple[str, ...] = (),
) -> Iterator[Observed]:
    """Watch the attention layers and the blocks' outputs of a transformers model of text.

    A layer's number is its block's place in its stack. Attention is causal, `encoder` (it sees both ways) or `cross` as
    its mask says; padding is left out, so the first token is the first that is no padding. A model set to another
    implementation than `sdpa` and `eager` runs as `sdpa` meanwhile.

    Args:
        model: of transformers 5, not compiled. Run it on whole sequences, or in `Observed.in_stretches`.
        names: of probes, see `gatelab probes`; None takes all.
        config: thresholds and queries left out.
        domains: names of the domains that `Recorder.domain_BT` numbers.

    Raises:
        ValueError: an unknown probe, a compiled model, one that is not of transformers.
    """
    from transformers import PreTrainedModel

    for name in names or ():
        if name not in PROBES:
            raise ValueError(f"no probe {name!r}: expected {', '.join(PROBES)}{nearest(name, list(PROBES))}")
    named = dict(model.named_modules())
    if hasattr(model, "_orig_mod") or any(getattr(m, "_compiled_call_impl", None) for m in named.values()):
        raise ValueError(
            "this model is compiled and would ignore the probes; give and run the module that was compiled"
        )
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is not a model of transformers; for modules around GatedAttention take `capture`"
        )
    recorder = Observed([PROBES[n](config or ProbeConfig(), domains) for n in (PROBES if names is None else names)])
    watch = recorder.watch = Watch(model, recorder, named)
    skip = watch.registered.__contains__
    # Not those that only hold what the model calls.
    whole = {b.module for b in watch.blocks.values() if type(b.module).forward is not nn.Module.forward}
    with (
        interposed(model, watch.around, modules=named.values()),
        intercepted(model, watch.noticed, skip=skip, needless=watch.needless, blocks=whole, named=named),
    ):
        handles = watch.hooks()
        try:
            yield recorder
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def read_in_stretches(model: nn.Module, ids_BT: Tensor, recorder: Observed, *, at_once: int = 2048) -> None:
    """Run a decoder of transformers over sequences `at_once` tokens at a time, with its cache, under an observation.

    What a layer needs at a time, beside the weights and the cache, does not grow with the sequence but for its masks
    (`at_once` × T) and what the probes keep of each query and key.

    Raises:
        ValueError: a model of two stacks, or one that does not carry its state over in transformers' cache; `at_once` below
            2.
    """
    from transformers import DynamicCache

    if at_once < 2:
        raise ValueError(f"at_once={at_once}: attention takes two tokens at least; take more")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} has two stacks and reads its input whole; run it as it is")
    if not carries_over(model, ids_BT, recorder):
        raise ValueError(
            f"{type(model).__name__} read in passes gives other numbers than read whole: its cache does not carry all that a "
            f"layer keeps; run it whole"
        )
    T = ids_BT.shape[1]
    # One token alone would be taken for the first of what is generated.
    ends = [t for t in range(at_once, T, at_once) if T - t > 1] + [T]
    cache = DynamicCache(config=model.config)
    with recorder.in_stretches(T):
        for start, end in zip([0, *ends], ends, strict=False):
            model(input_ids=ids_BT[:, start:end], past_key_values=cache, use_cache=True)


@torch.no_grad()
def carries_over(model: nn.Module, ids_BT: Tensor, recorder: Observed | None = None) -> bool:
    """Whether a second pass over tokens, on the cache of the first, gives what one pass over both gives; some recurrent
    layers of transformers begin anew. Tried on the first 32 tokens, without the observation."""
    from transformers import DynamicCache

    if recorder is not None:
        recorder.watch.is_paused = True
    ids_BT, half = ids_BT[:, :32], min(ids_BT.shape[1], 32) // 2
    try:
        whole_BTD = model(input_ids=ids_BT, use_cache=False)[0]
        cache = DynamicCache(config=model.config)
        model(input_ids=ids_BT[:, :half], past_key_values=cache, use_cache=True)
        after_BTD = model(input_ids=ids_BT[:, half:], past_key_values=cache, use_cache=True)[0]
    except torch.OutOfMemoryError:
        raise  # reading it whole would take more
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError):
        return False  # it takes another cache, or none
    finally:
        if recorder is not None:
            recorder.watch.is_paused = False
    # Half precision moves a number by a hundredth of the largest; what begins anew moves it by more than a tenth.
    return bool((whole_BTD[:, half:] - after_BTD).abs().max() <= 0.03 * whole_BTD.abs().max())
