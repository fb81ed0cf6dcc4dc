"""Looking at somebody's checkpoint: the probes on text, through its own tokenizer, and the facts to read first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..config.base import ConfigError, nearest
from ..config.run import ProbeConfig
from ..data import DataError
from ..data.documents import NotText, documents
from ..data.files import find, label
from ..models.external import Checkpoint, External, Loading, open_external
from ..models.footprint import Prefill, check_fits
from ..models.memory import available
from ..probes import PROBES
from ..probes.external import Unobserved, carries_over, observe, read_in_stretches
from ..probes.interventions import parse, strongest_keys
from ..record import Row
from .changes import Effects
from .intervene import effects

# About a minute on a CPU for a hundred million weights.
LENGTH, TOKENS, MOST = 512, 4096, 8
LONG = 16_384
# The importance above which a key is called a sink (arXiv 2410.10781).
SINK = 0.3
_DEFAULT = Loading()


@dataclass(frozen=True)
class Reading:
    """What is read of a text: `sequences` of `length` tokens, cut one behind the other, `at_once` tokens a pass (0: whole
    sequences). None: 512 tokens, or as many as the positions allow; as many sequences as 4,096 tokens make, 8 at most."""

    text: str = "stdlib"
    length: int | None = None
    sequences: int | None = None
    at_once: int = 2048

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 2:
            raise ConfigError([f"--length {self.length}: attention takes two tokens at least; take more"])
        if self.sequences is not None and self.sequences < 1:
            raise ConfigError([f"--sequences {self.sequences}: expected one at least"])
        if self.at_once < 0 or self.at_once == 1:
            raise ConfigError([f"--at-once {self.at_once}: expected two tokens at least, or 0 for whole sequences"])


@dataclass(frozen=True)
class Look:
    """What was seen of a checkpoint: how in `description`, the most telling in `facts`, what a reader should know in
    `notes`, all of it in `rows`; `tokens` are the texts of the ids that rows list."""

    name: str
    description: str
    facts: list[str]
    notes: tuple[str, ...]
    rows: list[Row]
    unobserved: list[Unobserved]
    tokens: dict[int, str] = field(default_factory=dict)
    effects: Effects | None = None


@dataclass(frozen=True)
class Edits:
    """Interventions by their words (`gatelab.probes.interventions.KINDS`), and over how many documents."""

    words: tuple[str, ...]
    documents: int = 16

    def __post_init__(self) -> None:
        if self.documents < 1:
            raise ConfigError([f"--documents {self.documents}: expected one at least"])


def look(
    source: str | Path,
    reading: Reading | None = None,
    *,
    loading: Loading = _DEFAULT,
    names: Sequence[str] | None = None,
    edits: Edits | None = None,
    tell: Callable[[str], None] | None = None,
) -> Look:
    """The probes on a text, with the tokenizer's own first and last tokens in every sequence. An encoder-decoder's decoder
    reads the same text. A decoder reads long sequences in stretches, so that memory grows with their length.

    Args:
        source: a folder in Hugging Face's layout, a .gguf file, or a model of the hub.
        names: of probes; None takes all, but for `rank` of sequences beyond 16,384 tokens, whose rows take 64 × T a head.
        tell: called with what is being done, where it takes a while.
        edits: also what these do to the next-token loss, on sequences of the same text, whole, of at most 512 tokens.

    Raises:
        ValueError, DataError: a checkpoint or a text that cannot be used, a length that the positions do not allow, more
            memory than there is, an unknown probe or edit.
    """
    reading = reading or Reading()
    parsed = [parse(word) for word in (edits.words if edits else ())]
    if names is not None and any("@strongest" in edit.word for edit in parsed):
        names = [*names, "anywhere"]
    names = None if names is None else list(dict.fromkeys(names))
    for name in names or ():
        if name not in PROBES:
            raise ConfigError([f"--probes {name}: expected {', '.join(PROBES)}{nearest(name, list(PROBES))}"])
    if parsed:
        loading = loading.model_copy(update={"head": True})
    checkpoint = open_external(source, loading)
    sequences = sequences_of(checkpoint, reading)
    n_tokens = len(sequences[0])
    at_once = stretch_of(checkpoint, reading, n_tokens)
    check_memory(checkpoint, n_tokens, at_once)
    notes = list(checkpoint.notes)
    if names is None and n_tokens > LONG:
        names = [name for name in PROBES if name != "rank"]
        notes.append(f"beyond {LONG} tokens the probe rank is left out; --probes takes it in")
    tell = tell or (lambda _: None)
    tell(f"loading {checkpoint.n_weights:,} weights")
    loaded = checkpoint.load()
    notes += [note for note in loaded.notes if note not in checkpoint.notes]
    if at_once is not None and not carries_over(loaded.model.base_model, ids_of(sequences[0], loaded.model)):
        at_once = None
        check_memory(checkpoint, n_tokens, None)
        notes.append("it is read whole: in passes, with transformers' cache, it gives other numbers")
    tell(f"reading {len(sequences)} x {n_tokens} tokens")
    recorder = read(loaded, sequences, at_once=at_once, names=names)
    rows = recorder.rows(loaded.name)
    listed = {r.key for r in rows if r.metric == "sink_token"}
    tokens = {i: loaded.tokenizer.convert_ids_to_tokens(i) or "" for i in sorted(listed)}
    changes = None
    if parsed:
        length = min(n_tokens, LENGTH)
        documents = sequences_of(checkpoint, replace(reading, length=length, sequences=None), at_most=edits.documents)
        tell(f"{len(parsed)} interventions and their controls, each dose of each on {len(documents)} x {length} tokens")
        changes = effects(loaded.model, documents, parsed, positions=strongest_keys(rows) or None)
        notes.append(f"interventions: {len(documents)} sequences of {length} tokens, {changes.kind_of_interval}")
    how = f"{loaded.name}: {described(sequences, reading, loaded.tokenizer)}, {checkpoint.dtype} on {checkpoint.device}"
    found = facts(rows, tokens)
    return Look(loaded.name, how, found, tuple(notes), rows, recorder.unobserved, tokens, changes)


@torch.no_grad()
def read(model: External, sequences: list[list[int]], *, at_once: int | None, names: Sequence[str] | None) -> Any:
    """The recorder of the probes on these ids."""
    # Logits over a vocabulary are the largest tensor of a pass, and no probe reads them.
    module = model.model.base_model
    is_both = getattr(module.config, "is_encoder_decoder", False)
    with observe(module, names, config=ProbeConfig()) as recorder:
        for ids in sequences:
            ids_BT = ids_of(ids, module)
            recorder.tokens_BT = None if is_both else ids_BT
            if at_once is not None:
                read_in_stretches(module, ids_BT, recorder, at_once=at_once)
            elif is_both:
                stated = (getattr(module.config, f"{name}_token_id", None) for name in ("decoder_start", "pad"))
                start = next((i for i in stated if i is not None), 0)
                shifted_BT = torch.cat([torch.full_like(ids_BT[:, :1], start), ids_BT[:, :-1]], dim=1)
                module(input_ids=ids_BT, decoder_input_ids=shifted_BT)
            elif "use_cache" in signature(module.forward).parameters:
                module(input_ids=ids_BT, use_cache=False)
            else:
                module(input_ids=ids_BT)
    return recorder


def ids_of(ids: list[int], module: Any) -> torch.Tensor:
    """One sequence, where the model is."""
    return torch.tensor([ids], device=module.device)


def stretch_of(checkpoint: Checkpoint, reading: Reading, n_tokens: int) -> int | None:
    """Tokens a pass; None: whole sequences, which two stacks and encoders take anyway."""
    import transformers

    config = checkpoint.config
    is_causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    is_open = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if not reading.at_once or n_tokens <= reading.at_once or config.is_encoder_decoder or is_open or not is_causal:
        return None
    return reading.at_once


def check_memory(checkpoint: Checkpoint, n_tokens: int, at_once: int | None) -> None:
    """Whether there is memory enough.

    Raises:
        ValueError: there is not: how much is needed, and of what, and what would fit.
    """
    kind = getattr(checkpoint.auto_class, "_model_mapping", {}).get(type(checkpoint.config), None)
    prefill = Prefill(
        n_tokens,
        chunk=at_once,
        dtype=checkpoint.dtype,
        has_head=checkpoint.loading.head,
        builds_maps=not getattr(kind, "_supports_sdpa", True),
    )
    check_fits(checkpoint.config, checkpoint.n_weights, prefill, free=available(checkpoint.device))


def described(sequences: list[list[int]], reading: Reading, tokenizer: Any) -> str:
    """How many sequences of what, and how they begin."""
    n, first = len(sequences), tokenizer.convert_ids_to_tokens(sequences[0][0])
    is_same = len({ids[0] for ids in sequences}) == 1
    begins = (
        f"; each begins with {first!r}" if is_same and n > 1 else "; they begin with ordinary tokens" if n > 1 else ""
    )
    plural = "s" if n > 1 else ""
    return f"{n} sequence{plural} of {len(sequences[0])} tokens of {label((reading.text,))}{begins}"


def facts(rows: list[Row], tokens: dict[int, str] | None = None) -> list[str]:
    """Sentences: first-token mass against uniform attention, the strongest sink at any key, the largest massive activation;
    then what the gates do, and on which tokens sinks sit. Fewer where a probe saw nothing."""
    out = []
    # An encoder alone is judged by its own attention.
    stacks = {r.stack for r in rows if r.metric == "first_token_mass"}
    stack = None if None in stacks else "encoder"
    of = [r for r in rows if r.stack == stack and r.domain is None]
    mass = next((r.value for r in of if r.metric == "first_token_mass" and r.layer is None), None)
    uniform = next((r.value for r in of if r.metric == "first_token_uniform" and r.layer is None), None)
    if mass is not None and uniform is not None:
        out.append(f"The first token takes {mass:.1%} of the attention; uniform attention would give it {uniform:.1%}.")
    heads = [r for r in of if r.metric == "sink_importance" and r.head is not None]
    if heads:
        best = max(heads, key=lambda r: r.value)
        place = next(
            r for r in of if (r.metric, r.layer, r.head) == ("sink_position", best.layer, best.head)
        )  # the most frequent one
        where = f"head {best.head} of layer {best.layer}"
        said = f"The strongest sink is in {where}: one key gets"
        if best.value <= SINK:
            said = f"No head has a sink, a key with more than {SINK:.0%}: the strongest key, in {where}, gets"
        out.append(f"{said} {best.value:.1%}, in {place.value:.0%} of the sequences the key at position {place.key}.")
    largest = [r for r in rows if r.metric == "massive_max" and r.layer is not None]
    if largest:
        best = max(largest, key=lambda r: r.value)
        ratio = next(r.value for r in rows if (r.metric, r.layer, r.stack) == ("massive_ratio", best.layer, best.stack))
        where = f"layer {best.layer}" + (" of the encoder" if best.stack == "encoder" else "")
        out.append(
            f"The largest activation is {_said(best.value)}, after {where}: {_said(ratio)} times the median there."
        )
    whole = {r.metric: r.value for r in of if (r.layer, r.head, r.bin, r.site) == (None, None, None, "sdpa")}
    if "gate_mean" in whole:
        sink = ""
        if "effective_sink" in whole and mass is not None:
            of_layers = [r for r in of if r.layer is not None and r.head is None]
            gated = {r.layer for r in of_layers if r.metric == "effective_sink"}
            by_layer = {r.layer: r.value for r in of_layers if r.metric == "first_token_mass"}
            there = " in their layers" if gated < by_layer.keys() else ""
            mass = fmean(by_layer[layer] for layer in gated) if there else mass
            sink = f"; of the first token's {mass:.1%} of the attention{there} they let {whole['effective_sink']:.1%} through"
        out.append(f"The gates' mean score is {whole['gate_mean']:.2f}, {whole['gate_below']:.0%} are shut{sink}.")
    sinks = [r for r in rows if r.metric == "sink_token" and r.key in (tokens or {})]
    if sinks:
        named = ", ".join(
            f"{_shown(tokens[r.key])!r} ({r.value:.0%})" for r in sorted(sinks, key=lambda r: -r.value)[:3]
        )
        out.append(f"The strongest keys are most often {named} of all (sequence, layer, head) triples.")
    return out


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _shown(token: str) -> str:
    """A token of a byte-level vocabulary, whose blank and line's end are letters."""
    return token.replace("Ġ", " ").replace("Ċ", "\n")


