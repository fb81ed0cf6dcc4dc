"""The hash of the code: of what can change a run, and of nothing else."""

import shutil
from pathlib import Path

from test_layers import LAYERS, PACKAGE

from gatelab.study.code import AFTER, code_hash, hash_of


def package(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


FILES = {"record.py": "a = 1\n", "train/loop.py": "b = 2\n", "report/page.py": "c = 3\n", "cli/run.py": "d = 4\n"}


def test_the_same_files_have_one_hash_wherever_they_lie(tmp_path):
    first, again = (hash_of(package(tmp_path / name, FILES)) for name in ("one", "two"))
    assert first == again and len(first) == 12 and int(first, 16) >= 0


def test_a_change_of_what_trains_changes_it_and_one_of_what_reads_does_not(tmp_path):
    before = hash_of(package(tmp_path / "one", FILES))
    assert hash_of(package(tmp_path / "two", FILES | {"train/loop.py": "b = 3\n"})) != before
    assert hash_of(package(tmp_path / "three", FILES | {"train/more.py": ""})) != before
    assert hash_of(package(tmp_path / "four", FILES | {"report/page.py": "c = 4\n", "cli/more.py": "e\n"})) == before


def test_where_a_file_ends_counts(tmp_path):
    one, two = {"a.py": "x", "b.py": "y"}, {"a.py": "xb.py", "c.py": "y"}
    assert hash_of(package(tmp_path / "one", one)) != hash_of(package(tmp_path / "two", two))


def test_what_is_left_out_is_what_no_run_can_import():
    """Everything after the study layer, and the studies, whose runs are told by their configurations."""
    assert set(AFTER) == {*LAYERS[LAYERS.index("study") + 1 :], "studies"}


def test_the_package_is_hashed_as_a_copy_of_it_is(tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "copy", ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    assert code_hash() == hash_of(Path(copy))
