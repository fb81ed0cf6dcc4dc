"""docs/adding.md is true: its diffs apply to this package, and what they add is there and works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
SECTIONS = {s.splitlines()[0]: s for s in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
ADDED = {
    "An activation": ("activation", "hard_sigmoid"),
    "An output map": ("output-map", "unit"),
    "A normaliser": ("normaliser", "relu"),
    "A source": ("source", "magnitude"),
    "A site": ("site", "turned"),
    "A task": ("task", "reverse"),
}

# Runs each proof by itself, so that one that fails hides no other.
RUNNER = """
import json, pathlib, sys, traceback
import gatelab
assert pathlib.Path(gatelab.__file__).is_relative_to(pathlib.Path.cwd()), gatelab.__file__
said = {}
for name, code in json.load(sys.stdin).items():
    try:
        exec(compile(code, name, "exec"), {})
        said[name] = ""
    except Exception:
        said[name] = traceback.format_exc()
from gatelab import catalogue
said["listed"] = [(r["kind"], r["name"]) for records in catalogue.gate_catalogue().values() for r in records]
said["listed"] += [("task", r["name"]) for r in catalogue.task_records()]
print(json.dumps(said))
"""


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], flags=re.DOTALL)


def patched(folder: Path, diff: str, *options: str) -> subprocess.CompletedProcess[str]:
    patch = shutil.which("patch")
    if patch is None:
        pytest.skip("no `patch` here to apply the diffs with")
    return subprocess.run(
        [patch, "-p1", "--batch", "--forward", *options],
        input=diff,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def copied(folder: Path) -> Path:
    shutil.copytree(ROOT / "gatelab", folder / "gatelab", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the proofs say in a copy of the package that has all the additions."""
    folder = copied(tmp_path_factory.mktemp("added"))
    for section in SECTIONS:
        done = patched(folder, blocks(section, "diff")[0])
        assert done.returncode == 0, f"{section}: {done.stdout}"
    proofs = {section: blocks(section, "python")[0] for section in SECTIONS}
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER], input=json.dumps(proofs), cwd=folder, env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_section_has_one_diff_and_one_proof():
    assert len(SECTIONS) == 7
    for section in SECTIONS:
        assert (len(blocks(section, "diff")), len(blocks(section, "python"))) == (1, 1), section


@pytest.mark.parametrize("section", SECTIONS)
def test_the_diff_applies_alone_and_needs_no_guessing(section: str, tmp_path: Path):
    done = patched(copied(tmp_path), blocks(section, "diff")[0], "--fuzz=0")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("section", SECTIONS)
def test_what_was_added_works(section: str, said: dict):
    assert said[section] == "", said[section]


@pytest.mark.parametrize("section", ADDED)
def test_what_was_added_is_in_the_catalogue(section: str, said: dict):
    assert list(ADDED[section]) in said["listed"]


def test_without_the_diffs_no_proof_holds():
    """Else it would prove nothing."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    proofs = json.dumps({section: blocks(section, "python")[0] for section in SECTIONS})
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=proofs, cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout.splitlines()[-1])
    assert all(said[section] for section in SECTIONS)


def test_the_tables_of_the_page_are_those_of_the_package():
    for name, file in re.findall(r"`([A-Z_]+)`, ([\w/.]+\.py)", TEXT):
        assert re.search(rf"^{name}\b", (ROOT / "gatelab" / file).read_text(encoding="utf-8"), flags=re.MULTILINE), name
