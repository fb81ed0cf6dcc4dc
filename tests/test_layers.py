"""Imports go one way, and what only reads and reports stays light: no torch, no heavy library, in a fresh process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gatelab"
LAYERS = (
    "config", "record", "tasks", "ops", "nn", "models", "data", "train", "probes", "evals", "retrofit", "objects", "mirror",
    "store", "study", "analysis", "report", "catalogue", "bench", "lab", "terminal", "cli",
)  # fmt: skip
# Studies are what a user writes: they name anything, and nothing names them.
ABOVE = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p not in ABOVE and p.parent.name != "studies")
LIGHT = (
    "config", "record", "tasks", "data", "store", "study.study", "study.plan", "study.metrics", "study.git",
    "study.ledger", "study.executor", "study.local", "study.drive", "study.worker", "study.carry_out",
    "study.remaining", "study.ray", "study.slurm", "study.pull", "study.gang", "study.fresh",
    "analysis", "report", "catalogue", "lab", "terminal", "cli",
)  # fmt: skip
HEAVY = {"torch", "scipy", "altair", "duckdb", "tokenizers", "pyarrow", "vl_convert"}


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The parts of gatelab that a file imports anywhere, inside functions too."""
    package = ["gatelab", *path.relative_to(PACKAGE).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*origin, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    return {n.split(".")[1] for n in names if n.startswith("gatelab.")} & set(LAYERS)


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_a_module_imports_only_from_earlier_layers(path: Path):
    own = LAYERS.index(layer_of(path))
    assert not {name for name in imported(path) if LAYERS.index(name) > own}


def test_importing_the_package_loads_nothing_else():
    code = "import sys; before = set(sys.modules); import gatelab; print(*set(sys.modules) - before)"
    new = in_a_fresh_process(code).split()
    assert [name for name in new if name.partition(".")[0] not in sys.stdlib_module_names] == ["gatelab"]


def test_everything_but_the_models_is_imported_without_heavy_libraries():
    modules = ", ".join(f"gatelab.{name}" for name in LIGHT)
    code = f"import sys, {modules}; print(*({HEAVY} & set(sys.modules)))"
    assert in_a_fresh_process(code).split() == []


def test_help_and_status_load_no_torch(tmp_path: Path):
    code = (
        "import sys; from gatelab.cli import _status; from gatelab.store import StudyFolder\n"
        f"StudyFolder.create({str(tmp_path / 'x')!r}, {{'name': 'x', 'plan': []}})\n"
        f"assert (_status(['--help']), _status(['status', {str(tmp_path / 'x')!r}])) == (0, 0)\n"
        f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)"
    )
    assert "Usage: gatelab" in in_a_fresh_process(code)


def test_planning_a_stream_loads_no_torch():
    code = (
        "import sys; from gatelab.cli import _status\n"
        "assert _status(['plan', 'quickstart', 'data=bigram-backcopy']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    assert "nothing was started" in in_a_fresh_process(code)
