"""gatelab bench: every kind runs on a CPU and writes what it found; a wrong result has no time and no ratio."""

import json
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from command import gatelab

from gatelab.bench import candidates, ops, slices, timing
from gatelab.bench.benchmark import Benchmark, benchmark, utc_now
from gatelab.bench.goals import judged
from gatelab.bench.plan import plan
from gatelab.bench.write import places, records, section, slug, table, write
from gatelab.config import ConfigError
from gatelab.ops import gated_attention as op
from gatelab.ops import gated_decode
from gatelab.ops.gated_attention import flash

SMALL = {
    "ops": ("--tokens", 24, "--length", 12, "--heads", 4, "--kv-heads", 2, "--head-dim", 8),
    "train": ("--sizes", "16x1x2x32", "--context", 8, "--tokens", 16, "--steps", 1, "--group", 2),
    "decode": ("--batch", "1,2", "--cache", 9, "--heads", 4, "--kv-heads", 2, "--head-dim", 8),
    "probe": ("--length", 12),
}
SMALL_RUNS = {"sizes": "16x1x2x32", "context": 8, "tokens": 16, "steps": 1, "gates": "none", "seconds": 120.0}
NUMBERS = ("median_ms", "least_ms", "most_ms", "floor_ms", "of_floor", "rounds")


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


def test_everything_is_timed_and_judged_on_slices_of_one_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[torch.Tensor]]] = []
    right_op, right_gate = op.IMPLEMENTATIONS["sdpa"], ops.gate_candidates

    def attend(q: Any, k: Any, v: Any, logits: Any, *rest: Any) -> torch.Tensor:
        if logits is not None:  # else it may be the layer's
            seen.append(("ops", [q, k, v, logits]))
        return right_op(q, k, v, logits, *rest)

    def gates(*given: Any) -> list[Any]:
        def watched(call: Any, y_BTHK: torch.Tensor, logits_BTHK: torch.Tensor) -> torch.Tensor:
            assert y_BTHK.is_contiguous()
            seen.append(("gate", [logits_BTHK]))
            return call(y_BTHK=y_BTHK, logits_BTHK=logits_BTHK)

        return [replace(c, call=lambda call=c.call, **tensors: watched(call, **tensors)) for c in right_gate(*given)]

    monkeypatch.setitem(op.IMPLEMENTATIONS, "sdpa", attend)
    monkeypatch.setattr(ops, "gate_candidates", gates)
    found = small_ops(gates="sdpa-headwise")
    assert {name for name, _ in seen} == {"ops", "gate"} and "slices of one packed projection" in ops.NOTE
    for _, given in seen:
        assert len({t.untyped_storage().data_ptr() for t in given}) == 1
        # 4 + 2 + 2 heads of 8 channels and 4 logits are 68; where the gate is held to the contract alone they are 36.
        assert all(t.stride(1) in (64, 128) and t.stride(3) == 1 for t in given)
    assert all(row.contract == "holds" for row in found.rows if row.candidate == "gatelab sdpa")


def test_what_goals_are_about_is_timed_before_another_is_held_to_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(ops, "_gate_alone", lambda *_: [])
    monkeypatch.setattr(ops.HeldAttention, "verdict", lambda _, c: told.append(f"held {c.name}") or "holds")
    monkeypatch.setattr(ops, "_run", lambda call, given, work, _: told.append("run"))
    assert small_ops().rows
    first = {f"held gatelab {name}" for name in ("flash", "flash-lean")}
    heard = [said for said in told if said != "run"]
    assert len(set(first)) == 2 and set(heard[:6]) == first and not set(heard[6:]) & first
    # Ours before peers, and 3 rounds there of 2 gates and none, 2 implementations and 2 works.
    assert all("gatelab" in said for said in heard[:12]) and heard[12:15] == ["held torch flash"] * 3
    seventh = told.index("held gatelab reference")
    assert told[:seventh].count("run") >= 12 * (2 + 3)


def test_slices_have_the_numbers_and_gradients_of_what_they_join() -> None:
    given = {name: torch.randn(2, 3, n, 5, requires_grad=True) for name, n in (("q_BTHK", 4), ("k_BSGK", 2))}
    joined = slices._joined(given)
    assert all(torch.equal(joined[name], t) for name, t in given.items())
    (3 * joined["q_BTHK"]).sum().backward()
    assert (given["q_BTHK"].grad == 3).all() and not given["k_BSGK"].grad.any()


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


