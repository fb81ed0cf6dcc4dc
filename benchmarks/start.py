"""How fast the command line answers: `gatelab --help` and `gatelab status` as whole processes. Goal: under 0.5 s each."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gatelab.store import StudyFolder

GATELAB = str(Path(sys.executable).with_name("gatelab"))
RUNS = 300


def study(folder: Path) -> None:
    """A study of 300 planned runs."""
    plan = [
        {
            "cell": f"cell {i // 12}",
            "arm": f"arm {i // 3 % 4}",
            "seed": i % 3,
            "fingerprint": f"{i:012x}",
            "n_parameters": 1,
        }
        for i in range(RUNS)
    ]
    StudyFolder.create(folder, {"name": "benchmark", "plan": plan})


def seconds(words: list[str], repeats: int = 9) -> list[float]:
    """Wall seconds of the command, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([GATELAB, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    """Print median and spread of each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        study(folder)
        for words in (["--help"], ["status", str(folder)]):
            times = seconds(words)
            shown = words[0] if words[0] == "--help" else f"status ({RUNS} runs)"
            print(
                f"gatelab {shown}: median {statistics.median(times):.3f} s, {min(times):.3f} to {max(times):.3f} (goal 0.5)"
            )


if __name__ == "__main__":
    main()
