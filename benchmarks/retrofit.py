"""A gate put into a trained model, by several starts, and trained on beside one ungated control on text that the model wrote.

    python benchmarks/retrofit.py MODEL --out FILE.jsonl [--seconds 400] [--stand-ins] [--real FOLDER] [--separator TOKEN]

MODEL: a folder in Hugging Face's layout, a .gguf file, a model of the hub. The model writes --rows sequences, of which
--heldout are held out and the others trained on by every arm in one order; --real is a second held-out text. Arms come in the
order in which they tell most, of as many steps each as the pace that is measured lets --seconds hold; one that fails, or that
time does not suffice for, is recorded and the next begins. Records go to --out as they come, a table to the terminal at the end.
"""

import argparse
import copy
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gatelab.config import GateSpec, OptimConfig, TrainConfig
from gatelab.config.retrofit import Retrofit
from gatelab.evals.changes import interval
from gatelab.models.interop import import_model, load_model
from gatelab.models.model import Model
from gatelab.retrofit import (
    FirstKeys,
    Measured,
    Texts,
    as_identity,
    beginnings,
    cut,
    first_keys,
    firsts,
    in_turn,
    measure,
    operated,
    tokenizer_of,
    trained,
    tune,
    variants,
    written,
)
from gatelab.train.group import pick_device, pick_dtype

FITTED = "sdpa-headwise-bias"
# Of all seconds: the most that writing may take, and what is kept for the end.
WRITING, RESERVE = 0.3, 0.04
# Optimiser steps before the pace is measured, and those that it is measured over.
WARM_UP, TIMED = 3, 4
# Nats a token by which what is written may be another model's; bfloat16's rounding alone makes thousandths.
MOST_DIVERGENCE = 0.02
# Of rows by layer and head, those that are recorded; of rows by layer the largest activations besides.
BY_HEAD = {
    "first_token_mass",
    "sink_importance",
    "sink_position",
    "value_drain",
    "gate_mean",
    "gate_below",
    "gate_openness",
}
COLUMNS = {
    "mass": ("first_token_mass", None), "rate.3": ("sink_rate", 0.3), "any.3": ("sink_rate_any", 0.3),
    "ratio": ("massive_ratio", None), "gate": ("gate_mean", None), "<0.1": ("gate_below", None),
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """What is put into the model: nothing, a gate that changes nothing, or surgery on the sinks of a name in `sinks`."""

    name: str
    gate: str = FITTED
    sinks: str | None = None
    is_identity: bool = False
    distil: float = 0.0


ARMS = (
    Arm("control"),
    Arm("surgery, drained sinks", sinks="drained"),
    Arm("surgery, all sinks", sinks="all"),
    Arm("identity, headwise", "sdpa-headwise", is_identity=True),
    Arm("identity, elementwise", "sdpa-elementwise", is_identity=True),
    Arm("surgery, all sinks, distilled", sinks="all", distil=1.0),
)


@dataclass
class Log:
    """The file of records, the clock, and what was measured so far by the arm's name."""

    out: Path
    seconds: float
    began: float = field(default_factory=time.perf_counter)
    measured: dict[str, Measured] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.perf_counter() - self.began)

    def put(self, kind: str, **record: Any) -> None:
        """Append a record."""
        at_s = round(time.perf_counter() - self.began, 2)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "at_s": at_s, **record}, ensure_ascii=False) + "\n")

    def say(self, words: str) -> None:
        """A line on the terminal."""
        print(f"[{time.perf_counter() - self.began:6.1f}] {words}", flush=True)

    def attempt(self, name: str, work: Callable[[], Any], *, needs_s: float = 0.0) -> Any:
        """What the work gives, or None where it fails or takes more seconds than are left: the rest goes on, and this is
        recorded."""
        if self.left < needs_s:
            self.say(f"{name}: left out; {self.left:.0f} s are left, and it takes {needs_s:.0f}")
            self.put("left out", name=name, needs_s=needs_s, left_s=self.left)
            return None
        try:
            return work()
        except Exception as error:
            self.say(f"{name}: FAILED: {type(error).__name__}: {error}"[:400])
            self.put("failed", name=name, error=traceback.format_exc()[-3000:])
            return None
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def keep(self, measured: Measured, **about: Any) -> None:
        """Record an arm, and its losses beside those of the original and of the control."""
        self.measured[measured.arm] = measured
        rows = [
            r.as_dict()
            for r in measured.rows
            if r.domain is not None and (r.layer is None or r.metric in BY_HEAD | {"massive_max"})
        ]
        self.put("arm", name=measured.arm, losses=measured.losses, rows=rows, **about)
        said = []
        for text in measured.losses:
            words = f"{text} {measured.loss(text):.4f}"
            for reference in ("original", "control"):
                found = beside(measured, self.measured.get(reference), text)
                if found is not None:
                    mean, low, high = found
                    words += f", {mean:+.4f} ({low:+.4f} {high:+.4f}) beside {reference}"
                    self.put("change", name=measured.arm, beside=reference, text=text, mean=mean, low=low, high=high)
            said.append(words)
        self.say(f"{measured.arm}: {'; '.join(said)}")


