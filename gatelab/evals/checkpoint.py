"""Looking at somebody's checkpoint: the probes on text, through its own tokenizer, and the three facts to read first."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.run import ProbeConfig
from ..data import DataError
from ..data.files import NotText, documents, find, label
from ..models.external import External, load_external
from ..probes.external import Unobserved, observe
from ..record import Row

# A minute on a CPU for a hundred million weights.
N_SEQUENCES, LENGTH = 8, 512


@dataclass(frozen=True)
class Look:
    """What was seen of a checkpoint: how in `description`, the most telling in `facts`, all of it in `rows`."""

    description: str
    facts: list[str]
    rows: list[Row]
    unobserved: list[Unobserved]


@torch.no_grad()
def look(path: Path, *, text: str = "stdlib", length: int | None = None) -> Look:
    """Every probe on at most eight sequences of a text, cut one behind the other, each with the tokenizer's own first and
    last tokens. An encoder-decoder's decoder reads the same text.

    Args:
        path: a folder in Hugging Face's layout, or a .gguf file.
        text: a file or a folder; `stdlib` is the source of Python's standard library.
        length: tokens a sequence; at most 512 unless stated.

    Raises:
        ValueError, DataError: a checkpoint or a text that cannot be used, a length that the positions do not allow.
    """
    checkpoint = load_external(path)
    if length is not None and checkpoint.max_tokens is not None and length > checkpoint.max_tokens:
        raise ValueError(
            f"--length {length}: this model has positions for {checkpoint.max_tokens} tokens; take at most as many"
        )
    if length is not None and length < 2:
        raise ValueError(f"--length {length}: attention takes two tokens at least; take more")
    sequences = _sequences(checkpoint, text, length)
    model = checkpoint.model
    is_both = getattr(model.config, "is_encoder_decoder", False)
    with observe(model, config=ProbeConfig()) as recorder:
        for ids in sequences:
            ids_BT = torch.tensor([ids], device=model.device)
            given = {"input_ids": ids_BT}
            if is_both:
                start = model.config.decoder_start_token_id or model.config.pad_token_id or 0
                given["decoder_input_ids"] = torch.cat([torch.full_like(ids_BT[:, :1], start), ids_BT[:, :-1]], dim=1)
            else:
                recorder.tokens_BT = ids_BT
            model(**given)
    rows = recorder.rows(checkpoint.name)
    n, first = len(sequences), checkpoint.tokenizer.convert_ids_to_tokens(sequences[0][0])
    is_same = len({ids[0] for ids in sequences}) == 1
    begins = f"each begins with {first!r}" if is_same and n > 1 else "they begin with ordinary tokens" if n > 1 else ""
    description = f"{checkpoint.name}: {n} sequence{'s' * (n > 1)} of {len(sequences[0])} tokens of {label((text,))}"
    return Look(f"{description}; {begins}" if begins else description, facts(rows), rows, recorder.unobserved)


def facts(rows: list[Row]) -> list[str]:
    """Three sentences: first-token mass against uniform attention, the strongest sink at any key, the largest massive
    activation. Fewer where a probe saw nothing."""
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
        out.append(
            f"The strongest sink is in head {best.head} of layer {best.layer}: one key gets {best.value:.1%}, in "
            f"{place.value:.0%} of the sequences the key at position {place.key}."
        )
    largest = [r for r in rows if r.metric == "massive_max" and r.layer is not None]
    if largest:
        best = max(largest, key=lambda r: r.value)
        ratio = next(r.value for r in rows if (r.metric, r.layer, r.stack) == ("massive_ratio", best.layer, best.stack))
        where = f"layer {best.layer}" + (" of the encoder" if best.stack == "encoder" else "")
        out.append(f"The largest activation is {best.value:.4g}, after {where}: {ratio:.4g} times the median there.")
    return out


def _sequences(checkpoint: External, text: str, length: int | None) -> list[list[int]]:
    """Ids of at most `N_SEQUENCES` sequences of equal length."""
    tokenizer = checkpoint.tokenizer
    before, after = _ends(tokenizer)
    n_ends = len(before) + len(after)
    wanted = length or min(LENGTH, checkpoint.max_tokens or LENGTH)
    body = wanted - n_ends
    if body < 1:
        raise ValueError(f"--length {wanted}: the tokenizer's own first and last tokens are {n_ends}; take more")
    ids: list[int] = []
    for part in _texts(text):
        # No tokenizer has tokens so long that more of a large file would be needed.
        ids += tokenizer(part[: 64 * body * N_SEQUENCES], add_special_tokens=False, verbose=False).input_ids
        if len(ids) >= body * N_SEQUENCES:
            break
    if len(ids) < 2:
        raise DataError(f"{text!r} has {len(ids)} tokens, and attention takes two at least; name a longer text")
    if len(ids) < body:
        if length is not None:
            raise DataError(
                f"--length {length}: {text!r} has {len(ids)} tokens; take at most {len(ids) + n_ends}, or a longer text"
            )
        body = len(ids)
    starts = range(0, min(len(ids) // body, N_SEQUENCES) * body, body)
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
