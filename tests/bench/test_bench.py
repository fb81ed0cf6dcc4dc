"""gatelab bench: every kind runs on a CPU and writes what it found; a wrong result has no time and no ratio."""

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch

from gatelab.bench import ops, timing
from gatelab.bench.benchmark import Benchmark, benchmark
from gatelab.bench.plan import plan
from gatelab.bench.write import records, section, slug, table, write
from gatelab.cli import _status
from gatelab.ops import gated_attention as op
from gatelab.ops import gated_decode

SMALL = {
    "ops": ("--tokens", 24, "--length", 12, "--heads", 4, "--kv-heads", 2, "--head-dim", 8),
    "train": ("--sizes", "16x1x2x32", "--context", 8, "--tokens", 16, "--steps", 1, "--group", 2),
    "decode": ("--batch", "1,2", "--cache", 9, "--heads", 4, "--kv-heads", 2, "--head-dim", 8),
    "probe": ("--length", 12),
}
NUMBERS = ("median_ms", "least_ms", "most_ms", "floor_ms", "of_floor", "rounds")


def gatelab(*words: object) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = _status([str(word) for word in words])
    return status, out.getvalue(), err.getvalue()


def bench(kind: str, folder: Path, *words: object) -> tuple[int, str, str]:
    return gatelab("bench", kind, *SMALL[kind], "--device", "cpu", "--seconds", 120, "--out", folder, *words)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATELAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that it is rounds and not the time that end a benchmark, however slow the machine is.
    monkeypatch.setattr(timing, "_MOST", 3)


def small_ops(**given: Any) -> Benchmark:
    shape = {"tokens": 24, "length": 12, "heads": 4, "kv_heads": 2, "head_dim": 8, "seconds": 120.0}
    return benchmark("ops", plan("ops", "cpu", {**shape, **given}), lambda _: None)


@pytest.mark.parametrize("kind", SMALL)
def test_every_kind_runs_and_writes_what_it_found(kind: str, tmp_path: Path) -> None:
    if kind == "probe":
        pytest.importorskip("transformers")
    status, out, err = bench(kind, tmp_path / "results", "--json")
    assert status == 0, err
    (page,), (data,) = (tmp_path / "results").glob("*.md"), (tmp_path / "results").glob("*.json")
    assert page.stem == data.stem and page.stem.startswith(f"{kind}_cpu_20")
    assert "No GPU was used" in page.read_text(encoding="utf-8")
    printed = [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]
    (stored,) = json.loads(data.read_text(encoding="utf-8"))
    assert len(printed) == len(stored["rows"]) > 0
    for row in stored["rows"]:
        assert row.get("contract", "holds") == "holds", row
        assert all(isfinite(row[name]) and row[name] > 0 for name in NUMBERS), row
        assert row["least_ms"] <= row["median_ms"] <= row["most_ms"] and row["rounds"] >= 3
    assert stored["copy_bytes_per_s"] > 0 and stored["plan"]["seconds"] == 120


def test_the_table_has_the_floor_beside_each_time(tmp_path: Path) -> None:
    status, out, _ = bench("decode", tmp_path)
    assert status == 0 and "one query" in out
    header = next(line for line in out.splitlines() if line.startswith("shape"))
    assert header.index("median ms") < header.index("floor ms") < header.index("of floor")


def test_every_gate_is_timed_beside_no_gate_by_every_implementation() -> None:
    found = small_ops()
    own = {(row.gate, row.candidate, row.work) for row in found.rows if row.is_own and row.what == "ops"}
    names = ["reference", "sdpa", "flash", "flash-lean"]
    gates = ("none", "sdpa-headwise", "sdpa-elementwise")
    works = ("forward", "forward + backward")
    assert own == {(gate, f"gatelab {name}", work) for gate in gates for name in names for work in works}
    assert {row.against for row in found.rows if row.what == "ops"} <= {
        f"ungated, {row.candidate}" for row in found.rows if row.gate == "none"
    }


def test_a_wrong_result_fails_and_has_no_time_and_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.IMPLEMENTATIONS["sdpa"]
    monkeypatch.setitem(op.IMPLEMENTATIONS, "sdpa", lambda *given: right(*given) + 0.1)
    rows = [row for row in small_ops(gates="sdpa-headwise").rows if row.what == "ops"]
    wrong = [row for row in rows if row.candidate == "gatelab sdpa"]
    assert len(wrong) == 4
    for row in wrong:
        assert row.contract.startswith("FAIL output: error"), row
        assert (row.median_ms, row.ratio, row.of_layer, row.goal) == (None,) * 4
    others = [row for row in rows if row.candidate == "gatelab reference"]
    assert all(row.contract == "holds" and row.ratio > 0 for row in others)


def test_a_wrong_gradient_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.IMPLEMENTATIONS["sdpa"]
    monkeypatch.setitem(op.IMPLEMENTATIONS, "sdpa", lambda q, k, *rest: right(q, k.detach(), *rest))
    rows = [row for row in small_ops(gates="none").rows if row.candidate == "gatelab sdpa"]
    assert rows and all(row.contract.startswith("FAIL d k_BSGK") and row.median_ms is None for row in rows)


def test_a_wrong_gate_alone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.gate_candidates

    def wrong(*given: Any) -> list[Any]:
        return [replace(c, call=lambda call=c.call, **tensors: call(**tensors) * 1.02) for c in right(*given)]

    monkeypatch.setattr(ops, "gate_candidates", wrong)
    rows = [row for row in small_ops().rows if row.what == "gate"]
    assert rows and all(row.contract.startswith("FAIL") and row.median_ms is None for row in rows)


