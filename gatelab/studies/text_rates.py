"""Does the gate's effect on natural text depend on the learning rate, on q/k-norm, and on prose or code? 33 million weights.

The setting is that of `sinks-on-text`, documents kept apart; a run is about 3 minutes of one H200 (of one without that), all of
it some hours. The cells `prose` are of old English prose, `code` of Python; what both would read is refused. In parts, a folder
each:

    gatelab run text-rates 'cell=prose*' seed=0 data.paths=a.bin.xz,b.bin.xz data.val_paths=val.bin
    gatelab run text-rates 'cell=code*' data.paths=code.bin.xz data.val_paths=val_code.bin --out runs/text-rates-code
"""

from gatelab import Arm, Study, override
from gatelab.studies.gates_on_text import study as pilot

RATES = (3e-4, 1e-3, 3e-3)
PROSE = {"data.about": "old English prose"}
CODE = {"data.about": "Python", "data.paths": "code.bin", "data.val_paths": "val_code.bin"}
_short = pilot.cells["text"]
POINTS = {
    **{f"prose lr{rate:g}": PROSE | {"optim.lr": rate} for rate in RATES},
    **{f"prose qk-norm lr{rate:g}": PROSE | {"optim.lr": rate, "model.qk_norm": "rms"} for rate in RATES},
    **{f"code lr{rate:g}": CODE | {"optim.lr": rate} for rate in RATES},
}

study = Study(
    name="text-rates",
    question="On real text, at which learning rates does a gate after attention lower the held-out loss, is each arm's best rate "
    "inside the range, and do q/k-norm or code change that?",
    cells={name: override(_short, changes) for name, changes in POINTS.items()},
    about={name: f"33 million weights, 262 million tokens; {name}." for name in POINTS},
    arms=(
        Arm("none", {"model.gate": "none"}, "no gate"),
        Arm("g1-headwise", {"model.gate": "paper/g1-headwise"}, "G1, headwise"),
        Arm("g1-elementwise", {"model.gate": "paper/g1-elementwise"}, "G1, elementwise"),
    ),
    seeds=3,
    match_unit=8,
)
