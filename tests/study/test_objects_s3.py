"""A study on a server that speaks S3's protocol: moto's, on the loopback address of this machine."""

import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import wait_until
from object_study import go, kill_and_go_on, outcomes, runs_of, seen_anew, start_driver, steps, study
from object_tasks import starts
from planted_store import plant

from gatelab.mirror import Mirror
from gatelab.store import StoreError, StudyFolder
from gatelab.study.local import LocalExecutor

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    log = open(tmp_path_factory.mktemp("server") / "log", "wb")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with suppress(OSError):
            return urllib.request.urlopen(f"{url}/moto-api/").status == 200
        return False

    wait_until(answers, "the server answers")
    yield url
    process.kill()
    process.wait()
    log.close()


@pytest.fixture(autouse=True)
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "STUDY_ADDRESS": f"s3://bucket/{tmp_path.name}",
    }
    for name, value in (plant(tmp_path) | told).items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{server}/bucket", method="PUT"))


def test_what_is_created_is_created_once(tmp_path: Path) -> None:
    objects = Mirror(os.environ["STUDY_ADDRESS"], tmp_path / "here")
    objects.check()
    assert objects.create(tmp_path / "here" / "a.json", "", 1)
    assert not objects.create(tmp_path / "here" / "a.json", "", 2)
    assert objects.read("a.json") == b"1\n" and list(objects.names()) == ["a.json"]


def test_no_bucket_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"--out s3://nowhere/x: there is no such bucket; make it first"):
        StudyFolder.at("s3://nowhere/x").check()


def test_of_two_that_begin_at_once_one_begins_the_study(tmp_path: Path) -> None:
    said: dict[str, str] = {}
    together = threading.Barrier(2)

    def begin(name: str) -> None:
        folder = StudyFolder.at(os.environ["STUDY_ADDRESS"], tmp_path / name)
        has_looked: list[bool] = []

        def write(_: object) -> None:
            if not has_looked:  # both have seen that there is none
                has_looked.append(True)
                together.wait(60)
            StudyFolder.create(folder.path, {"name": name, "plan": []})

        try:
            folder.put(write)
            said[name] = "begun"
        except StoreError as error:
            said[name] = str(error)

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = seen_anew().study()["name"]
    (lost,) = {"one", "two"} - {won}
    assert said[won] == "begun" and f"holds the study {won!r}, not {lost!r}" in said[lost]


def test_of_two_that_extend_at_once_the_second_is_told_what_the_first_has_planned(tmp_path: Path) -> None:
    def entry(seed: int) -> dict[str, object]:
        return {"cell": "toy", "arm": "none", "seed": seed, "fingerprint": f"{seed:012x}"}

    one, two = (StudyFolder.at(os.environ["STUDY_ADDRESS"], tmp_path / name) for name in ("one", "two"))
    plan = [entry(0)]
    one.put(lambda _: StudyFolder.create(one.path, {"name": "study", "plan": plan}))
    told: list[frozenset[str]] = []

    def extend(meanwhile: frozenset[str]) -> None:
        told.append(meanwhile)
        there = [e for e in two.study()["plan"] if e["fingerprint"] in meanwhile]
        StudyFolder.create(two.path, {"name": "study", "plan": [*plan, *there, entry(2)]})
        if len(told) == 1:
            one.put(lambda _: StudyFolder.create(one.path, {"name": "study", "plan": [*plan, entry(1)]}))

    two.put(extend)
    assert told == [frozenset(), {entry(1)["fingerprint"]}]
    assert [e["seed"] for e, _ in seen_anew().planned()] == [0, 1, 2]


def test_killed_workers_and_two_drivers(tmp_path: Path) -> None:
    executor = LocalExecutor(slots=2, threads=1, preload=())
    try:
        assert go(study(), executor, "die_once").is_complete
    finally:
        executor.close()
    study(4)
    for driver in [start_driver("meet") for _ in range(2)]:
        driver.communicate()
    there = seen_anew()
    told = [["lost", "done"]] * 2 + [["done"]] * 2
    assert [outcomes(run) for run in runs_of(there)] == told
    assert [len(starts(run)) for run in runs_of(there)] == [len(t) for t in told]
    assert all(steps(there, run) == [1] for run in runs_of(there))


def test_a_real_study_that_is_killed_ends_as_in_a_folder_and_has_its_page(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path)
