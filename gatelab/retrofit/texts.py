"""What a retrofit reads: sequences of a text, through the model's own tokenizer, or sampled from the model itself.

Notable: text that the model wrote is what it already believes, so a loss that changes on it is no matter of another domain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.retrofit import Retrofit, Surgery
from ..data import DataError
from ..data.documents import NotText, documents
from ..data.files import File, find, label
from ..models.generate import generate
from ..models.memory import available
from ..models.model import Model

SELF = "self"
# A longer document counts as several, so that one book can be divided into sets.
_MOST = 16
# float64 logits and what sampling makes of them, and the share of the free memory that rows may take with their keys.
_COPIES, _SHARE, _UNKNOWN = 5, 0.4, 2**30


@dataclass(frozen=True)
class Texts:
    """Ids of sequences, [N, T + 1] on the host: `train_NT` to train on, `heldout` by the text's name for the losses,
    `measured_NT` to measure first keys on (None where nothing asks), of the real text and of that which is trained on in
    turn."""

    train_NT: Tensor
    heldout: dict[str, Tensor]
    measured_NT: Tensor | None


def tokenizer_of(title: str, folder: Path | None) -> Any:
    """The tokenizer in a model's folder.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if folder is None or not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(
            f"{title}: has no tokenizer, so no text can be read for it; take a model with its tokenizer's files"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{title}: its tokenizer cannot be read ({said}); copy its files from the model again"
        ) from None