def sequences_of(checkpoint: Checkpoint, reading: Reading, *, at_most: int | None = None) -> list[list[int]]:
    """Ids of sequences of equal length, as many as the reading says, or those that there are up to `at_most`.

    Raises:
        ValueError, DataError: a length that the positions do not allow, a text that is too short or cannot be read.
    """
    tokenizer, length = checkpoint.tokenizer, reading.length
    if length is not None and checkpoint.max_tokens is not None and length > checkpoint.max_tokens:
        raise ValueError(
            f"--length {length}: this model has positions for {checkpoint.max_tokens} tokens; take at most as many, or "
            f"--extend yarn to stretch rotary ones"
        )
    before, after = _ends(tokenizer)
    n_ends = len(before) + len(after)
    wanted = length or min(LENGTH, checkpoint.max_tokens or LENGTH)
    n = at_most or reading.sequences or max(1, min(MOST, TOKENS // wanted))
    body = wanted - n_ends
    if body < 1:
        raise ValueError(f"--length {wanted}: the tokenizer's own first and last tokens are {n_ends}; take more")
    ids: list[int] = []
    for part in _texts(reading.text):
        # No tokenizer has tokens so long that more of a large file would be needed.
        ids += tokenizer(part[: 64 * body * n], add_special_tokens=False, verbose=False).input_ids
        if len(ids) >= body * n:
            break
    if len(ids) < 2:
        raise DataError(f"{reading.text!r} has {len(ids)} tokens, and attention takes two at least; name a longer text")
    if len(ids) < body:
        if length is not None:
            raise DataError(
                f"--length {length}: {reading.text!r} has {len(ids)} tokens{f' and the tokenizer adds {n_ends}' * (n_ends > 0)};"
                f" take at most {len(ids) + n_ends}, or a longer text"
            )
        body = len(ids)
    starts = range(0, min(len(ids) // body, n) * body, body)
    if reading.sequences is not None and len(starts) < n:
        raise DataError(
            f"--sequences {n}: {reading.text!r} has tokens for {len(starts)} of {body + n_ends}; take fewer or shorter ones"
        )
    return [[*before, *ids[start : start + body], *after] for start in starts]


def _texts(name: str) -> Iterator[str]:
    is_named = name != "stdlib"
    for file in find((name,)):
        try:
            for document in documents(file, "text"):
                yield document.decode()
        except NotText:
            if is_named and file.named:
                raise


def _ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind a text."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return full[:start], full[start + len(bare) :]
