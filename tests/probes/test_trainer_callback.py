"""ProbeCallback: looks in a training by transformers' Trainer, which is bit for bit the one without them."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_llama import V, ids, llama
from torch import Tensor, nn

from gatelab import GatedAttention
from gatelab.probes.external import observe
from gatelab.probes.training import gradient_rows, read_rows
from gatelab.record import Row

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def probe(**given: Any) -> Any:
    from gatelab.probes.training import ProbeCallback

    return ProbeCallback(**{"heldout": ids(), "every": 2, "names": ["sinks", "massive"]} | given)


def trainer(folder: Path, model: nn.Module, steps: int = 4, **changes: Any) -> Any:
    args = {
        "max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 0.05, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
    } | changes  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in ids(32, seed=2)]
    own = transformers.Trainer(model, transformers.TrainingArguments(str(folder / "run"), **args), train_dataset=data)
    own.remove_callback(transformers.PrinterCallback)
    return own


def steps_of(rows: list[Row], metric: str = "first_token_mass") -> list[int]:
    """The steps at which the model's row of a metric is there, as often as it is."""
    return [r.step for r in rows if r.metric == metric and r.layer is None]


def losses(own: Any) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in own.state.log_history if "loss" in entry]


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_the_training_is_bit_for_bit_the_one_without(changes: dict[str, Any], tmp_path: Path) -> None:
    plain = trainer(tmp_path, llama(), **changes)
    plain.train()
    watched = trainer(tmp_path, llama(), **changes)
    watched.add_callback(probe(every=1, names=None, path=tmp_path / "rows.jsonl", log=watched.log))
    watched.train()
    before = llama().state_dict()
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weight, watched.model.state_dict()[name])
        assert not torch.equal(weight, before[name])
    assert losses(plain) == losses(watched) and len(losses(plain)) == 4
    assert all(m.training for m in watched.model.modules())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_goes_on(tmp_path: Path) -> None:
    model = llama()
    model.gradient_checkpointing_enable()
    own = trainer(tmp_path, model, steps=2)
    own.add_callback(probe(path=tmp_path / "rows.jsonl"))
    own.train()
    assert steps_of(read_rows(tmp_path / "rows.jsonl")) == [0, 2]
    assert model.is_gradient_checkpointing and losses(own)


def test_it_looks_before_the_first_step_and_after_the_last(tmp_path: Path) -> None:
    own = trainer(tmp_path, llama(), steps=5, run_name="mine")
    own.add_callback(probe(path=tmp_path / "deep" / "rows.jsonl"))
    own.train()
    rows = read_rows(tmp_path / "deep" / "rows.jsonl")
    assert steps_of(rows) == [0, 2, 4, 5]
    own.model.eval()
    with torch.no_grad(), observe(own.model, ["sinks", "massive"]) as recorder:
        own.model(ids())
    assert [r for r in rows if r.step == 5 and r.source != "gradients"] == recorder.rows("mine", 5)
    first = {r.layer: r.value for r in rows if r.step == 0 and r.metric == "massive_max"}
    last = {r.layer: r.value for r in rows if r.step == 5 and r.metric == "massive_max"}
    assert first.keys() == last.keys() and all(first[layer] != last[layer] for layer in first)


def test_gradient_norms_are_those_before_the_step(tmp_path: Path) -> None:
    class Gradients(transformers.TrainerCallback):
        rows: list[Row] = []  # noqa: RUF012

        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            self.rows += gradient_rows(model, "run", state.global_step + 1)

    own = trainer(tmp_path, llama(), steps=5)
    own.add_callback(Gradients())
    own.add_callback(probe(path=tmp_path / "rows.jsonl"))
    own.train()
    found = [r for r in read_rows(tmp_path / "rows.jsonl") if r.source == "gradients"]
    assert found == [r for r in Gradients.rows if r.step in (2, 4, 5)]
    assert {r.step for r in found} == {2, 4, 5} and all(r.value > 0 for r in found)


def test_the_trainers_log_has_the_numbers_and_all_its_own(tmp_path: Path) -> None:
    own = trainer(tmp_path, llama())
    own.add_callback(probe(path=tmp_path / "rows.jsonl", log=own.log))
    own.train()
    entries = {e["step"]: e for e in own.state.log_history if "probe/first_token_mass" in e}
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {s: e["probe/first_token_mass"] for s, e in entries.items()} == {
        r.step: r.value for r in rows if r.metric == "first_token_mass" and r.layer is None
    }
    assert "probe/sink_rate" in entries[4] and "probe/massive_ratio" in entries[4]
    assert [step for step, _ in losses(own)] == [1, 2, 3, 4]


def test_texts_of_two_lengths_are_logged_as_their_mean(tmp_path: Path) -> None:
    def tokenizer(text: str, *, max_length: int, **_: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[ord(c) % V for c in text[:max_length]]])}

    logged: list[dict[str, float]] = []
    own = trainer(tmp_path, llama(), steps=1)
    own.add_callback(
        probe(heldout=["a sentence", "another one"], tokenizer=tokenizer, path=tmp_path / "x.jsonl", log=logged.append)
    )
    own.train()
    at_end = [r.value for r in read_rows(tmp_path / "x.jsonl")
              if (r.step, r.metric, r.layer) == (1, "first_token_mass", None)]  # fmt: skip
    assert len(at_end) == 2 and logged[-1]["probe/first_token_mass"] == pytest.approx(sum(at_end) / 2)


