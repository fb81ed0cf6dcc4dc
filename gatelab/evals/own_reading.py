"""Texts read for their losses: LongPPL over a key set that is chosen once, loss by position, and without reads behind shut gates.

Notable: a document is the beginning of a file, a line of .jsonl or a row of .parquet or .arrow, as many tokens of it as are asked
for, so that intervals over documents are over texts that have nothing to do with one another. One that has fewer is refused, and
one that has more is said to be cut.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, log, log2
from pathlib import Path

from ..config.base import canonical
from ..data import DataError
from ..data.documents import NotText, documents
from ..data.files import find, label
from ..record import Item, Row
from .found import Found
from .harness.tokens import Tokens
from .long_ppl import WINDOW, KeyTokens, key_tokens, long_ppl, perplexity
from .next_token import NextToken
from .own_asking import LENGTH, OwnAsking
from .own_lines import line
from .own_posed import Measured
from .own_text import Progress, check_length
from .position_loss import position_rows, token_losses
from .skipped_reads import skipped_reads

_LETTERS = 64  # a token has fewer on the whole, so that of a large file no more is tokenized
_SHARE = 8  # of a length, LongPPL's short context where none is stated


@dataclass(frozen=True)
class Text:
    """A document's first tokens, the tokenizer's own beginning among them, and the bytes that all but the first say; `problem`: why
    it is not read."""

    index: int
    name: str
    ids: tuple[int, ...] = ()
    problem: str | None = None
    is_cut: bool = False
    n_bytes: int = 0


@dataclass(frozen=True)
class Reading:
    """Texts that are read: `of` in words, `texts` in the files' order, and the tokenizer's id that each begins with, if one."""

    of: str
    length: int
    texts: tuple[Text, ...]
    bos_id: int | None

    @property
    def ids(self) -> list[list[int]]:
        """Of those that are read."""
        return [list(text.ids) for text in self.texts if text.problem is None]


def texts_of(source: str, n: int, length: int, tokens: Tokens, max_tokens: int | None) -> Reading:
    """The first `n` documents that have `length` tokens, and those before them that have not.

    Raises:
        DataError: a source that cannot be read, or holds no such document.
        ValueError: a length beyond the positions, or below two tokens.
    """
    check_length("text", length, max_tokens)
    if length < 2:
        raise ValueError(f"--lengths {length}: a next-token loss takes two tokens at least; take more")
    found: list[Text] = []
    for index, (name, text) in enumerate(_documents(source)):
        part = text[: _LETTERS * length]
        ids = tokens.encode([part])[0]
        if len(ids) < 2 * length and len(text) > len(part):
            # Long runs of blanks may be one token, and where the text was cut one may be another.
            part = text
            ids = tokens.encode([part])[0]
        if len(ids) < length:
            found.append(Text(index, name, problem=f"{name} has {len(ids)} tokens, and {length} are read"))
            continue
        is_cut = len(ids) > length or len(text) > _LETTERS * length
        found.append(Text(index, name, tuple(ids[:length]), None, is_cut, tokens.n_bytes(part, length)))
        n -= 1
        if not n:
            break
    if not any(text.problem is None for text in found):
        raise DataError(
            f"--text {source}: none of its {len(found)} documents has {length} tokens; take shorter --lengths"
        )
    bos = tokens.begins[0] if len(tokens.begins) == 1 else None
    return Reading(label((source,)), length, tuple(found), bos)


def _documents(source: str) -> Iterator[tuple[str, str]]:
    for file in find((source,)):
        try:
            for number, document in enumerate(documents(file, "text")):
                yield f"{file.path.name}:{number}" if file.kind != "text" else file.path.name, document.decode()
        except NotText:
            if file.named:
                raise


def window_of(length: int) -> int:
    """The short context of LongPPL where none is stated: an eighth of the length, and the paper's 4,096 at most."""
    return max(1, min(WINDOW, length // _SHARE))


def by_reading(
    found: Found,
    language: NextToken,
    tokens: Tokens,
    run: str,
    asking: OwnAsking,
    names: Sequence[str],
    progress: Progress,
) -> None:
    """Add what the losses of texts say; key sets that were chosen here are files.

    Raises:
        DataError, ConfigError: a text or a key set that cannot be read.
        ValueError: a length or window that no text can have, or another key set's texts.
    """
    given = None if asking.keys is None else read_keys(asking.keys)
    for length in asking.lengths or (LENGTH,):
        n, length = (asking.limit, length) if given is None else (len(given.documents), given.documents[0].n_tokens)
        reading = texts_of(asking.text, n, length, tokens, language.max_tokens)
        if given is not None and len(reading.ids) < n:
            raise DataError(
                f"--text {asking.text}: {len(reading.ids)} documents of {length} tokens, and --keys {asking.keys} was chosen on "
                f"{n}; read the same texts"
            )
        found.notes.append(f"texts: {_counted(len(reading.ids), 'document')} of {length} tokens of {reading.of}")
        made = []
        if "long_ppl" in names:
            keys = given or choose_keys(language, reading, name=run, window=asking.window, progress=progress)
            reference = keys.reference or "another model"
            found.notes.append(
                f"{_counted(keys.n, 'key token')} of {reference}, short contexts of {keys.window} to "
                f"{keys.window + keys.stride - 1} tokens"
            )
            if keys.not_finite:
                found.notes.append(
                    f"long_ppl: {keys.not_finite:.1%} of the tokens are no key tokens because what {reference} says of them is "
                    "no number; choose the key tokens by a model whose losses are finite"
                )
            if given is None:
                found.files[f"keys-{length}.json"] = as_json(keys)
            made.append(long(language, reading, keys, run=run))
        if "position_loss" in names:
            made.append(by_position(language, reading, run=run, progress=progress))
        if "skipped_reads" in names:
            progress("reading texts with heads left out", 0, len(reading.ids))
            made.append(with_skips(language, reading, run=run))
        for one in made:
            found.rows += one.rows
            found.items += one.items
            found.records += one.lines


def choose_keys(
    language: NextToken, reading: Reading, *, name: str, window: int | None, progress: Progress
) -> KeyTokens:
    """The key tokens of these texts by this model, document by document.

    Raises:
        ValueError: a window that leaves no token with a longer context.
    """
    window = window or window_of(reading.length)
    stride = max(1, window // 4)
    if window + stride >= reading.length:
        raise ValueError(
            f"long_ppl: --window {window} of texts of {reading.length} tokens leaves none with a longer context; take a smaller "
            "one, or longer texts"
        )
    made = []
    for number, ids in enumerate(reading.ids, 1):
        made.append(key_tokens(language, [ids], window=window, stride=stride, bos_id=reading.bos_id, name=name))
        progress("choosing key tokens", number, len(reading.ids))
    return made[0].model_copy(update={"documents": tuple(d for keys in made for d in keys.documents)})


def long(language: NextToken, reading: Reading, keys: KeyTokens, *, run: str) -> Measured:
    """LongPPL of these texts over a key set.

    Raises:
        ValueError: another key set's texts.
    """
    head, items, counted = _head(reading, "long_ppl", run)
    for item, own in zip((i for i in items if "refused" not in i.factors), keys.documents, strict=True):
        item.factors["key_tokens"] = len(own.positions)
    if not keys.n:
        lost = keys.not_finite or None
        return Measured(head, items, [line("long_ppl", "none", reading.length, None, None, not_finite=lost, **counted)])
    rows = [_at(r, "long_ppl", reading, run) for r in long_ppl(language, reading.ids, keys).rows()]
    of = {r.metric: r.value for r in rows}
    lines = [
        line(
            "long_ppl", "long_ppl", reading.length, None, of["long_ppl"], low=perplexity(of["long_loss_low"]),
            high=perplexity(of["long_loss_high"]), chance=float(language.n_ids), **counted,
        ),
        line(
            "long_ppl", "plain_ppl", reading.length, None, of["plain_ppl"], low=of["plain_ppl_low"],
            high=of["plain_ppl_high"], chance=float(language.n_ids), **counted,
        ),
        line("long_ppl", "key_share", reading.length, None, of["key_share"], **counted),
    ]  # fmt: skip
    return Measured(head + rows, items, lines)


def by_position(language: NextToken, reading: Reading, *, run: str, progress: Progress) -> Measured:
    """Loss by octave of position."""
    head, items, counted = _head(reading, "position_loss", run)
    read, losses = [i for i in items if "refused" not in i.factors], []
    for number, ids in enumerate(reading.ids, 1):
        losses += token_losses(language, [ids])
        loss = float(losses[-1].mean())
        read[number - 1].factors["loss"] = loss if isfinite(loss) else str(loss)
        progress("reading texts", number, len(reading.ids))
    n_bytes = [text.n_bytes for text in reading.texts if text.problem is None]
    # Special tokens may be all that a document says.
    said = n_bytes if min(n_bytes) else None
    rows = [_at(r, "position_loss", reading, run) for r in position_rows(losses, n_bytes=said)]
    of = {(r.metric, r.bin): r.value for r in rows}
    lines = []
    if said:
        n_tokens = sum(map(len, losses))
        lines.append(
            line(
                "position_loss", "bits_per_byte", reading.length, None, of["bits_per_byte", None],
                low=of["bits_per_byte_low", None], high=of["bits_per_byte_high", None],
                chance=log2(language.n_ids) * n_tokens / sum(said), **counted,
            )
        )  # fmt: skip
    lines += [
        line(
            "position_loss", f"nats after positions {2**n - 1} to {min(2 ** (n + 1), reading.length) - 2}", reading.length,
            None, value, low=of["position_loss_low", n], high=of["position_loss_high", n], chance=log(language.n_ids), **counted,
        )
        for (metric, n), value in of.items()
        if metric == "position_loss"
    ]  # fmt: skip
    return Measured(head + rows, items, lines)


def with_skips(language: NextToken, reading: Reading, *, run: str) -> Measured:
    """What leaving out the heads behind shut gates saves and costs.

    Raises:
        ValueError: a model without a gate after attention that is known before it reads.
    """
    head, items, counted = _head(reading, "skipped_reads", run)
    found = skipped_reads(language, reading.ids)
    lines = []
    for s in found.levels:
        of = {
            f"bytes unread, scores below {s.threshold:g}": (s.reads, s.reads_low, s.reads_high),
            f"nats more, scores below {s.threshold:g}": (s.change.mean, s.change.low, s.change.high),
            "nats more, as many at random": (s.control.mean, s.control.low, s.control.high),
        }
        lines += [
            line("skipped_reads", what, reading.length, None, value, low=low, high=high, **counted)
            for what, (value, low, high) in of.items()
        ]
    return Measured(head + [_at(r, "skipped_reads", reading, run) for r in found.rows()], items, lines)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def as_json(keys: KeyTokens) -> str:
    """A key set as its file has it."""
    return json.dumps(canonical(keys)) + "\n"


def read_keys(path: Path) -> KeyTokens:
    """A key set of documents of one length.

    Raises:
        ConfigError: no key set.
        DataError: documents of several lengths, which no reading has.
    """
    keys = KeyTokens.read(path)
    lengths = sorted({d.n_tokens for d in keys.documents})
    if len(lengths) != 1:
        raise DataError(
            f"--keys {path}: its documents have {lengths} tokens, and texts are read at one length; take another"
        )
    return keys


def _at(row: Row, task: str, reading: Reading, run: str) -> Row:
    return replace(row, run=run, task=task, length=reading.length)


def _head(reading: Reading, task: str, run: str) -> tuple[list[Row], list[Item], dict[str, int]]:
    n = len(reading.ids)
    refused = len(reading.texts) - n
    rows = [
        Row(run, 0, "tasks", metric, float(v), "items", task=task, length=reading.length)
        for metric, v in (("items", n), ("items_refused", refused))
    ]
    items = []
    for text in reading.texts:
        factors = {"length": reading.length, "document": text.name}
        factors |= {"cut": text.is_cut} if text.problem is None else {"refused": text.problem}
        items.append(Item(run, 0, task, text.index, None, float("nan"), "", "", factors))
    return rows, items, {"items": n, "refused": refused}