def beside(measured: Measured, reference: Measured | None, text: str) -> tuple[float, float, float] | None:
    """The mean difference of paired losses with its 95% interval; None without another arm to be compared with."""
    if reference is None or reference.arm == measured.arm:
        return None
    paired = [a - b for a, b in zip(measured.losses[text], reference.losses[text], strict=True)]
    return (fmean(paired), *interval(paired))


def opened(given: argparse.Namespace, device: torch.device) -> tuple[Model, Any]:
    """The model, and its tokenizer."""
    with tempfile.TemporaryDirectory() as place:
        import_model(given.model, Path(place) / "model")
        model = load_model(Path(place) / "model").to(device)
        tokenizer = tokenizer_of(given.model, Path(place) / "model")
    model.compute_dtype = pick_dtype("auto", device)
    return model, tokenizer


@torch.no_grad()
def decoding_divergence(model: Model, ids_BT: Tensor) -> float:
    """Nats a token by which the distributions of decoding, token by token, diverge from those of the whole pass."""
    whole_BTV, cache = model(ids_BT).float().log_softmax(-1), model.new_cache(*ids_BT.shape)
    parts = [model(part_BT, cache=cache).float().log_softmax(-1) for part_BT in ids_BT.split(1, dim=1)]
    return F.kl_div(torch.cat(parts, dim=1), whole_BTV, reduction="none", log_target=True).sum(-1).mean().item()


def separator_id(tokenizer: Any, token: str, begins_MT: Tensor) -> int:
    """The id of the token; exits where it is none, or where the tokenizer begins texts itself."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise SystemExit(f"--separator {token}: is no token of this model; name one of its vocabulary, or leave it out")
    if len(begins_MT) == 1:
        raise SystemExit(f"--separator {token}: this tokenizer begins texts itself; leave it out")
    return found


def texts_of(model: Model, tokenizer: Any, given: argparse.Namespace, log: Log) -> Texts:
    """What the model writes, and the real text; exits where what it writes is not drawn from its own distribution."""
    length = given.seq_len + 1
    documents = cut(given.real, tokenizer, length, seed=given.seed)
    real_NT, measured_NT = (firsts(documents, n, given.real, length) for n in (given.heldout_real, given.documents))
    begins_MT = beginnings(tokenizer, measured_NT)
    if given.separator:
        begins_MT[::2] = separator_id(tokenizer, given.separator, begins_MT)
    # Rounded once: with `compute_dtype` every weight would be at every token.
    writer = copy.deepcopy(model).to(model.compute_dtype)
    apart = decoding_divergence(writer, measured_NT[:4, :64].to(model.head.weight.device))
    if not apart < MOST_DIVERGENCE:
        raise SystemExit(f"decoding diverges by {apart:.3g} nats a token from the whole pass; no text is written so")
    began, parts, n = time.perf_counter(), [], 0
    while n < given.rows and (n == 0 or time.perf_counter() - began < WRITING * given.seconds):
        parts.append(
            written(writer, begins_MT.roll(-n, dims=0), min(given.chunk, given.rows - n), length, seed=given.seed + n)
        )
        n += len(parts[-1])
        log.say(f"{n} sequences are written")
    wrote_NT, seconds = torch.cat(parts), time.perf_counter() - began
    samples = [tokenizer.decode(row_T[:160].tolist()) for row_T in wrote_NT[:6]]
    log.put("written", rows=n, seconds=seconds, decoding_divergence=apart, samples=samples)
    log.say(
        f"{n * given.seq_len / seconds:,.0f} tokens/s; decoding diverges by {apart:.3g} nats a token; {samples[0][:160]!r}"
    )
    own_NT, train_NT = wrote_NT[: given.heldout], wrote_NT[given.heldout :]
    return Texts(train_NT, {"self": own_NT, "real": real_NT}, in_turn(measured_NT, train_NT[: len(measured_NT)]))


def sinks_of(model: Model, texts: Texts, given: argparse.Namespace, log: Log) -> tuple[FirstKeys, dict[str, Any]]:
    """The first keys, and the heads by what is called a sink: above --mass with a drained value, above --low-mass."""
    keys = first_keys(model, texts.measured_NT)
    heads = {
        "drained": keys.heads(mass=given.mass, drain=given.drain),
        "all": keys.heads(mass=given.low_mass, drain=float("inf")),
    }
    log.put("first keys", rows=[row.as_dict() for row in keys.rows("original")], heads=heads)
    log.say("sinks: " + ", ".join(f"{name} {sum(map(len, of_layers))}" for name, of_layers in heads.items()))
    return keys, heads


def made(arm: Arm, model: Model, sinks: tuple[FirstKeys, dict[str, Any]], seed: int) -> Model:
    """The arm's model before training."""
    gate = GateSpec.parse(arm.gate)
    if arm.is_identity:
        return as_identity(model, gate, seed=seed)
    if arm.sinks is None:
        return copy.deepcopy(model)
    keys, heads = sinks
    return operated(model, gate, keys, heads[arm.sinks], value="mean", seed=seed)


