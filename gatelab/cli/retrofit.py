"""gatelab retrofit: a gate into a trained model."""

from pathlib import Path
from typing import Literal

from .base import Flag, Json, print_json, tell

# Paths of the configuration that options say.
_OPTIONS = ("gate", "start", "start.kind")


def retrofit(
    model: str,
    *assignments: str,
    gate: str,
    out: Path,
    start: Literal["identity", "surgery", "random"] = "identity",
    text: str = "self",
    real: str = "stdlib",
    device: Literal["cpu", "cuda", "auto"] = "auto",
    allow_pickle: Flag = False,
    json_: Json = False,
) -> int:
    """Put a gate into a trained model, train both on beside an ungated control, and measure sinks and losses before and after.

    Parameters
    ----------
    model:
        What `gatelab convert` reads: a folder in Hugging Face's layout, a .gguf file, a model of the hub as org/name, a
        finished run's folder, a folder of ours.
    assignments:
        key=value words: train.tokens=4000000 optim.lr=1e-4 gate_optim.lr=1e-3 distil=0.5 start.drain=0.3
    gate:
        At the attention output: sdpa-headwise, sdpa-elementwise-two_sigmoid, … With start=surgery sdpa-headwise-bias.
    out:
        A new folder: the gated model, which `gatelab convert OUT DST --to hf` reads, with rows.jsonl and retrofit.json.
    start:
        identity: the gate changes nothing. surgery: the first key is hidden from the heads that use it as a sink, and a gate
        fitted to what it did takes its place. random: as the gate's spec draws it.
    text:
        What is trained on: a file, a folder, or self, which is what the model writes.
    real:
        A file or folder on which first keys are measured, and losses too; the source of Python's standard library unless
        stated.
    device:
        A GPU where there is one, unless stated.
    allow_pickle:
        Open pickled weights, as weights only.
    json_:
        One JSON record a measurement.
    """
    from .. import lab
    from ..config import override, parse_assignments, validate
    from ..config.base import ConfigError
    from ..config.retrofit import Retrofit

    given = parse_assignments(assignments)
    mistakes = [f"{path}: a retrofit takes one value" for path, values in given.items() if len(values) > 1]
    mistakes += [f"{path} is stated as --{path.partition('.')[0]}; leave it out" for path in given if path in _OPTIONS]
    if start != "surgery":
        belong = [path for path in given if path.startswith("start.") and path not in _OPTIONS]
        mistakes += [
            f"{path} belongs to --start surgery, and this is {start}; leave one of them out" for path in belong
        ]
    if mistakes:
        raise ConfigError(mistakes)
    config = validate(Retrofit, {"gate": gate, "start": start})
    config = override(config, {path: values[0] for path, values in given.items()})
    made = lab.retrofit(model, config, out, text=text, real=real, device=device, allow_pickle=allow_pickle, tell=tell)
    if json_:
        print_json([row.as_dict() for row in made.rows])
        return 0
    from ..retrofit.folder import facts, records
    from ..terminal import print_records

    print_records(records(made), "\n".join([f"{out}: {made.model.config.gate[0].slug}", *facts(made)]))
    return 0
