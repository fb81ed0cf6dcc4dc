"""What the documents show is true: their code runs, their commands exist, their files are there."""

import importlib.util
import re
from pathlib import Path

import pytest

from gatelab.study.study import Study

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md", "CONTRIBUTING.md", "docs/adding.md", "docs/design.md", "docs/gates.md", "docs/guide.md", "docs/metrics.md",
    "docs/statistics.md",
)  # fmt: skip


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_readme_example_runs_and_prints_the_gate(capsys):
    (code,) = blocks("README.md")
    exec(compile(code, "README.md", "exec"), {})
    assert "gate_mean" in capsys.readouterr().out


def test_the_guide_study_is_a_study_of_thirty_lines():
    code = blocks("docs/guide.md")[0]
    names: dict[str, object] = {}
    exec(compile(code, "docs/guide.md", "exec"), names)
    assert isinstance(names["study"], Study)
    assert len(code.splitlines()) <= 30


def test_every_command_in_the_documents_exists():
    from gatelab.cli import app

    known = (
        set(app.resolved_commands()) if hasattr(app, "resolved_commands") else {c for c in app if not c.startswith("-")}
    )
    for page in PAGES:
        for command in re.findall(r"(?:^|\n|`)(?:\.venv/bin/)?gatelab ([a-z]+)", (ROOT / page).read_text()):
            assert command in known, f"{page} shows `gatelab {command}`"


def test_every_linked_file_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            if not target.startswith("http"):
                assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_make_has_the_two_commands():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


@pytest.mark.parametrize(
    "name, arguments", [("drop_in", {"steps": 2}), ("one_run", {"tokens": 2_048}), ("where_it_looks", {"tokens": 512})]
)
def test_the_examples_run(name, arguments, capsys):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(**arguments)
    assert capsys.readouterr().out
