"""`benchmarks/ops/gate_tiles.py`: the whole of it on a small shape, in Triton's interpreter, and the table that it writes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ops" / "gate_tiles.py"
KERNELS = Path(__file__).parents[2] / "gatelab" / "ops" / "gate_apply" / "kernels.py"
# The script is not imported here: what it imports would stay interpreted, or not, for other tests.
ADOPT = """
import sys; sys.path.insert(0, {folder!r})
from pathlib import Path
import gate_tiles
from gatelab.ops.gate_apply import kernels
tiles = {{key: kernels.Tile(512, 1) for key in kernels.TILES}}
tiles["back", "headwise", True] = kernels.Tile(1024, 2, True, "evict_first")
gate_tiles.adopt(Path({copy!r}), tiles)
"""


def run(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_kernel_and_every_part_is_timed(tmp_path: Path) -> None:
    out = tmp_path / "tiles.json"
    printed = run(str(SCRIPT), "--device", "cpu", "--seconds", "100", "--out", str(out))
    found = json.loads(out.read_text(encoding="utf-8"))
    assert not any(found[what] for what in ("broken", "failed", "not_reached")) and found["table"] in printed
    assert len(found["coarse"]) == len(found["finals"]) == 6 and len(found["parts"]) == 2
    for row in (tables["8"] for tables in found["finals"].values()):
        assert {"today's", "peer"} < set(row) and all(r["to today's"]["ms"] > 0 for r in row.values())
    lean = found["parts"]["headwise, back, flash-lean"]["L2 overwritten"]
    assert {"peer, dlogits alone", "parts: without the sum", "parts: without writing y"} < set(lean)


def test_a_table_is_written_in_the_place_of_the_old(tmp_path: Path) -> None:
    copy = tmp_path / "kernels.py"
    before = KERNELS.read_text(encoding="utf-8")
    copy.write_text(before, encoding="utf-8")
    run("-c", ADOPT.format(folder=str(SCRIPT.parent), copy=str(copy)))
    after = copy.read_text(encoding="utf-8")
    line = '    ("back", "headwise", True): Tile(1024, 2, is_apart=True, hint="evict_first"),'
    assert line in after.splitlines() and after.count("): Tile(512, 1),") == 5
    (head, _, rest), (new_head, _, new_rest) = (text.partition("TILES = {") for text in (before, after))
    assert new_head == head and new_rest.partition("\n}\n")[2] == rest.partition("\n}\n")[2]
