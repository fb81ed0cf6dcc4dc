"""A model whose weights no memory here holds is refused before anything is written; what may do is not."""

import os
from types import SimpleNamespace

import pytest
from test_cli import gatelab

from gatelab.config import ConfigError, Execution, parse_assignments
from gatelab.lab import check_room, check_room_left, plan, save_plan
from gatelab.lab.room import _host
from gatelab.store import write_json


def planned(n, name="abc"):
    return SimpleNamespace(cell="text", arm="none", fingerprint=name, n_parameters=n)


def check(n, room, tmp_path, **how):
    check_room([planned(n)], Execution(device="cpu"), tmp_path, host_bytes=lambda: room, **how)


def test_weights_that_are_more_than_the_memory_are_refused_with_both(tmp_path):
    with pytest.raises(
        ConfigError, match=r"text / none: 6,000,000,000 parameters are 24\.0 GB .* has 23\.9 GB of memory"
    ):
        check(6 * 10**9, 23_900_000_000, tmp_path)
    check(6 * 10**9, 24_000_000_000, tmp_path)
    check(6 * 10**9, 0, tmp_path)  # not known


def test_run_that_is_done_needs_no_room(tmp_path):
    (tmp_path / "runs" / "abc").mkdir(parents=True)
    (tmp_path / "runs" / "abc" / "done.json").write_text("{}")
    check(10**15, 1, tmp_path)


def test_address_is_not_asked_what_is_done_there():
    check_room([planned(10**15)], Execution(device="cpu"), "s3://bucket/study", host_bytes=pytest.fail)


def test_swap_counts_where_the_system_tells_it(monkeypatch):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for text, swap in (("MemTotal: 5 kB\nSwapTotal:   3 kB\n", 3072), ("MemTotal: 5 kB\n", 0)):
        monkeypatch.setattr("gatelab.lab.room.Path.read_text", lambda path, text=text: text)
        assert _host() == memory + swap


def test_folder_that_another_machine_planned_is_refused_but_for_what_is_done(tmp_path, monkeypatch):
    words = ("quickstart", "execution.device=cpu", "train.tokens=2000", "seed=0")
    folder = save_plan(plan(words[0], parse_assignments(words[1:])), tmp_path / "m3")
    content = folder.study()
    for entry in content["plan"]:
        entry["n_parameters"] = 10**15
    write_json(folder.path / "study.json", content)
    said = gatelab("run", folder.path)
    assert said.status == 2 and "4,000,000.0 GB of float32 weights alone" in said.err
    assert not list(folder.path.glob("runs/*/attempts/*"))
    for _, run in folder.planned():
        (run.path / "done.json").write_text("{}")
    check_room_left(folder, Execution(device="cpu"), host_bytes=pytest.fail)


def test_small_model_asks_nobody(tmp_path):
    check_room([planned(10**6)], Execution(device="cpu"), tmp_path, host_bytes=pytest.fail)


@pytest.mark.parametrize(("parallel", "is_refused"), [({}, True), ({"shard": "zero3"}, False), ({"tp": 4}, False)])
def test_gpus_that_share_weights_have_room_together(tmp_path, monkeypatch, parallel, is_refused):
    monkeypatch.setattr("gatelab.lab.room.devices_for", lambda execution: ["0", "1", "2", "3"])
    execution = Execution(processes=4, parallel=parallel)
    asked = ([planned(30 * 10**9)], execution, tmp_path)
    if is_refused:
        with pytest.raises(ConfigError, match=r"this machine's GPU has 80\.0 GB"):
            check_room(*asked, gpu_bytes=lambda: 80 * 10**9)
    else:
        check_room(*asked, gpu_bytes=lambda: 80 * 10**9)
        with pytest.raises(ConfigError, match=r"its 4 GPUs have 40\.0 GB"):
            check_room(*asked, gpu_bytes=lambda: 10 * 10**9)


@pytest.mark.parametrize("words", [("train",), ("run", "quickstart")])
def test_command_refuses_before_anything_is_written(tmp_path, words):
    said = gatelab(*words, "model.d_model=1000000", "execution.device=cpu", "--out", tmp_path / "out")
    assert said.status == 2 and "GB of float32 weights alone" in said.err and not (tmp_path / "out").exists()
