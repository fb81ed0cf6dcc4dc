"""The registered hypotheses. A new one is one entry of the table: its claim, where it was put forward, its tests, and what it
explains. What may be true where another is false is an entry of its own, since a card is refuted where any test is."""

from collections.abc import Callable, Mapping
from typing import Any

from ..config import Tasks, validate
from ..data import check_lengths, open_source
from ..tasks import TASKS
from .cause_tests import arm_where, edit, excess, where_sinks
from .causes import LOSS, MASS, Hypothesis
from .dependence_tests import arms_by_start, at, cells_by
from .depth_tests import in_layers, thirds_edited, thirds_trained
from .gain_tests import at_own_rates, keeps_half
from .layer_tests import EACH, each_layer, layers_edited
from .mediation import SAYS, gate_moved, sink_moved
from .onsets import comes_first
from .other_ways import BEGUN_OPEN, FIRST_HALF, LAST_HALF, SMALL, STATIC


def _around(key: str) -> Callable[[Mapping[str, Any]], str]:
    """The word for a range on either side of what a cell has: 4 layers give [2,4,8], one layer [1,2]."""

    def word(base: Mapping[str, Any]) -> str:
        value = at(base, key)
        half = (value // 2 or 1) if isinstance(value, int) else value / 2
        return f"{key}=[{','.join(f'{v:.15g}' for v in sorted({half, value, value * 2}))}]"

    return word


def _other_data(base: Mapping[str, Any]) -> str:
    """The word for other data of the kind that a cell has: of tasks its own and a second that takes its knobs and its length; what
    is to be filled in stands in capitals."""
    kind = at(base, "data.kind")
    if kind == "tasks":
        own = list(at(base, "data.names"))
        named = own[0] if len(own) == 1 else f"[{','.join(own)}]"
        return f"data.names=[{named},{_second_task(base) or 'ANOTHER'}]"
    return "data.process_seed=[0,1]" if kind == "bigram-backcopy" else "data.paths=OTHER_TEXTS"


def _second_task(base: Mapping[str, Any]) -> str:
    """The first task that the cell has not and that is made with its knobs at its length; empty where none is."""
    for name in (name for name in TASKS if name not in at(base, "data.names")):
        try:
            check_lengths(open_source(validate(Tasks, {**base["data"], "names": (name,)})), at(base, "train.seq_len"))
        except ValueError:
            continue
        return name
    return ""


def _softmax(kind: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda m: m.get("gate") == "none" and m.get("softmax", {}).get("kind") == kind


def _is_static(model: Mapping[str, Any]) -> bool:
    return "static" in str(model.get("gate")).split("-")


def _is_open(model: Mapping[str, Any]) -> bool:
    return "ns_sigmoid" in str(model.get("gate")).split("-")


_SINK_LOGIT = "Arm('sink-logit', {'model.softmax': 'sink-logit'}, control=True)"
_KEY_BIAS = "Arm('key-bias', {'model.softmax': 'key-bias'}, control=True)"
_STATIC = "Arm('static', {'model.gate': 'paper/g1-input-independent'}, control=True)"
_OPEN = "Arm('ns-sigmoid', {'model.gate': 'paper/g1-ns-sigmoid'})"
_EITHER = {
    ("supported", "refuted"): "either half of the layers alone has at least half of it",
    ("refuted", "supported"): "neither half of the layers alone has half of it",
}


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis(
        "no-op",
        "a sink is how a head does nothing: its value matters little, and an off-switch takes its place",
        "arXiv 2306.12929, 2410.10781",
        (
            where_sinks(edit("zero-value@first", costs="nothing")),
            where_sinks(
                arm_where(
                    "a learned sink logit",
                    _softmax("sink-logit"),
                    _SINK_LOGIT,
                    MASS,
                    "lowers the first-token mass without a gate",
                    sign=-1,
                    gate=False,
                )
            ),
        ),
    ),
    Hypothesis(
        "key-bias",
        "a sink is a bias of keys: a learned key without a value draws it away",
        "arXiv 2410.10781",
        (
            where_sinks(
                arm_where(
                    "a learned key",
                    _softmax("key-bias"),
                    _KEY_BIAS,
                    MASS,
                    "lowers the first-token mass without a gate",
                    sign=-1,
                    gate=False,
                )
            ),
        ),
    ),
    Hypothesis(
        "first-token",
        "the first token is what the sink needs, not any token that is missing",
        "arXiv 2309.17453, 2410.10781",
        (
            where_sinks(edit("drop-first")),
            where_sinks(edit("mask-key@first")),
        ),
    ),
    Hypothesis(
        "rescaling",
        "massive activations work through the norms' divisors",
        "arXiv 2601.22966",
        (excess("clip-massive=100x", "clip-massive-frozen=100x"),),
    ),
    Hypothesis(
        "sparsity",
        "the gate works by scores that depend on the query and may shut",
        "arXiv 2505.06708",
        (
            edit("gate-shuffle", of_gate=True),
            edit("gate-mean", of_gate=True),
            arm_where(
                "a gate that is the same for every token",
                _is_static,
                _STATIC,
                LOSS,
                "has a higher loss than the gate",
                sign=1,
                gate=True,
            ),
            arm_where(
                "a gate that never shuts", _is_open, _OPEN, LOSS, "has a higher loss than the gate", sign=1, gate=True
            ),
        ),
        of="loss",
    ),
    Hypothesis(
        "shut-scores",
        "the gate works by scores below one: held open it is no gate",
        "arXiv 2505.06708",
        (edit("gate=open", of_gate=True),),
        of="loss",
    ),
    Hypothesis(
        "score-scale",
        "the gate works at the scale of its logits: at half and at twice that it works less",
        "ours",
        (edit("gate-scale=0.5", of_gate=True), edit("gate-scale=2", of_gate=True)),
        of="loss",
    ),
    Hypothesis(
        "layer-by-layer",
        "the gates of some layer matter more than those of another",
        "ours",
        (layers_edited("gate=open"),),
        of="loss",
    ),
    Hypothesis(
        "depth",
        "the gate's effect depends on depth, as over-mixing does",
        "arXiv 2504.02732",
        (
            cells_by("model.n_layers", _around("model.n_layers"), "the number of layers"),
            thirds_trained(),
            thirds_edited("gate-mean"),
        ),
        of="reading",
    ),
    Hypothesis(
        "norm-placement",
        "pre-norm makes what the gate acts on",
        "arXiv 2603.05498",
        (
            cells_by(
                "model.norm_position",
                lambda _: "model.norm_position=[pre,post,sandwich]",
                "where the norms are",
            ),
        ),
        of="reading",
    ),
    Hypothesis(
        "training-length",
        "the gate's effect depends on how long models are trained",
        "ours",
        (cells_by("train.tokens", _around("train.tokens"), "the tokens"),),
        of="reading",
    ),
    Hypothesis(
        "learning-rate",
        "the gate's effect depends on the learning rate",
        "ours",
        (cells_by("optim.lr", _around("optim.lr"), "the learning rate"),),
        of="reading",
    ),
    Hypothesis(
        "initial-value",
        "the gate's effect depends on the value at which the gate starts",
        "ours",
        (arms_by_start("the value at which the gate starts"),),
        of="reading",
    ),
    Hypothesis(
        "sink-before-drain",
        "in training the sink comes before the value drain",
        "ours",
        (comes_first("sink", "drain"),),
    ),
    Hypothesis(
        "sink-before-massive",
        "in training the sink comes before the massive activation",
        "ours",
        (comes_first("sink", "massive"),),
    ),
    Hypothesis(
        "gate-before-sink",
        "in training the gate shuts before a sink has formed",
        "ours",
        (comes_first("shut", "sink", of_gate=True),),
    ),
    Hypothesis(
        "mediation",
        "the gate acts on the loss through the sink: at a fixed gate the sink matters, and at a fixed sink the gate does not",
        "ours",
        (sink_moved(), gate_moved()),
        SAYS,
        of="loss",
    ),
    Hypothesis(
        "small-start",
        "the gate's effect on the loss is that what attention adds begins smaller",
        "ours",
        (
            keeps_half(SMALL),
            keeps_half(BEGUN_OPEN, predicts_half=False),
        ),
        {
            ("supported", "refuted"): "no gate has it too where it begins smaller, and a gate where it does not",
            ("refuted", "supported"): "it takes a gate, and one that begins below one",
        },
        of="loss",
    ),
    Hypothesis(
        "reads-token",
        "the gate's effect on the loss needs scores that depend on the token",
        "arXiv 2505.06708",
        (keeps_half(STATIC, predicts_half=False),),
        of="loss",
    ),
    Hypothesis(
        "first-layers",
        "the gate's effect on the loss is in the first half of the layers",
        "ours",
        (keeps_half(FIRST_HALF), keeps_half(LAST_HALF, predicts_half=False)),
        _EITHER,
        of="loss",
    ),
    Hypothesis(
        "last-layers",
        "the gate's effect on the loss is in the last half of the layers",
        "ours",
        (keeps_half(LAST_HALF), keeps_half(FIRST_HALF, predicts_half=False)),
        _EITHER,
        of="loss",
    ),
    Hypothesis(
        "own-rate",
        "the gate's effect on the loss is one of the learning rate",
        "ours",
        (at_own_rates(),),
        of="loss",
    ),
    Hypothesis(
        "data-domain",
        "the gate's effect depends on what the data are",
        "ours",
        (cells_by("data", _other_data, "the data"),),
        of="reading",
    ),
)


def edits_of(model: Mapping[str, Any], *, gated: bool) -> list[str]:
    """The interventions that the tests ask of the gated runs, or of the ungated ones, with the layers of this model written
    out."""
    words = (word for h in HYPOTHESES for test in h.tests for word, of_gate in test.edits if of_gate == gated)
    return list(dict.fromkeys(found for word in words for found in _written_out(word, model)))


def _written_out(word: str, model: Mapping[str, Any]) -> list[str]:
    """The word with its layers, a word each where it is of one layer at a time; none where the model has no such layers."""
    if word.endswith(f":{EACH}"):
        return each_layer(word, model)
    found = in_layers(word, model)
    return [] if found is None else [found]
