"""What gates are said to be good for: which tasks gain, where a gate stands, how sparse it is, places, rates, sizes and costs.

Lines of the ledger (`ledger_of_claims.py`). Where a claim's page has no folder, the line says what would make its rows.
"""

from .causes import NOTHING
from .claim_tests import (
    ALIKE,
    Claim,
    Region,
    difference,
    effect,
    effect_gap,
    elsewhere,
    gap,
    level,
    over_share,
)
from .rate_tests import at_own_rate, at_smallest, bears_more, best_rate, borne, slope_over_width
from .room import LOSS, MOVED, Room, accurate
from .stated_tests import cost, unread

PAPER = "arXiv 2505.06708"
PROPOSAL = "Gating Gone Wild, the proposal"
SUMMARY = "a summary of arXiv 2505.06708 (not the paper)"
MOST, HALF, ACCURACY = Region(low=0.5), Region(high=0.5), 0.05
SAVED = 0.1  # of the bytes that attention reads
HEADWISE, ELEMENTWISE, VALUE, SINK_LOGIT = "sdpa-headwise", "sdpa-elementwise", "value-elementwise", "sink-logit"
GATES = {"headwise": HEADWISE, "elementwise": ELEMENTWISE}

_TASKS, _PILOT, _TEXT, _TOY = "tasks-by-architecture", "gates-on-tasks", "gates-on-text", "sinkless-seeds"
_PHASES, _KEY, _RATES, _WIDTHS = "backcopy-phases", "backcopy-key", "backcopy-rates", "backcopy-widths"
_LARGE, _SMALLER = "1-layer-bos-lr0.008", "1-layer-bos-lr0.002"
_EASY, _FRESH, _OWN = "gates-on-easy-tasks", "gates-on-easy-tasks-fresh", "tasks-rates"
_CAUSES = "citing-causes"
_TWO_RATES = ("easy cite 0.001", "easy cite 0.003")
_TUNED = {"encoder select": "selection", "encoder identifier": "code", "experts track": "tracking"}
# Of retrieval (`needle`) every arm's loss is at its floor: it is asked at length.
_KINDS = {
    "track": "tracking",
    "cite": "citation",
    "select": "selection",
    "identifier": "code",
    "conflict": "faithfulness",
}
# The tasks with an answer at every place.
_PLACED = ("* needle", "* conflict")
_AT_8 = (accurate("task_accuracy@8x"),)
_AT_8_ALONE = (accurate("accuracy@8x"),)
_CITED = (Room("citation_f1", 0.5, words="in which either arm has more than one half"),)
_BELOW = Region(high=0.0)
_FREE = Region(high=-NOTHING)
_SMALL = Region(-NOTHING, NOTHING)
_AT_G1 = f"gates help most after attention (G1): by more than {NOTHING} nats more than on the values (G2)"
_ALIKE = f"a headwise gate does what an elementwise one does to the loss, within {NOTHING} nats"
_SPARSE = "the scores of a gate after attention are sparse: more than half are below 0.1"
_CHEAPER = "gated attention costs less a token"
_UNREAD = (
    f"gated attention can leave more than {SAVED} of its keys and values unread, those behind a shut gate, for less than"
    f" {NOTHING} nats"
)
_STABLE = "gated models bear larger learning rates"
_BETTER_AT = "the best learning rate of gated models is larger"
_SCALES = "gates improve how models scale: the gain grows with size"
_LADDER = "`gatelab run backcopy-rates` would decide"
_PLACES = "gates lessen the bias for places"


CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(f"gates help retrieval, by more than {ACCURACY} of the items ({gate})", PAPER, _TASKS,
              f"share of the items of `needle` that are right at eight times the length of training, arm minus no gate, over four"
              f" architectures: above {ACCURACY}",
              effect("task_accuracy@8x", arm, cells=["* needle"], where=_AT_8), Region(low=ACCURACY),
              ("sink logit", effect("task_accuracy@8x", SINK_LOGIT, cells=["* needle"], where=_AT_8)))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"gates help {kind}, by more than {NOTHING} nats ({gate})",
              PROPOSAL if kind in ("citation", "faithfulness") else PAPER, _TASKS,
              f"held-out loss of the answers of `{task}`, arm minus no gate, over four architectures: below −{NOTHING}",
              effect("val_loss", arm, "nats", cells=[f"* {task}"], where=[LOSS]), _FREE,
              ("sink logit", effect("val_loss", SINK_LOGIT, "nats", cells=[f"* {task}"], where=[LOSS])))
        for task, kind in _KINDS.items() for gate, arm in GATES.items()
    ),
    *(
        Claim(f"gated models are more faithful to the text, by more than {ACCURACY} of the items ({gate})", PROPOSAL, _TASKS,
              f"share of the items of `conflict` that are right, arm minus no gate, over four architectures: above {ACCURACY}",
              effect("task_accuracy@1x", arm, cells=["* conflict"], where=[accurate("task_accuracy@1x")]), Region(low=ACCURACY),
              ("sink logit", effect("task_accuracy@1x", SINK_LOGIT, cells=["* conflict"], where=[accurate("task_accuracy@1x")])))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"gated models cite better, by more than {ACCURACY} in F1 ({gate})", PROPOSAL, _TASKS,
              f"F1 of the documents cited in `cite`, arm minus no gate, where either has one half: above {ACCURACY}",
              gap("citation_f1", arm, "none", cells=["* cite"], where=_CITED), Region(low=ACCURACY),
              ("sink logit", gap("citation_f1", SINK_LOGIT, "none", cells=["* cite"], where=_CITED)))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"gates help citation of one of two documents, at a rate of 0.001, by more than {NOTHING} nats ({gate})",
              PROPOSAL, _EASY,
              f"held-out loss of the answers, arm minus no gate, of eight fresh seeds: below −{NOTHING}",
              elsewhere(_FRESH, effect("val_loss", arm, "nats")), _FREE,
              ("each arm at the better of two rates, seeds 0 to 4", at_own_rate(arm, "none", _TWO_RATES)))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"gates help citation of one of two documents, each arm at the better of two rates, by more than {NOTHING} nats"
              f" ({gate})", PROPOSAL, _EASY,
              f"held-out loss of the answers, arm minus no gate, each at the better of 0.001 and 0.003: below −{NOTHING}",
              at_own_rate(arm, "none", _TWO_RATES), _FREE,
              ("both at 0.001, eight fresh seeds", elsewhere(_FRESH, effect("val_loss", arm, "nats"))))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"gates help citation of one of two documents, each arm at its own best of three rates, by more than {NOTHING} nats"
              f" ({gate})", PROPOSAL, _CAUSES,
              f"held-out loss of the answers, arm minus no gate, each at its own best rate: below −{NOTHING}",
              at_own_rate(arm, "none", [f"cite {rate:g}" for rate in (3e-4, 1e-3, 3e-3)]), _FREE,
              ("both at 0.001", difference("val_loss", arm, "none", "nats", cell="cite 0.001")))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"gates help {kind} by more than {NOTHING} nats where each arm has its own best of three rates ({where.split()[0]},"
              f" {gate})", PAPER, _OWN,
              f"held-out loss of the answers, arm minus no gate, each at its own best rate: below −{NOTHING}",
              at_own_rate(arm, "none", [f"{where} lr{rate:g}" for rate in (3e-4, 1e-3, 3e-3)]), _FREE,
              ("both at 0.001", difference("val_loss", arm, "none", "nats", cell=f"{where} lr0.001")))
        for where, kind in _TUNED.items() for gate, arm in GATES.items()
    ),
    *(
        Claim(f"{words} (toy, {gate})", PAPER, _KEY, f"{asks}: below 0", test(f"{gate}-half"), _BELOW,
              ("from 0.95", test(f"{gate}-open")))
        for words, asks, test in (
            ("a gate after attention lowers the largest activation", "largest activation, arm from one half minus no gate",
             lambda arm: difference("massive_max", arm, "none", cell=_SMALLER)),
            ("a gate after attention halves massive activations", "largest activation, arm from one half minus half of no gate's",
             lambda arm: over_share("massive_max", arm, "none", 0.5, cell=_SMALLER)),
        )
        for gate in GATES
    ),
    Claim(_AT_G1, PAPER, _TASKS, f"held-out loss, G1 minus G2, both elementwise: below −{NOTHING}",
          effect_gap("val_loss", ELEMENTWISE, VALUE, "nats", room=LOSS), _FREE,
          ("sink logit minus G2", effect_gap("val_loss", SINK_LOGIT, VALUE, "nats", room=LOSS))),
    Claim(_AT_G1, PAPER, _PILOT, f"held-out loss, G1 minus G2, both elementwise: below −{NOTHING}",
          effect_gap("val_loss", ELEMENTWISE, VALUE, "nats", room=LOSS), _FREE,
          ("sink logit minus G2", effect_gap("val_loss", SINK_LOGIT, VALUE, "nats", room=LOSS))),
    Claim(_AT_G1, PAPER, _TEXT, f"held-out loss, G1 minus G2, both elementwise: below −{NOTHING}",
          effect_gap("val_loss", "g1-elementwise", "g2-elementwise", "nats"), _FREE,
          ("sink logit minus G2", effect_gap("val_loss", "sink-logit", "g2-elementwise", "nats"))),
    Claim(_ALIKE, PAPER, _TOY, f"held-out loss, elementwise minus headwise: within ±{NOTHING}",
          difference("val_loss", ELEMENTWISE, HEADWISE, "nats", confidence=ALIKE, beside="none", room=MOVED), _SMALL,
          ("headwise minus none", difference("val_loss", HEADWISE, "none", "nats", confidence=ALIKE))),
    Claim(_ALIKE, PAPER, _PHASES, f"held-out loss, elementwise minus headwise, both from one half: within ±{NOTHING}",
          effect_gap("val_loss", "elementwise-half", "headwise-half", "nats", confidence=ALIKE, moved=MOVED), _SMALL,
          ("from 0.95", effect_gap("val_loss", "elementwise-open", "headwise-open", "nats", confidence=ALIKE, moved=MOVED))),
    Claim(_ALIKE, PAPER, _KEY,
          f"held-out loss, elementwise minus headwise, both from one half, at a rate of 0.008: within ±{NOTHING}",
          difference("val_loss", "elementwise-half", "headwise-half", "nats", cell=_LARGE, confidence=ALIKE, beside="none",
                     room=MOVED), _SMALL,
          ("headwise minus none", difference("val_loss", "headwise-half", "none", "nats", cell=_LARGE, confidence=ALIKE))),
    Claim(_ALIKE, PAPER, _TASKS, f"held-out loss, elementwise minus headwise: within ±{NOTHING}",
          effect_gap("val_loss", ELEMENTWISE, HEADWISE, "nats", confidence=ALIKE, room=LOSS, moved=MOVED), _SMALL,
          ("sink logit minus headwise",
           effect_gap("val_loss", SINK_LOGIT, HEADWISE, "nats", confidence=ALIKE, room=LOSS, moved=MOVED))),
    Claim(_ALIKE, PAPER, _TEXT, f"held-out loss, elementwise minus headwise: within ±{NOTHING}",
          effect_gap("val_loss", "g1-elementwise", "g1-headwise", "nats", confidence=ALIKE), _SMALL,
          ("sink logit minus headwise", effect_gap("val_loss", "sink-logit", "g1-headwise", "nats", confidence=ALIKE))),
    *(
        Claim(f"{_PLACES} (answers, {gate})", SUMMARY, _TASKS,
              "size of the U-index at eight times the length of training in `needle` and `conflict`, arm minus no gate: below 0",
              gap("u_size@8x", arm, "none", cells=_PLACED, where=_AT_8_ALONE), _BELOW,
              ("sink logit", gap("u_size@8x", SINK_LOGIT, "none", cells=_PLACED, where=_AT_8_ALONE)))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"{_PLACES} (attention, {gate})", SUMMARY, _TASKS,
              "share of attention that lies at other places than uniform attention's, arm minus no gate: below 0",
              gap("position_bias", arm, "none"), _BELOW, ("sink logit", gap("position_bias", SINK_LOGIT, "none")))
        for gate, arm in GATES.items()
    ),
    *(
        Claim(f"{_SPARSE} ({gate})", PAPER, page, "share of scores below 0.1: more than half",
              level("gate_below", arms[gate], cells=cells), MOST,
              ("elementwise gate on the values", level("gate_below", arms["value"], cells=cells)))
        for page, cells, arms in (
            (_TASKS, ("*",), GATES | {"value": VALUE}),
            (_TEXT, ("*",), {"headwise": "g1-headwise", "elementwise": "g1-elementwise", "value": "g2-elementwise"}),
        )
        for gate in GATES
    ),
    Claim(f"{_SPARSE} (headwise, in a short run)", PAPER, "text-start-masked", "share of scores below 0.1: more than half",
          level("gate_below", "g1-headwise", cells=("prose normal",)), MOST,
          ("documents not kept apart, of two versions of the code (of text-rates)",
           elsewhere("text-rates", level("gate_below", "g1-headwise", cells=("prose lr0.001",))))),
    Claim("elementwise scores are sparser than headwise ones", PAPER, _TOY, "mean score, elementwise minus headwise: below 0",
          difference("gate_mean", ELEMENTWISE, HEADWISE), _BELOW,
          ("seeds that keep the sink with the elementwise gate", difference("gate_mean", ELEMENTWISE, HEADWISE, keeping=True))),
    Claim("scores after attention are sparser than those on the values", PAPER, _TASKS,
          "Hoyer sparsity of a head's scores, G1 minus G2, both elementwise: above 0",
          gap("gate_hoyer", ELEMENTWISE, VALUE), Region(low=0.0), ("G1 headwise minus G2", gap("gate_hoyer", HEADWISE, VALUE))),
    *(
        Claim(f"{_STABLE} ({gate}, the largest)", PAPER, _RATES,
              "of the seeds, those that bear a larger rate than without a gate, neither diverging nor ending above their untrained"
              " loss: more than half",
              bears_more(f"{gate}-half", "none"), MOST, ("no gate", borne("none")), planned=_LADDER)
        for gate in GATES
    ),
    *(
        Claim(f"{_BETTER_AT} ({gate})", PAPER, _RATES,
              "best rate by a parabola about each seed's lowest loss, arm minus no gate: above 0",
              best_rate(f"{gate}-half", "none"), Region(low=0.0), ("no gate's best rate", best_rate("none")),
              planned=_LADDER)
        for gate in GATES
    ),
    *(
        Claim(f"{_SCALES} ({gate})", PAPER, _WIDTHS,
              "slope over log2 of the width of the held-out loss, arm minus no gate, each at its own best rate: below 0",
              slope_over_width(f"{gate}-half", "none"), _BELOW, ("at the smallest width", at_smallest(f"{gate}-half", "none")),
              planned="`gatelab run backcopy-widths` would decide")
        for gate in GATES
    ),
    *(
        Claim(f"{_CHEAPER} ({gate})", SUMMARY, _TEXT, "arithmetic of a token in training, over no gate's: below 1",
              cost(f"g1-{gate}", "none"), Region(high=1.0), ("sink logit", cost("sink-logit", "none")))
        for gate in GATES
    ),
    *(
        Claim(f"{_UNREAD} ({gate})", SUMMARY, "skipped-reads",
              "largest share of the bytes of keys and values that a threshold of the score leaves unread for less than"
              f" {NOTHING} nats: above {SAVED}",
              unread(file, arm, NOTHING), Region(low=SAVED),
              ("what as many heads at random cost", unread(file, arm, NOTHING, "control_change", "nats")))
        for gate, file, arm in (("headwise, toy", "toy.csv", "headwise"), ("elementwise, text", "pair.csv", "g1-elementwise-max"))
    ),
    Claim("gates make gradients smoother across layers", SUMMARY, "backcopy-causes",
          "spread over three blocks of ln `layer_grad_norm` at the end of training, headwise from one half minus no gate: below 0",
          difference("spread", "headwise", "none", file="gradients.csv"), _BELOW,
          ("from 0.95", difference("spread", "headwise-open", "none", file="gradients.csv"))),
)  # fmt: skip