def read_texts(model: Model, tokenizer: Any, config: Retrofit, *, text: str, real: str) -> Texts:
    """What the configuration needs: to train on `text` (a path, or `self`), and to measure and test on `real` too.

    Raises:
        ValueError, DataError: a text that cannot be read or is too short, a tokenizer of another model.
    """
    length, n_heldout, seed = config.train.seq_len + 1, config.heldout, config.seed
    n_train = config.train.steps * config.train.batch_size
    n_measured = config.start.documents if isinstance(config.start, Surgery) else 0
    n_trained = min(n_measured // 2, n_train)
    of_real = _known(cut(real, tokenizer, length, seed=seed), model.config.vocab_size)
    heldout = {"real": firsts(of_real, n_heldout, real, length)}
    measured_NT = firsts(of_real, n_measured - n_trained, real, length) if n_measured else None

    def texts(train_NT: Tensor) -> Texts:
        return Texts(train_NT, heldout, None if measured_NT is None else in_turn(measured_NT, train_NT[:n_trained]))

    if text == SELF:
        firsts_NT = beginnings(tokenizer, heldout["real"])
        wrote_NT = written(model, firsts_NT, n_heldout + n_train, length, seed=seed)
        heldout = {SELF: wrote_NT[:n_heldout]} | heldout
        return texts(wrote_NT[n_heldout:])
    # The same text twice is one text: what was held out, or measured on, is not trained on.
    of_text = of_real
    if text != real:
        of_text = _known(cut(text, tokenizer, length, seed=seed), model.config.vocab_size)
        heldout = {"text": firsts(of_text, n_heldout, text, length)} | heldout
    train = list(islice(chain.from_iterable(of_text), n_train))
    if n_train and not train:
        raise DataError(f"{label((text,))}: has no sequence of {length} tokens left to train on; name a longer text")
    return texts(torch.tensor(train, dtype=torch.int64).reshape(-1, length))


def check_paths(*paths: str) -> None:
    """Whether text lies at each path that is not `self`; nothing is read.

    Raises:
        DataError: nothing lies there, or token shards do.
    """
    for path in paths:
        if path != SELF:
            _files(path)


def in_turn(one_NT: Tensor, other_NT: Tensor) -> Tensor:
    """The first of each, the second of each, …, then what is left of the longer, [N + N', T]."""
    n = min(len(one_NT), len(other_NT))
    return torch.cat([torch.stack([one_NT[:n], other_NT[:n]], dim=1).flatten(0, 1), one_NT[n:], other_NT[n:]])


def cut(path: str, tokenizer: Any, length: int, *, seed: int) -> Iterator[list[list[int]]]:
    """Of each document in an order of the seed its sequences of `length` ids, cut from its start and each begun as the
    tokenizer begins a text; what is left over is dropped. A document is a file, or a line of a .jsonl; of one that is longer
    every 16 sequences are one.

    Raises:
        DataError: a path that cannot be read.
    """
    files = _files(path)
    before = list(tokenizer("").input_ids)
    body = length - len(before)
    for index in np.random.default_rng(seed).permutation(len(files)):
        try:
            for document in documents(files[index], "text"):
                ids = tokenizer(document.decode(), add_special_tokens=False, verbose=False).input_ids
                found = [before + ids[start : start + body] for start in range(0, len(ids) - body + 1, body)]
                for start in range(0, len(found), _MOST):
                    yield found[start : start + _MOST]
        except NotText:
            if files[index].named:
                raise


def _files(path: str) -> list[File]:
    files = find((path,))
    if any(file.kind == "shard" for file in files):
        raise DataError(
            f"{path!r} is a shard of tokens, whose tokenizer need not be the model's; name a text, a .jsonl, a .parquet, an "
            ".arrow, or a folder of them"
        )
    return files


def _known(found: Iterator[list[list[int]]], n_ids: int) -> Iterator[list[list[int]]]:
    """The documents, of ids below n_ids."""
    for document in found:
        largest = max(map(max, document))
        if largest >= n_ids:
            raise ValueError(
                f"the tokenizer in the model's folder gives id {largest}, and the model knows {n_ids} ids; take the tokenizer that "
                "it was trained with"
            )
        yield document


def firsts(found: Iterator[list[list[int]]], n: int, path: str, length: int) -> Tensor:
    """The first sequences of the next n documents that `cut` gives of a path, [n, length].

    Raises:
        DataError: fewer documents are left.
    """
    rows = [document[0] for document in islice(found, n)]
    if len(rows) < n:
        raise DataError(
            f"{label((path,))}: {len(rows)} documents of {length} tokens were left where {n} were wanted; name a longer text, or "
            "lower train.seq_len, heldout or start.documents"
        )
    return torch.tensor(rows)


def beginnings(tokenizer: Any, real_NT: Tensor) -> Tensor:
    """How sequences that the model writes begin, [M, P]: as its tokenizer begins a text, or, where it puts nothing before
    one, with the first tokens of real ones."""
    before = list(tokenizer("").input_ids)
    return torch.tensor([before]) if before else real_NT[:, :1]


def written(model: Model, firsts_MT: Tensor, n: int, length: int, *, seed: int) -> Tensor:
    """n sequences of `length` ids that the model writes at temperature 1, [n, length] on the host; the i-th begins with
    the i-th of `firsts_MT`, these in turn, and draws from a stream of its own: it is the same in any batch, up to rounding."""
    device = model.head.weight.device
    at_once, rows = _at_once(model, length), []
    for start in range(0, n, at_once):
        numbers = range(start, min(start + at_once, n))
        first_BT = firsts_MT[torch.tensor(numbers) % len(firsts_MT)].to(device)
        seeds = tuple((seed << 32) + number for number in numbers)
        rows.append(generate(model, first_BT, length - first_BT.shape[1], temperature=1.0, seed=seeds).cpu())
    return torch.cat(rows) if rows else torch.empty(0, length, dtype=torch.int64)


def _at_once(model: Model, length: int) -> int:
    """Rows that are written together."""
    c, weight = model.config, model.head.weight
    wide = (model.compute_dtype or weight.dtype).itemsize
    of_row = 2 * c.n_layers * length * c.n_kv_heads * c.head_dim * wide + 8 * _COPIES * c.vocab_size
    free = available(str(weight.device)) or _UNKNOWN
    return max(1, min(4096, int(_SHARE * free / of_row)))