def test_what_is_wrong_at_the_timed_length_alone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = flash._stock

    def wrong(q: torch.Tensor, *given: Any) -> tuple[torch.Tensor, ...]:
        y, *rest = right(q, *given)
        return y * (3.0 if q.shape[1] > 256 else 1.0), *rest

    monkeypatch.setattr(flash, "_stock", wrong)
    for row in small_ops(length=300, tokens=300, gates="sdpa-headwise").rows:
        if "flash" in row.candidate and row.is_own and row.what == "ops":
            assert row.contract.startswith("FAIL output: error") and (row.median_ms, row.ratio) == (None, None), row
        elif row.what == "ops":
            assert row.contract == "holds" and row.ratio > 0 and "gatelab flash" not in row.against


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
    layers = [row for row in rows if row.is_own and row.work.endswith("layer")]
    assert layers and all(row.contract.startswith("FAIL output") and row.ratio is None for row in layers)


def test_the_kernels_that_decode_are_what_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gated_decode.IMPLEMENTATIONS["reference"]
    monkeypatch.setattr(gated_decode.split, "unserved", lambda *_: None)
    monkeypatch.setitem(gated_decode.IMPLEMENTATIONS, "split", lambda *given, **slots: right(*given, **slots) * 1.02)
    shape = {"batch": "2", "cache": "9", "heads": 4, "kv_heads": 2, "head_dim": 8, "seconds": 120.0}
    rows = [row for row in benchmark("decode", plan("decode", "cpu", shape), lambda _: None).rows if row.is_own]
    assert {row.work.rpartition(", ")[2] for row in rows} == {"a layer", "attention alone"}
    assert all(row.contract.startswith("FAIL output") and row.ratio is None for row in rows)