def configured(arm: Arm, steps: int, given: argparse.Namespace) -> Retrofit:
    """What `trained` is told of an arm."""
    return Retrofit(
        gate=GateSpec.parse(arm.gate),
        train=TrainConfig(tokens=steps * given.batch * given.seq_len, batch_size=given.batch, seq_len=given.seq_len),
        optim=OptimConfig(lr=given.lr, weight_decay=0.0),
        gate_optim=OptimConfig(lr=given.gate_lr, weight_decay=0.0),
        distil=arm.distil,
        seed=given.seed,
    )


def step_seconds(arm: Arm, model: Model, sinks: Any, texts: Texts, given: argparse.Namespace) -> float:
    """Of one optimiser step of the arm: hidden keys, gates and teachers have paces of their own."""
    trial = made(arm, model, sinks, given.seed)
    steps = tune(trial, texts.train_NT, configured(arm, WARM_UP + TIMED, given), teacher=model)
    for _ in range(WARM_UP):
        next(steps).loss.item()
    began = time.perf_counter()
    for _ in range(TIMED):
        last = next(steps)
    last.loss.item()
    return (time.perf_counter() - began) / TIMED


def run(arm: Arm, model: Model, sinks: Any, texts: Texts, steps: int, given: argparse.Namespace, log: Log) -> None:
    """Start, training, measurement and records of an arm."""
    began, own = time.perf_counter(), made(arm, model, sinks, given.seed)
    if own.config.gate:
        log.keep(measure(own, f"{arm.name}, start", texts.heldout, 0, probed=False))
    rows = trained(own, arm.name, configured(arm, steps, given), texts, teacher=model)
    log.put("training", name=arm.name, rows=[row.as_dict() for row in rows])
    log.keep(measure(own, arm.name, texts.heldout, steps), seconds=time.perf_counter() - began, steps=steps)


def stand_ins(model: Model, sinks: tuple[FirstKeys, dict[str, Any]], texts: Texts, log: Log) -> None:
    """Losses right after surgery on the drained sinks, of whatever may stand in the first key's place."""
    for words, other in variants(model, GateSpec.parse(FITTED), sinks[0], sinks[1]["drained"]):
        log.keep(measure(other, f"drained sinks, {words}", texts.heldout, 0, probed=False))