def test_a_wrong_decoding_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.IMPLEMENTATIONS["sdpa"]
    monkeypatch.setitem(op.IMPLEMENTATIONS, "sdpa", lambda *given: right(*given) * 1.02)
    shape = {"batch": "2", "cache": "9", "heads": 4, "kv_heads": 2, "head_dim": 8, "seconds": 120.0}
    rows = benchmark("decode", plan("decode", "cpu", shape), lambda _: None).rows
    assert rows and all(row.contract.startswith("FAIL output") and row.ratio is None for row in rows)


def test_the_kernels_that_decode_are_what_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gated_decode.IMPLEMENTATIONS["reference"]
    monkeypatch.setattr(gated_decode.split, "unserved", lambda *_: None)
    monkeypatch.setitem(gated_decode.IMPLEMENTATIONS, "split", lambda *given, **slots: right(*given, **slots) * 1.02)
    shape = {"batch": "2", "cache": "9", "heads": 4, "kv_heads": 2, "head_dim": 8, "seconds": 120.0}
    rows = benchmark("decode", plan("decode", "cpu", shape), lambda _: None).rows
    assert rows and all(row.contract.startswith("FAIL output") and row.ratio is None for row in rows)


def test_wrong_probes_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from gatelab.bench import probe

    right = probe._mass_watched
    monkeypatch.setattr(probe, "_mass_watched", lambda *given, **weights: right(*given, **weights) * 1.001)
    rows = benchmark("probe", plan("probe", "cpu", {"length": "12", "seconds": 120.0}), lambda _: None).rows
    (row,) = [row for row in rows if row.candidate == "probes"]
    assert row.contract.startswith("FAIL output") and row.ratio is None and row.median_ms is None
    assert all(row.median_ms > 0 for row in rows if row.candidate != "probes")


def test_runs_that_begin_otherwise_than_alone_have_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatelab.bench import train

    right = train._group

    def other_seeds(given: Any, arm: Any) -> Any:
        group = right(given, arm)
        if arm.runs > 1:
            with torch.no_grad():
                group.members[0].model.embedding.weight.mul_(3.0)
        return group

    monkeypatch.setattr(train, "_group", other_seeds)
    given = {
        "sizes": "16x1x2x32",
        "context": 8,
        "tokens": 16,
        "steps": 1,
        "gates": "none",
        "group": 2,
        "seconds": 120.0,
    }
    alone, together = benchmark("train", plan("train", "cpu", given), lambda _: None).rows
    assert together.candidate == "2 at once" and together.contract.startswith("FAIL first loss")
    assert together.ratio is None and alone.ratio == 1.0


def test_gated_models_have_the_weights_of_the_ungated_one(tmp_path: Path) -> None:
    given = {"sizes": "64x2x4x64", "context": 8, "tokens": 16, "steps": 1, "seconds": 0.1}
    rows = benchmark("train", plan("train", "cpu", given), lambda _: None).rows
    none, *gated = [row.at["n_parameters"] for row in rows]
    assert all(abs(n - none) <= 2 * 3 * 64 * 4 for n in gated)  # half a unit of 8 channels in each of 2 layers
    assert rows[2].at["d_ff"] < rows[0].at["d_ff"]


def test_what_is_not_reached_in_time_says_so(tmp_path: Path) -> None:
    rows = small_ops(seconds=1e-6).rows
    late = [row for row in rows if row.median_ms is None]
    assert late and all("give more --seconds" in row.contract for row in late)


def test_a_second_benchmark_takes_nothing_away(tmp_path: Path) -> None:
    found = small_ops(gates="none")
    page, data = write(found, tmp_path / "new" / "folder")
    once = page.read_text(encoding="utf-8")
    assert write(replace(found, heading=["another one"]), tmp_path / "new" / "folder") == (page, data)
    assert page.read_text(encoding="utf-8").startswith(once) and "another one" in page.read_text(encoding="utf-8")
    assert len(json.loads(data.read_text(encoding="utf-8"))) == 2


def test_a_table_of_markdown_has_as_many_cells_in_every_line() -> None:
    found = small_ops(gates="none")
    broken = replace(found.rows[0], contract="not run: a | b")
    found = replace(found, rows=[broken, *found.rows[1:]])
    lines = [line.replace("\\|", "") for line in section(found).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(found.rows) and len({line.count("|") for line in lines}) == 1
    assert set(table(found)[0]) == set(table(found)[-1]) and len(records(found)) == len(found.rows)


def test_a_device_has_a_short_name() -> None:
    names = ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-40GB", "x86_64 CPU")
    assert [slug(name) for name in names] == ["h100", "h200", "rtx-4090", "a100-sxm4-40gb", "cpu"]


def test_what_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatelab.bench import probe

    monkeypatch.setattr(probe, "find_spec", lambda name: None)
    status, _, err = bench("probe", tmp_path)
    assert status == 2 and "pip install 'gatelab[hf]'" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("opz",), "opz"),
        (("ops", "--gates", "spda-headwise"), "no site 'spda'"),
        (("train", "--sizes", "33m"), "size '33m'"),
        (("ops", "--tokens", 0), "tokens=0"),
        (("ops", "--heads", 4, "--kv-heads", 3), "kv_heads=3 does not divide heads=4"),
        (("ops", "--device", "tpu"), "tpu"),
        (("ops", "--dtype", "int8"), "int8"),
        (("ops", "--out", __file__), "is a file; name a folder"),
    ],
)
def test_mistakes_are_told_and_end_with_status_2(words: tuple[object, ...], said: str) -> None:
    status, out, err = gatelab("bench", *words)
    assert status == 2 and out == "" and said in err and "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told() -> None:
    status, _, err = gatelab("bench", "ops", "--device", "cuda")
    assert status == 2 and "torch sees no CUDA device here" in err
