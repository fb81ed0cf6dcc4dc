"""The main job: a model that is stored, a gate put into it, a folder. Whatever can be refused is refused before."""

from pathlib import Path

import torch

from ..config.retrofit import Identity, Retrofit, Surgery
from ..models.interop import Stored
from ..models.interop.destination import destination
from ..models.interop.folder import load, parameter_shapes
from ..models.memory import available
from ..train.group import pick_device, pick_dtype
from .arms import Arms, Tell, make_arms
from .folder import write
from .starts import check_sinks, check_ungated, gated_config, identity
from .texts import SELF, check_paths, read_texts, tokenizer_of

# Bytes a weight that is trained (itself, gradient, two moments), and of the ungated model beside it.
_TRAINED, _KEPT = 16, 4


def retrofit(
    found: Stored,
    config: Retrofit,
    out: Path,
    *,
    text: str = "self",
    real: str = "stdlib",
    device: str = "auto",
    tell: Tell = lambda _: None,
) -> Arms:
    """A model of ours with a gate, and all that was measured of it, in a new folder (`folder.write`).

    Args:
        text: a file or folder to train on, or `self`: what the model writes.
        real: a file or folder on which first keys are measured, and losses too; `stdlib` is Python's standard library.
        device: `cpu`, `cuda` or `auto`.
        tell: called with what is being done.

    Raises:
        ValueError, DataError: a model that is gated already or cannot be gated so, a gate that cannot start so, a text that
            cannot be read or is too short, too little memory, an `out` that is there. `out` is then not made.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device here; take --device cpu or auto")
    place = pick_device(device)
    _check(found, config, place, text)
    check_paths(text, real)
    tokenizer = tokenizer_of(found.title, found.companions)
    with destination(out, found.companions) as draft:
        model = load(found).to(place)
        model.compute_dtype = pick_dtype(config.train.precision, place)
        tell(f"{sum(p.numel() for p in model.parameters()):,} weights on {place}; reading {text} and {real}")
        texts = read_texts(model, tokenizer, config, text=text, real=real)
        made = make_arms(model, config, texts, tell=tell)
        write(draft, found, config, made, {"text": text, "real": real})
    return made


def _check(found: Stored, config: Retrofit, place: torch.device, text: str) -> None:
    c, t = found.config, config.train
    check_ungated(found.title, c)
    gated_config(c, config.gate)
    if isinstance(config.start, Identity):
        identity(config.gate)
    elif isinstance(config.start, Surgery):
        check_sinks(found.title, c)
    # What is written has the last target too.
    longest = c.max_seq_len - (text == SELF)
    if t.seq_len > longest:
        raise ValueError(
            f"train.seq_len={t.seq_len}: {found.title} has positions for {c.max_seq_len} tokens; take at most {longest} of "
            f"the text {text}"
        )
    n_weights = sum(torch.Size(shape).numel() for shape in parameter_shapes(c).values())
    # Of activations the residual stream after each block at least; of the text its ids.
    activations, ids = 4 * t.tokens_per_step * c.d_model * c.n_layers, 8 * t.tokens
    trained = n_weights * _TRAINED + activations + ids if t.steps else 0
    needed, free = trained + 2 * n_weights * _KEPT, available(str(place))
    if free is not None and needed > free:
        raise ValueError(
            f"{found.title}: a retrofit takes {needed / 2**30:.1f} GiB at least on {place}, and {free / 2**30:.1f} are free; "
            "lower train.batch_size or train.seq_len, or take a smaller model"
        )
