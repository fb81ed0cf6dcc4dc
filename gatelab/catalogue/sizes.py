"""The ladder of model sizes: weights, operations and memory of each, and what a change of one adds."""

from typing import Any

from ..config import Change, ConfigError, ModelConfig, one_of, override
from ..models.sizes import count_parameters

Record = dict[str, Any]


def size_records(name: str | None = None, change: Change | None = None) -> list[Record]:
    """One record a size of the ladder; or of one size alone, and when it is changed of the changed one, and of that with
    the d_ff that brings its weights nearest to the size's, where there is one and the change says nothing of widths.

    Operations are of training, a source token of max_seq_len of them; activations and logits what a sequence of these
    keeps in bfloat16, estimates (`train.cost.training_bytes`). Paths of a change are those of a model, `model.` or not.

    Raises:
        ConfigError: no such size, with the nearest; every mistake of the change.
    """
    from ..models.ladder import SIZES
    from ..models.sizes import match_parameters

    if name is None:
        return [_size_record(size, SIZES[size].model) for size in SIZES]
    if name not in SIZES:
        raise ConfigError([f"no size {name!r}: {one_of(name, SIZES)}"])
    base = SIZES[name].model
    records = [_size_record(name, base)]
    if not change:
        return records
    change = {path.removeprefix("model."): value for path, value in change.items()}
    # A mixture's d_ff is resolved to the width of an expert, which the change may be about.
    given = base.model_copy(update={"d_ff": None}) if base.moe is not None or "moe" in change else base
    changed = override(given, change).resolved(base.vocab_size, base.max_seq_len)
    words = (f"{path}={'null' if value is None else value}" for path, value in change.items())
    word = " ".join([name, *words])
    records.append(_size_record(word, changed, base))
    about = {path.partition(".")[0] for path in change}
    if records[-1]["over"] and not about & {"d_ff", "moe", "d_model", "n_layers", "n_encoder_layers"}:
        try:
            match = match_parameters(base, changed)
        except ValueError:  # no width is narrow enough
            return records
        records.append(_size_record(f"{word}, d_ff matched", match.config, base))
    return records


def _size_record(word: str, model: ModelConfig, base: ModelConfig | None = None) -> Record:
    from ..models.ladder import PRINTED, SIZES
    from ..models.sizes import count_active
    from ..train.cost import model_flops_per_token, training_bytes

    n, size, printed = count_parameters(model), SIZES.get(word), PRINTED.get(word)
    memory = training_bytes(model, 1, model.max_seq_len)
    return {
        "name": word,
        "arch": model.arch,
        "n_layers": model.n_layers,
        "n_encoder_layers": model.depth(model.architecture.stacks[0]) if len(model.architecture.stacks) > 1 else None,
        "d_model": model.d_model,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "d_ff": model.d_ff,
        "vocab_size": model.vocab_size,
        "seq_len": model.max_seq_len,
        "n_parameters": n,
        "n_active": count_active(model),
        "over": None if base is None else n - count_parameters(base),
        "flops_per_token": model_flops_per_token(model, model.max_seq_len),
        "state_bytes": memory.states,
        "activation_bytes": memory.activations,
        "recomputed_bytes": memory.recomputed,
        "logit_bytes": memory.logits,
        "what": None if size is None else size.what,
        "source": None if size is None else size.source,
        "printed": None if printed is None else {"n_parameters": printed.total, "n_active": printed.active},
        "differences": {} if printed is None else printed.differences | printed.active_differences,
    }
