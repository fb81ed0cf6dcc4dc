"""Does a gate help a model of 33 million weights to four times its length, and to sixteen by YaRN?

The runs of `text-rates` on prose at one rate, gone on at 4,096 tokens after a change of the RoPE base, then read at 16,384 by YaRN
without training: no gate, headwise, elementwise. The rate is 1e-3, at which `gates-on-text` was run at full length, and the best of
those that `text-rates` has of every arm (cut short); another is a file of two lines,

    from gatelab.studies.text_longer_context import recipe
    study = recipe(3e-4)

The tokenizer of the shards is stated, for the questions are asked in words.

    data="data.paths=a.bin.xz,b.bin.xz data.val_paths=val.bin data.tokenizer=tokenizer.json"
    gatelab run text-longer-context $data

The runs of the cell `short` are those of `text-rates` on these data: who has them plans first, and copies in what was planned; then
`gatelab run` trains no model from scratch:

    python -c "import sys; from gatelab import lab; from gatelab.config.grid import parse_assignments as words; \\
        lab.save_plan(lab.plan('text-longer-context', words(sys.argv[1:])), 'runs/text-longer-context')" $data
    for run in runs/text-longer-context/runs/*; do cp -r runs/text-rates/runs/$(basename $run)/. $run; done

Then every run is read by position and asked for needles, among many keys and to select, at the lengths that its positions reach.
RUN is the folder of one of `short`, `long` and `stretched`, in this order (`gatelab status runs/text-longer-context --json` names
them), BOOKS a folder of texts of 16,384 tokens or more each.

    ask=gatelab/position_loss,gatelab/needle,gatelab/multikey,gatelab/select
    gatelab eval RUN --tasks $ask --text BOOKS --lengths 1024 --limit 100 --out RUN/asked
    gatelab eval RUN --tasks $ask --text BOOKS --lengths 1024,4096 --limit 100 --out RUN/asked
    gatelab eval RUN --tasks $ask --text BOOKS --lengths 1024,4096,16384 --limit 100 --out RUN/asked
"""

from gatelab import Study
from gatelab.studies import text_rates
from gatelab.studies.paper_long_context import FOLLOWS, about, stages

RATE = 1e-3
STEP = 65_536  # tokens, as before
STEPS = 400  # a tenth of those at 1,024 tokens


def recipe(rate: float = RATE) -> Study:
    """The three stages from this rate of `text-rates`; the continuation at a tenth of it."""
    base = text_rates.study.cells[f"prose lr{rate:g}"]
    cells = stages(base, tokens=STEPS * STEP, lengths=(4, 16), batch_tokens=STEP, lr=rate / 10)
    return Study(
        name="text-longer-context",
        question="After a change of its positions to four times the length, and to sixteen by YaRN, does a model with a gate after "
        "attention lose less than one without, and does it still find what it is asked for?",
        cells=cells,
        about=about(cells),
        arms=text_rates.study.arms,
        seeds=3,
        follows=FOLLOWS,
        match_unit=text_rates.study.match_unit,
    )


study = recipe()
