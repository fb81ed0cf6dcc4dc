"""docs/probes.md says what the tables say: every kind of intervention with its doses and control, every family by its path."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from gatelab.probes.interventions import KINDS, parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "probes.md").read_text(encoding="utf-8")
EXAMPLES = {"": "", "key": "@first", "site": "", "factor": "=0.5", "score": "=open", "id": "=0", "limit": "=100x"}


def line(kind: str) -> str:
    """The row of a kind, as the page has to have it."""
    form = KINDS[kind].kinds[kind]
    edit = parse(kind + EXAMPLES[form.at] + EXAMPLES[form.value])
    try:
        control = f"`{edit.control().word}`"
    except ValueError:
        control = "is one"
    return f"| `{edit.word}` | {form.what} | {', '.join(f'{dose:g}' for dose in form.doses)} | {control} |"


def paths() -> dict[str, tuple[int, set[str]]]:
    """The page's table by path: how many configurations, and which families."""
    rows = re.findall(r"^\| (registry|intercepted|none): [^|]*\| (\d+) \| ([^|]*) \|$", TEXT, flags=re.MULTILINE)
    return {path: (int(n), set(re.sub(r" \(\d+\)", "", names).split(", "))) for path, n, names in rows}


def test_the_table_of_kinds_is_that_of_the_package_in_its_order() -> None:
    body = TEXT.split("| word, for example |")[1].split("\n\n")[0].splitlines()[2:]
    assert body == [line(kind) for kind in KINDS]


def test_every_family_stands_on_the_path_by_which_it_is_seen() -> None:
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("families_of_the_page", ROOT / "tests" / "probes" / "families.py")
    families = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    variants = {"falcon_grouped": "falcon", "falcon_alibi": "falcon"}
    for path, (n, names) in paths().items():
        expected = [name for name, family in families.FAMILIES.items() if family.path == path]
        assert n == len(expected) and names == {variants.get(name, name) for name in expected}
    assert sum(n for n, _ in paths().values()) == len(families.FAMILIES)


def test_its_code_is_code_and_imports_what_is_there() -> None:
    import gatelab.probes.training as training

    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module == training.__name__ and {n.name for n in node.names} <= set(training.__all__)


def test_every_option_and_link_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    from gatelab.cli import _status

    assert _status(["probe", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= known
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`(?:python )?((?:tests|examples)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
