"""Turns of warm processes: one block works while all others are stopped, what fails leaves the others, ratios are within rounds."""

import json
import sys
import textwrap
import time
from pathlib import Path

import pytest

# Behind everything else: a benchmark may be called what a test's module is.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import training_turns as turns
from warm_processes import Bounds, Process, one_at_a_time
from warm_training import planned

WORKER = """
    import sys, time
    from pathlib import Path
    sys.path.append({benchmarks!r})
    from warm_processes import serve

    def work(about):
        if about.get("dies"):
            sys.exit("no more")
        while about.get("awaits") and not Path(about["awaits"]).exists():
            time.sleep(0.005)
        request = yield {{"warm": about["name"]}}
        while True:
            if request["x"] < 0:
                raise ValueError("x is below 0")
            request = yield {{"twice": 2 * request["x"]}}

    serve(work)
"""


def test_one_block_works_while_all_others_are_stopped_and_what_fails_leaves_them(tmp_path: Path):
    script, ready = tmp_path / "worker.py", tmp_path / "ready"
    script.write_text(textwrap.dedent(WORKER.format(benchmarks=str(Path(turns.__file__).parent))))

    def process(name: str, gib: float = 1.0, **about: object) -> Process:
        return Process(name, str(script), {"name": name, **about}, gib=gib, folder=tmp_path)

    # The second waits for what the first does; the third for its memory.
    blocks = {
        "first": [process("a"), process("dying", dies=True), process("failing")],
        "second": [process("b", awaits=str(ready))],
        "third": [process("c", gib=9.0)],
    }
    seen, told = [], []

    def work(name: str, warm: list[Process], end: float) -> None:
        assert end > time.monotonic()
        seen.append((name, [p.name for p in warm]))
        others = [p for other, block in blocks.items() if other not in [n for n, _ in seen] for p in block]
        assert all(_state(p) == "T" for p in others)
        assert all(p.ask({"x": 3}, 30.0) == {"twice": 6} for p in warm)
        assert all(_state(p) in "SR" for p in warm)
        if name == "first":
            assert warm[1].ask({"x": -1}, 30.0) is None and warm[1].failed == "ValueError: x is below 0"
            ready.touch()

    one_at_a_time(blocks, work, Bounds(gib=10.0, limit=60.0, seconds=60.0), told.append)
    assert seen == [("first", ["a", "failing"]), ("second", ["b"]), ("third", ["c"])]
    assert blocks["first"][1].failed == "ended with 1: no more"
    assert blocks["second"][0].facts == {"warm": "b"} and len(told) == 5
    assert told[1] == "dying: ended with 1: no more\n    no more"
    assert told[2].startswith("failing: ValueError: x is below 0\n    Traceback")


def _state(process: Process) -> str:
    stat = Path(f"/proc/{process._popen.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0]


def test_what_is_not_warm_in_time_is_given_up(tmp_path: Path):
    script, told, worked = tmp_path / "worker.py", [], []
    script.write_text(textwrap.dedent(WORKER.format(benchmarks=str(Path(turns.__file__).parent))))
    late = Process("late", str(script), {"name": "late", "awaits": str(tmp_path / "never")}, gib=1.0, folder=tmp_path)
    bounds = Bounds(gib=1.0, limit=0.3, seconds=60.0)
    one_at_a_time({"block": [late]}, lambda name, warm, end: worked.append((name, warm)), bounds, told.append)
    assert worked == [("block", [])] and late.failed == "not warm within 0 s"


def test_ratios_are_those_within_rounds():
    trained = turns.Trained("16x1x2x64", 100, 1.0, runs=2)
    facts = {"device": "NVIDIA H200", "flops_per_token": 989e6}

    def answers(*rounds: list[float]) -> list[dict]:
        return [{"ms": ms, "loss": 1.0, "peak_gib": 2.0} for ms in rounds]

    # The second round is twice as slow for both.
    base, own = answers([10.0, 10.0, 30.0], [20.0], [10.0]), answers([20.0], [40.0, 40.0, 10.0], [16.0])
    r = turns.record(trained, facts, own, base)
    assert r["of_ungated"]["rounds"] == [0.5, 0.5, 0.625] and r["of_ungated"]["median"] == 0.5
    assert (r["of_ungated"]["least"], r["of_ungated"]["most"]) == (0.5, 0.625)
    assert r["rounds_ms"] == [20.0, 40.0, 16.0] and r["ms"] == 20.0 and r["steps"] == 5
    # 200 tokens in 20 ms are 10,000 a second, of 989e6 operations each, and the peak is 989e12 a second.
    assert r["tokens_per_s"] == pytest.approx(1e4) and r["mfu"] == pytest.approx(0.01)


@pytest.mark.parametrize("name", turns.BLOCKS)
def test_every_block_is_one_that_the_trainer_takes_with_weights_alike(name: str):
    block = turns.BLOCKS[name]
    assert len({t.name for t in block.trained}) == len(block.trained)
    assert sum(t.gib for t in block.trained) <= 134
    counts = [planned(t, "cuda")[1].row.at["n_parameters"] for t in block.trained]
    assert max(counts) <= 1.006 * min(counts)


def test_a_block_is_timed_and_what_this_device_does_not_serve_says_so(tmp_path: Path, monkeypatch, capsys):
    tiny = turns.BLOCKS["tiny"].trained[0]
    refused = turns.Trained("16x1x2x64", 64, 1, context=16, attention="hopper")
    monkeypatch.setitem(turns.BLOCKS, "tiny", turns.Block((refused, tiny), 2, 0.05))
    out = tmp_path / "turns.jsonl"
    turns.main(["--blocks", "tiny", "--device", "cpu", "--out", str(out)])
    failed, found = (json.loads(line) for line in out.read_text().splitlines())
    assert failed["name"] == refused.name and "hopper" in failed["failed"]
    assert found["attention"] == "sdpa" and len(found["rounds_ms"]) == 2 and found["mfu"] is None
    assert found["of_ungated"]["rounds"] == [1.0, 1.0]
    shown = capsys.readouterr().out
    assert tiny.name in shown and failed["failed"] in shown


@pytest.mark.parametrize(
    ("words", "why"),
    [(["--blocks", "gates-33"], "gates-33: expected"), (["--blocks", "tiny"], "torch sees no CUDA device")],
)
def test_a_mistake_is_a_sentence(words: list[str], why: str, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=why):
        turns.main(words)
