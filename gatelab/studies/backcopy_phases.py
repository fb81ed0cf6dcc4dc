"""Where does a gate after attention end the sink of Bigram-Backcopy, where does it not, and where does it cost loss?

Learning rate, a token that always comes first, depth, the gate and the value around which it starts: 60 settings of 64 seeds,
3,840 runs of ten shapes. On a GPU the 384 runs of a shape train as one stack:

    gatelab run backcopy-phases execution.group=384 execution.slots=3

The gates of either start have a bias and the same random weights, so that they differ in nothing but the value (a gate
without a bias, as in sinkless-seeds, starts around one half). A sink that stands elsewhere is no first-token sink and is not
counted as one: `key_mass` of the domain `backcopy` says what the triggers get, beside `key_mass_uniform`, and `sink_elsewhere`
which heads have one.
"""

from collections.abc import Sequence

from gatelab import Arm, ProbeConfig, Run, Study
from gatelab.config import override
from gatelab.studies.quickstart import toy

RATES = (5e-4, 2e-3, 8e-3)
DEPTHS = (1, 2)
GATES = {"headwise": "sdpa-headwise-bias", "elementwise": "sdpa-elementwise-bias"}
STARTS = {"half": 0.5, "open": 0.95}


def cell(rate: float, layers: int, *, bos: bool) -> Run:
    """One point of the plane: 1,000 steps of 8 sequences of 64 tokens, looked at before and after."""
    return override(
        toy,
        {
            "model.n_layers": layers,
            "data.bos": bos,
            "optim.lr": rate,
            # A thousand runs' curves are not worth a gigabyte.
            "probe": ProbeConfig(times=1, sequences=64, skip_queries=8, every=10),
        },
    )


def recipe(
    rates: Sequence[float] = RATES,
    depths: Sequence[int] = DEPTHS,
    *,
    with_bos: Sequence[bool] = (True, False),
    seeds: int | tuple[int, ...] = 64,
    name: str = "backcopy-phases",
) -> Study:
    """The study, or the part of its plane that is asked for."""
    cells, about = {}, {}
    for layers in depths:
        for bos in with_bos:
            for rate in rates:
                point = f"{layers}-layer-{'bos' if bos else 'plain'}-lr{rate:g}"
                cells[point] = cell(rate, layers, bos=bos)
                first = "BOS at position 0" if bos else "an ordinary token at position 0"
                about[point] = (
                    f"{layers} layer{'s' if layers > 1 else ''} of one head, {first}, AdamW at a constant {rate:g}."
                )
    return Study(
        name=name,
        question="In Bigram-Backcopy, at which learning rates, depths and starting values does a gate after attention end the "
        "attention sink, with a token that always comes first and without one, and where does it cost loss?",
        cells=cells,
        about=about,
        arms=(
            Arm("none", {"model.gate": "none"}, "no gate"),
            *(
                Arm(f"{gate}-{start}", {"model.gate": f"{slug}-around={value}"}, f"{gate} gate from {value}")
                for gate, slug in GATES.items()
                for start, value in STARTS.items()
            ),
        ),
        seeds=seeds,
        primary=("val_loss", "first_token_mass", "value_drain", "massive_max"),
    )


study = recipe()
