"""An archive as a result's page has it, of planted runs."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def planted(folder: Path, runs: Iterable[Mapping[str, Any]], screened_seeds: list[int] | None = None) -> Path:
    """Write folder.tar.xz of runs with cell, arm, seed, config (`run` of run.json), rows and status (None: not ended), and with a
    confirmation where a screen had seeds of its own."""
    files, plan = {}, []
    for i, run in enumerate(runs):
        name = f"runs/{i:012x}"
        plan.append({"cell": run["cell"], "arm": run["arm"], "seed": run["seed"], "fingerprint": f"{i:012x}"})
        files[f"{name}/run.json"] = json.dumps({"run": run["config"]})
        files[f"{name}/rows.jsonl"] = "\n".join(map(json.dumps, run["rows"]))
        if run.get("status", "done") is not None:
            files[f"{name}/done.json"] = json.dumps({"status": run.get("status", "done")})
    files["study.json"] = json.dumps({"plan": plan})
    if screened_seeds is not None:
        files["confirmation.json"] = json.dumps({"screened_seeds": screened_seeds})
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "folder.tar.xz", "w:xz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"study/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return folder


def losses(*values: float) -> list[dict[str, Any]]:
    """Rows of the held-out loss, at steps 0, 1, …"""
    return [{"metric": "val_loss", "step": step, "value": value} for step, value in enumerate(values)]
