import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatelab.data import DataError
from gatelab.data.files import documents, find
from gatelab.data.prepare import survey


def read(*paths, field="text"):
    return [document for file in find(tuple(map(str, paths))) for document in documents(file, field)]


def refused(*paths, field="text"):
    names = tuple(map(str, paths))
    with pytest.raises(DataError) as error:
        survey(names, find(names), field)
    return str(error.value)


def test_folder_is_read_by_name_order_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.py", "a/.hidden", ".git/config", "c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert read(tmp_path) == [b"a/z.py", b"b.txt", b"c"]


def test_file_named_twice_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    assert read(tmp_path / "b.txt", tmp_path) == [b"b", b"a"]


def test_lines_and_rows_are_documents_and_empty_ones_are_left_out(tmp_path):
    lines = [{"text": "one"}, {"text": " \n"}, {"text": None}, {"text": "twö", "id": 4}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    pq.write_table(pa.table({"body": ["three", None, "four"], "id": [1, 2, 3]}), tmp_path / "b.parquet")
    assert read(tmp_path / "a.jsonl") == [b"one", "twö".encode()]
    assert read(tmp_path / "b.parquet", field="body") == [b"three", b"four"]


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read(tmp_path / "a.txt") == [b"hello"]


def test_named_file_in_another_encoding_names_the_byte_and_the_remedy(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 noir")
    message = refused(tmp_path / "latin.txt")
    assert "latin.txt' is not UTF-8 (byte 0xe9 at offset 3)" in message and "iconv" in message


def test_file_in_a_folder_that_is_no_text_is_left_out_and_counted(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 noir")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "good.txt").write_text("good")
    seen = survey((str(tmp_path),), find((str(tmp_path),)), "text")
    assert (seen.n_left_out, seen.sizes) == (2, [4])


def test_binary_file_is_refused_with_what_is_allowed(tmp_path):
    (tmp_path / "paper.pdf").write_bytes(b"%PDF\0")
    message = refused(tmp_path / "paper.pdf")
    assert "binary (a zero byte at offset 4)" in message and ".parquet" in message


def test_missing_path_names_the_nearest_that_exists(tmp_path):
    (tmp_path / "book.txt").write_text("x")
    assert f"did you mean {str(tmp_path / 'book.txt')!r}" in refused(tmp_path / "bok.txt")
    assert f"{str(tmp_path)!r} has no 'qqq'" in refused(tmp_path / "qqq" / "deep.txt")


def test_nothing_to_read_says_why(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no files" in refused(tmp_path / "empty")
    (tmp_path / "blank.txt").write_text(" \n")
    assert "nothing but white space" in refused(tmp_path / "blank.txt")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\1\0")
    assert "1 of 1 files are binary or not UTF-8; convert" in refused(tmp_path / "pictures")


@pytest.mark.parametrize("split", ["", "train"])
def test_data_set_of_arrow_files_is_refused_with_how_to_write_parquet(tmp_path, split):
    folder = tmp_path / "hf" / split
    folder.mkdir(parents=True)
    (folder / "data-00000-of-00001.arrow").write_bytes(b"\0\1")
    for name in ("dataset_info.json", "state.json"):
        (folder / name).write_text("{}")
    message = refused(tmp_path / "hf")
    assert "save_to_disk" in message and 'ds.to_parquet("data.parquet")' in message and ".jsonl, .parquet" in message


def test_dataset_info_beside_parquet_is_a_folder_of_text(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    pq.write_table(pa.table({"text": ["a row"]}), tmp_path / "data.parquet")
    assert read(tmp_path) == [b"a row", b"{}"]


def test_folder_of_shards_is_shards_without_what_lies_beside_them(tmp_path):
    for name in ("b.bin.xz", "a.bin", "meta.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"{}")
    assert [(f.path.name, f.kind) for f in find((str(tmp_path),))] == [("a.bin", "shard"), ("b.bin.xz", "shard")]


def test_bin_files_among_text_are_left_out_and_counted(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.py").write_text(f"x = {i}")
    (tmp_path / "firmware.bin").write_bytes(b"\1\0")
    (tmp_path / "README.md").write_text("words")
    surveyed = survey((str(tmp_path),), find((str(tmp_path),)), "text")
    assert (len(surveyed.names), surveyed.n_left_out) == (4, 1)


@pytest.mark.parametrize("other", ["notes.txt", "rows.jsonl", "meta.pkl"])
def test_folder_of_shards_and_other_files_is_refused_with_both(tmp_path, other):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.bin").write_bytes(b"\1\0")
    (tmp_path / "deep" / "meta.json").write_text("{}")
    (tmp_path / other).write_text("text")
    message = refused(tmp_path)
    assert f"such as 'deep/a.bin' and {other!r}" in message and "one by one" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": ', "line 2: not JSON (Expecting value"),
        (b"[1]", "line 2: a JSON list; every line must be one JSON object"),
        (
            b'{"txt": "a", "id": 1}',
            "line 2: no column 'text'; there are 'txt', 'id'; did you mean data.text_field=txt?",
        ),
        (b'{"text": 3}', "line 2: 'text' holds 3; expected a string"),
        (b'{"text": "\xe9"}', "line 2: not UTF-8 (byte 11 of the line)"),
        (b'{"text": "\\ud800"}', "line 2: 'text' holds half a surrogate pair at character 0"),
    ],
)
def test_bad_json_line_is_named(tmp_path, line, said):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    assert said in refused(tmp_path / "a.jsonl")


def test_parquet_without_the_column_lists_those_it_has(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    assert "no column 'text'; there are 'body', 'id'; name one in data.text_field" in refused(tmp_path / "a.parquet")
    assert "column 'id' holds int64; expected strings" in refused(tmp_path / "a.parquet", field="id")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    assert "cannot be read as Parquet" in refused(tmp_path / "b.parquet")


def test_standard_library_is_modules_without_tests_and_packages():
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [file.path.relative_to(root) for file in find(("stdlib",))]
    assert len(names) > 300 and Path("dataclasses.py") in names
    assert {name.suffix for name in names} == {".py"}
    assert not {part for name in names for part in name.parts} & {"test", "tests", "idle_test", "site-packages"}