@pytest.mark.parametrize("wrong", ["first_token_mass", "sink_importance", "attention_entropy", "attention_focus"])
def test_wrong_probes_fail(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    pytest.importorskip("transformers")
    from gatelab.bench import probe

    right = probe._watched

    def watched(model: Any, ids_BT: torch.Tensor, statistic: str, **weights: torch.Tensor) -> torch.Tensor:
        return right(model, ids_BT, statistic, **weights) * (1.001 if statistic == wrong else 1.0)

    assert wrong in probe.STATISTICS and len(probe.STATISTICS) == 4
    monkeypatch.setattr(probe, "_watched", watched)
    rows = benchmark("probe", plan("probe", "cpu", {"length": "12", "seconds": 120.0}), lambda _: None).rows
    (row,) = [row for row in rows if row.candidate == "probes"]
    assert row.contract.startswith(f"FAIL {wrong}: error") and row.ratio is None and row.median_ms is None
    assert all(row.median_ms > 0 for row in rows if row.candidate != "probes")


def test_statistics_of_a_wrong_pass_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all four what the probes say is compared, and not their name."""
    pytest.importorskip("transformers")
    from gatelab.bench import probe

    model, ids_BT = probe._model("cpu"), torch.arange(48)[None]
    weights = dict(model.named_parameters())
    found = [probe._watched(model, ids_BT, s, **weights) for s in probe.STATISTICS]
    wanted = [probe._of_matrices(model, ids_BT, s, **weights) for s in probe.STATISTICS]
    assert all(f.shape == (4, 4) for f in found)
    for i, f in enumerate(found):
        assert [torch.allclose(f, w, rtol=1e-5) for w in wanted] == [i == j for j in range(4)]


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_runs_that_begin_otherwise_than_alone_have_no_ratio(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    from gatelab.bench import train

    right = train._group

    def other_seeds(given: Any, arm: Any) -> Any:
        group = right(given, arm)
        if arm.runs > 1:
            with torch.no_grad():
                group.members[wrong].model.embedding.weight.mul_(3.0)
        return group

    monkeypatch.setattr(train, "_group", other_seeds)
    alone, together = benchmark("train", plan("train", "cpu", SMALL_RUNS | {"group": 3}), lambda _: None).rows
    said = "FAIL first loss: " if wrong == 0 else f"FAIL first loss of run {wrong}: "
    assert together.candidate == "3 at once" and together.contract.startswith(said)
    assert (together.median_ms, together.ratio, alone.ratio) == (None, None, 1.0)


def test_steps_are_timed_as_studies_take_them_and_the_first_stands_to_be_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gatelab.bench import train
    from gatelab.train import loop

    ahead: list[int] = []
    judged_step, take = train.first_step, train._Steps.take

    def look(group: Any, *args: Any) -> Any:
        ahead.append(group.ahead)
        return judged_step(group, *args)

    def taken(steps: Any, n: int) -> None:
        take(steps, n)
        ahead.append(steps._steps.gi_frame.f_locals["group"].ahead)

    monkeypatch.setitem(loop.AHEAD, "cpu", 1)
    monkeypatch.setattr(train, "first_step", look)
    monkeypatch.setattr(train._Steps, "take", taken)
    (row,) = benchmark("train", plan("train", "cpu", SMALL_RUNS), lambda _: None).rows
    assert row.contract == "holds" and ahead[0] == 0 and set(ahead[1:]) == {1}


def test_a_run_of_many_whose_gradient_alone_is_wrong_has_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatelab.train import stack

    right = stack.target_losses

    def halved(model: Any, M: int, *rest: Any, **named: Any) -> torch.Tensor:
        loss_M = right(model, M, *rest, **named)
        last = torch.arange(M) == M - 1
        return torch.where(last, loss_M.detach() + (loss_M - loss_M.detach()) / 2, loss_M)

    monkeypatch.setattr(stack, "target_losses", halved)
    alone, together = benchmark("train", plan("train", "cpu", SMALL_RUNS | {"group": 4}), lambda _: None).rows
    assert together.contract.startswith("FAIL gradient norm of run 3: ") and together.ratio is None
    assert alone.contract == "holds"


def test_which_of_many_runs_are_held_to_their_own_steps_alone() -> None:
    from gatelab.bench.held_training import judged_runs

    assert [judged_runs(n) for n in (1, 2, 3, 4, 64)] == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 32, 63]]


def test_a_model_whose_reference_takes_all_the_time_is_given_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatelab.bench import held_training

    begun: list[str] = []
    monkeypatch.setattr(held_training, "Unstacked", lambda *_: begun.append("a model"))
    monkeypatch.setattr(timing.Budget, "left", property(lambda self: 0.0 if begun else 60.0))
    first, *others = benchmark(
        "train", plan("train", "cpu", SMALL_RUNS | {"gates": "sdpa-headwise"}), lambda _: None
    ).rows
    assert begun == ["a model"] and first.contract == timing.OVER
    assert [row.contract for row in others] == [timing.OVER]


@pytest.mark.parametrize("factor", [3.0, 1.01])
def test_training_through_a_wrong_gate_fails_and_has_no_ratio(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = op.IMPLEMENTATIONS["sdpa"]

    def wrong(q: Any, k: Any, v: Any, logits: Any, gate: Any, s: Any) -> torch.Tensor:
        return right(q, k, v, logits, gate, s) * (1.0 if gate is None else factor)

    monkeypatch.setitem(op.IMPLEMENTATIONS, "sdpa", wrong)
    given = {"sizes": "16x1x2x32", "context": 8, "tokens": 16, "steps": 1, "group": 2, "seconds": 120.0}
    rows = benchmark("train", plan("train", "cpu", given), lambda _: None).rows
    assert len(rows) == 6
    for row in rows:
        if row.gate == "none":
            assert row.contract == "holds" and row.ratio > 0
        else:
            assert row.contract.startswith("FAIL ") and (row.median_ms, row.ratio, row.mfu, row.goal) == (None,) * 4


def test_training_with_a_wrong_gradient_alone_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    right = op.IMPLEMENTATIONS["sdpa"]
    monkeypatch.setitem(op.IMPLEMENTATIONS, "sdpa", lambda q, k, *rest: right(q, k.detach(), *rest))
    given = {"sizes": "16x1x2x32", "context": 8, "tokens": 16, "steps": 1, "gates": "none", "seconds": 120.0}
    (row,) = benchmark("train", plan("train", "cpu", given), lambda _: None).rows
    assert row.contract.startswith("FAIL gradient norm") and row.median_ms is None


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


def test_what_cannot_fit_or_end_in_time_is_rows_and_not_begun(tmp_path: Path) -> None:
    out = ("--device", "cpu", "--out", tmp_path / "out", "--json")
    for words, said in (
        (("ops", "--tokens", 10**12, "--length", 10**12), "needs"),
        (
            ("ops", "--tokens", 2**22, "--length", 2**22, "--heads", 1, "--head-dim", 2, "--gates", "none"),
            "takes at least",
        ),
        (("decode", "--cache", 10**13), "needs"),
        (("decode", "--heads", 10**6, "--batch", 1), "needs"),
        (("train", "--sizes", "70b"), "needs"),
        (("train", "--sizes", "30m", "--tokens", 2**12, "--seconds", 1), "takes at least"),
    ):
        status, printed, err = gatelab("bench", *words, *out)
        rows = [json.loads(line) for line in printed.splitlines()]
        timed = [row for row in rows if "median_ms" in row]
        assert {row["candidate"] for row in timed} <= {"a decoder layer"}, words
        assert all(row["contract"].startswith(f"not run: {said}") for row in rows if row not in timed), (words, rows)
        assert rows and status == (0 if timed else 1) and ("nothing was timed" in err) == (not timed)
    assert not list((tmp_path / "out").glob("train*")) and not list((tmp_path / "out").glob("decode*"))


def test_a_length_of_the_probes_that_cannot_end_in_time_is_not_begun(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    words = ("--length", 3_000_000, "--seconds", 3, "--device", "cpu", "--out", tmp_path, "--json")
    status, out, err = gatelab("bench", "probe", *words)
    contracts = {row["candidate"]: row["contract"] for row in map(json.loads, out.splitlines())}
    assert status == 1 and "nothing was written" in err and list(tmp_path.glob("probe*")) == []
    assert "takes at least" in contracts["no probes"] and "needs" in contracts["all matrices"]


@pytest.mark.parametrize("text", ["[{", "{}", None])
def test_results_that_cannot_be_added_to_are_told_before_the_time_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    page, data = places("ops", "x86_64 CPU", utc_now(), tmp_path)
    if text is None:
        page.mkdir()
    else:
        page.write_text("# before\n")
        data.write_text(text)
    monkeypatch.setattr(ops, "measure", lambda *_: pytest.fail("it was begun"))
    status, out, err = bench("ops", tmp_path)
    assert (status, out) == (2, "") and (page.name if text is None else data.name) in err and "Traceback" not in err
    if text is not None:
        # Nor is one of the two files written without the other.
        found = Benchmark("ops", "x86_64 CPU", [], [], {"utc": utc_now()})
        with pytest.raises(ConfigError, match=data.name):
            write(found, tmp_path)
        assert page.read_text() == "# before\n" and data.read_text() == text


def test_an_attention_that_serves_nothing_here_is_told_before_anything_is_written(tmp_path: Path) -> None:
    status, out, err = bench("train", tmp_path / "out", "--attention", "hopper")
    assert (status, out) == (2, "") and "--attention hopper: impl='hopper'" in err
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_kept_for_the_backward_pass_is_the_operators_promise() -> None:
    rows = [row for row in small_ops().rows if row.what == "ops" and row.work == "forward + backward"]
    of_q, of_kv, of_lse = 24 * 4 * 8 * 4, 24 * 2 * 8 * 4, 24 * 4 * 4
    logits = {"none": 0, "sdpa-headwise": 24 * 4 * 4, "sdpa-elementwise": of_q}
    for row in rows:
        if row.candidate in ("gatelab flash", "gatelab flash-lean"):
            # q, k, v, the output, the log-sum-exp; flash keeps what the gate multiplies beside its product.
            twice = of_q if row.candidate == "gatelab flash" and row.gate != "none" else 0
            kept = 2 * of_q + 2 * of_kv + of_lse + logits[row.gate]
            assert row.kept_mib == (kept + twice) / 2**20, row
            assert row.kept_goal_mib == (None if row.gate == "none" else kept / 2**20)
            verdict = judged([row], "NVIDIA H100")[0]
            if row.gate != "none":
                assert verdict.goal == "keeps at most ungated + gate logits"
                assert verdict.met == ("missed" if twice else "met")
        elif row.candidate == "gatelab sdpa":
            assert row.kept_mib > (row.kept_goal_mib or 0) and judged([row], "NVIDIA H100")[0].goal is None


def test_qwens_gate_is_what_its_own_module_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of transformers' module, caught between its rotation and its output projection."""
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

    config = Qwen3NextConfig(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8, attn_implementation="sdpa"
    )
    torch.manual_seed(0)
    layer, caught = module.Qwen3NextAttention(config, layer_idx=0), {}
    right = module.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def catch(self: Any, q: Any, k: Any, v: Any, *rest: Any, **known: Any) -> Any:
        caught.update(q_BTHK=q.transpose(1, 2), k_BSGK=k.transpose(1, 2), v_BSGK=v.transpose(1, 2))
        return right(self, q, k, v, *rest, **known)

    monkeypatch.setitem(module.ALL_ATTENTION_FUNCTIONS, "sdpa", catch)
    layer.o_proj.register_forward_pre_hook(lambda _, given: caught.update(gated_BTN=given[0]))
    layer.q_proj.register_forward_hook(lambda _, __, out: caught.update(out_BTN=out))
    angles_BTK = torch.rand(1, 6, 8)
    layer(torch.randn(1, 6, 16), (angles_BTK.cos(), angles_BTK.sin()), attention_mask=None)
    logits_BTHK = caught.pop("out_BTN").unflatten(-1, (4, 16))[..., 8:]
    gated_BTN = caught.pop("gated_BTN")
    found_BTHK = candidates._qwen3_next(**caught, gate_logits_BTHK=logits_BTHK)
    assert torch.equal(found_BTHK.flatten(-2), gated_BTN)


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