def test_a_training_that_is_stopped_is_looked_at_where_it_stops(tmp_path: Path) -> None:
    class Stop(transformers.TrainerCallback):
        def on_log(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3

    own = trainer(tmp_path, llama(), steps=6)
    own.add_callback(Stop())
    own.add_callback(probe(path=tmp_path / "rows.jsonl"))
    own.train()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert steps_of(rows) == [0, 2, 3]
    assert {r.step for r in rows if r.source == "gradients"} == {2}
    assert len({tuple(r.as_dict().items()) for r in rows}) == len(rows)


def test_a_resumed_training_takes_back_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first = trainer(tmp_path, llama(), steps=4, save_strategy="steps", save_steps=2)
    first.add_callback(probe(path=path))
    first.train()
    with open(path, "a") as file:
        file.write('{"run": "half a li')
    want = read_rows(path)
    second = trainer(tmp_path, llama(), steps=4, save_strategy="steps", save_steps=2)
    second.add_callback(probe(path=path))
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert steps_of(want) == [0, 2, 4] and read_rows(path) == want


def test_a_file_of_another_training_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("somebody's\n")
    own = trainer(tmp_path, llama())
    own.add_callback(probe(path=path))
    with pytest.raises(ValueError, match=r"rows\.jsonl is there already; name a new file, or resume"):
        own.train()
    assert path.read_text() == "somebody's\n"


def test_training_twice_does_not_take_back_the_first(tmp_path: Path) -> None:
    own = trainer(tmp_path, llama(), steps=2)
    own.add_callback(probe(path=tmp_path / "rows.jsonl"))
    own.train()
    with pytest.raises(ValueError, match="is there already"):
        own.train()
    assert steps_of(read_rows(tmp_path / "rows.jsonl")) == [0, 2]


def test_only_the_main_process_looks(tmp_path: Path) -> None:
    callback, model = probe(path=tmp_path / "rows.jsonl"), llama()
    state = SimpleNamespace(is_world_process_zero=False, global_step=2, max_steps=4)
    control = SimpleNamespace(should_training_stop=True)
    for event in ("on_train_begin", "on_pre_optimizer_step", "on_step_end", "on_epoch_end", "on_train_end"):
        getattr(callback, event)(SimpleNamespace(), state, control, model=model)
    assert not list(tmp_path.iterdir())


def test_gradients_that_cannot_be_read_are_said_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback, model = probe(path=tmp_path / "rows.jsonl"), llama()
    args = SimpleNamespace(bf16=False, fp16=False, deepspeed="zero2.json", max_grad_norm=1.0, run_name="x")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=4)
    callback.on_train_begin(args, state, SimpleNamespace(should_log=False), model=model)
    state.global_step = 1
    callback.on_pre_optimizer_step(args, state, None, model=model)
    assert "no gradient norms: DeepSpeed keeps the gradients to itself" in caplog.text
    assert callback._gradients == []


class Own(nn.Module):
    """Somebody's module, as the Trainer takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, 16), nn.Linear(16, V)
        self.attention = GatedAttention(d_model=16, n_heads=4, n_kv_heads=2, gate="sdpa-headwise")

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        x_BTD = self.embedding(input_ids)
        logits_BTV = self.head(x_BTD + self.attention(x_BTD))
        if labels is None:
            return logits_BTV
        return {"loss": nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


def test_gates_in_somebodys_own_module_are_probed_by_the_trainer(tmp_path: Path) -> None:
    own = trainer(tmp_path, Own(), steps=2)
    own.add_callback(probe(names=["gate_scores"], path=tmp_path / "rows.jsonl", log=own.log))
    own.train()
    rows = read_rows(tmp_path / "rows.jsonl")
    assert steps_of(rows, "gate_mean") == [0, 2] and steps_of(rows, "gate_grad_share") == [2]
    logged = {name for entry in own.state.log_history if entry["step"] == 2 for name in entry}
    assert {"probe/gate_mean/sdpa", "probe/gate_grad_share/sdpa"} <= logged


@pytest.mark.parametrize(
    "given, message",
    [
        ({"heldout": ["a text"], "log": print}, "are texts; give their tokenizer too"),
        ({"every": 0, "log": print}, "every=0: expected a number of steps"),
        ({"log": "wandb"}, "log='wandb': expected a function of a dictionary"),
        ({}, "the rows would go nowhere; give path="),
    ],
)
def test_a_callback_that_could_not_work_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe(**given)


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = Row("a", 1, "sinks", "sink_rate", float("inf"), "share", layer=2)
    path.write_text(json.dumps(row.as_dict()) + "\n")
    assert read_rows(path) == [row]
    path.write_text('{"run": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: is no row"):
        read_rows(path)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent.parent / "examples" / "probe_while_training.py"
    spec = importlib.util.spec_from_file_location("probe_while_training", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(steps=3, every=2)
    assert [steps_of(rows) for rows in found.values()] == [[0, 2], [0, 2, 3]]
    assert {"layer_grad_norm", "gate_grad_share", "gate_mean"} <= {r.metric for r in found["own loop"]}
    assert "first-token mass" in capsys.readouterr().out
