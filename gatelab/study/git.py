"""The state of the code that runs, where it is a git checkout."""

import subprocess
from pathlib import Path


def git_state(folder: Path) -> dict[str, object] | None:
    """Commit and whether files differ from it; None outside of a checkout or without git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(git("status", "--porcelain", "--untracked-files=no"))}