def table(measured: dict[str, Measured]) -> str:
    """A line an arm and text."""
    lines = []
    for text in next(iter(measured.values())).losses if measured else ():
        head = f"{text:40} {'loss':>8} {'-original':>10} {'-control':>10} {'max':>8}"
        lines += ["", head + "".join(f" {column:>8}" for column in COLUMNS)]
        for arm in measured.values():
            changes = [beside(arm, measured.get(name), text) for name in ("original", "control")]
            is_probed = any(row.metric == "massive_max" for row in arm.rows)
            cells = [f"{'' if c is None else format(c[0], '+.4f'):>10}" for c in changes]
            cells.append(f"{format(arm.largest(text), '.4g') if is_probed else '':>8}")
            values = [arm.value(text, metric, threshold=threshold) for metric, threshold in COLUMNS.values()]
            cells += [f"{'' if value is None else format(value, '.4g'):>8}" for value in values]
            lines.append(f"{arm.arm:40} {arm.loss(text):8.4f} {' '.join(cells)}")
    return "\n".join(lines)


def carry_out(given: argparse.Namespace, log: Log) -> None:
    """Everything in order: text, the original, sinks, stand-ins if asked for, the pace, arms."""
    device = pick_device(given.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread"
    log.put(
        "setting",
        machine=machine,
        torch=torch.__version__,
        **{k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()},
    )
    model, tokenizer = opened(given, device)
    log.say(f"{sum(p.numel() for p in model.parameters()):,} weights on {machine}, torch {torch.__version__}")
    texts = texts_of(model, tokenizer, given, log)
    began = time.perf_counter()
    log.keep(measure(model, "original", texts.heldout, 0))
    measure_s = time.perf_counter() - began
    sinks = log.attempt("first keys", partial(sinks_of, model, texts, given, log))
    found = {name for name, of_layers in (sinks[1] if sinks else {}).items() if any(of_layers)}
    arms = [arm for arm in ARMS if arm.sinks is None or arm.sinks in found]
    if given.stand_ins and "drained" in found:
        log.attempt("stand-ins", partial(stand_ins, model, sinks, texts, log))
    timed = {arm: log.attempt(arm.name, partial(step_seconds, arm, model, sinks, texts, given)) for arm in arms}
    step_s = {arm: seconds for arm, seconds in timed.items() if seconds is not None}
    # An arm is measured at its end with the probes, and before it by its losses.
    for_steps = log.left - RESERVE * given.seconds - 2 * measure_s * len(step_s)
    steps = max(2, min(given.most_steps, int(for_steps / sum(step_s.values()))))
    tokens = given.batch * given.seq_len
    paces = {arm.name: seconds for arm, seconds in step_s.items()}
    log.put("pace", step_s=paces, measure_s=measure_s, steps=steps, tokens=steps * tokens)
    log.say(
        f"steps take {min(paces.values()):.3g} to {max(paces.values()):.3g} s; {steps} an arm, {steps * tokens:,} tokens"
    )
    for arm, seconds in step_s.items():
        work = partial(run, arm, model, sinks, texts, steps, given, log)
        log.attempt(arm.name, work, needs_s=steps * seconds + measure_s)


def main() -> None:
    """Parse, carry out, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=400.0, help="of everything, loading included")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=4384, help="sequences that the model writes")
    parser.add_argument("--chunk", type=int, default=2192, help="of them at most at once")
    parser.add_argument("--heldout", type=int, default=576, help="of them held out")
    parser.add_argument("--real", default="stdlib", help="a file or folder; the source of Python's standard library")
    parser.add_argument("--heldout-real", type=int, default=128)
    parser.add_argument("--documents", type=int, default=128, help="of each text, on which first keys are measured")
    parser.add_argument(
        "--separator", help="a token that every other written row begins with, where the tokenizer begins none"
    )
    parser.add_argument("--stand-ins", action="store_true", help="losses of what may stand in the first key's place")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--most-steps", type=int, default=640)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--gate-lr", type=float, default=1e-2)
    parser.add_argument("--mass", type=float, default=0.3, help="p₀ above which a head with a drained value has a sink")
    parser.add_argument("--drain", type=float, default=0.3, help="of the median value, below which v₀ is drained")
    parser.add_argument("--low-mass", type=float, default=0.1, help="p₀ above which any head has a sink")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.rows < given.heldout + given.batch:
        parser.error(f"--rows {given.rows}: are fewer than --heldout {given.heldout} and a batch; write more")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    log = Log(given.out, given.seconds)
    try:
        carry_out(given, log)
    finally:
        print(table(log.measured))


if __name__ == "__main__":
    main()
