import gzip
import json
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gatelab.data import DataError
from gatelab.data.documents import documents
from gatelab.data.files import find
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
    (tmp_path / "bin.txt").touch()
    assert "did you mean" not in refused(tmp_path / "none.txt")  # their ending alone is alike
    assert f"{str(tmp_path)!r} has no 'qqq'" in refused(tmp_path / "qqq" / "deep.txt")


def test_a_pattern_is_answered_with_how_files_are_listed(tmp_path):
    (tmp_path / "book.txt").write_text("x")
    assert "patterns are not expanded here; name the folder, or the files joined by commas" in refused(
        tmp_path / "*.txt"
    )
    (tmp_path / "[a].txt").write_text("y")
    assert read(tmp_path / "[a].txt")


def test_nothing_to_read_says_why(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no files" in refused(tmp_path / "empty")
    (tmp_path / "blank.txt").write_text(" \n")
    assert "nothing but white space" in refused(tmp_path / "blank.txt")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"\1\0")
    assert "1 of 1 files are binary or not UTF-8; convert" in refused(tmp_path / "pictures")


def arrow_rows(path, rows, new=pa.ipc.new_stream):
    table = pa.table({"text": rows, "id": list(range(len(rows)))})
    with path.open("wb") as sink, new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def test_data_set_that_hugging_face_saved_is_its_rows(tmp_path):
    arrow_rows(tmp_path / "data-00000-of-00002.arrow", ["one", "two", "three"])
    arrow_rows(tmp_path / "data-00001-of-00002.arrow", ["four", None, " "])
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text("{}")
    seen = survey((str(tmp_path),), find((str(tmp_path),)), "text")
    assert (seen.sizes, seen.n_left_out) == ([3, 3, 5, 4], 2)


def test_arrow_file_is_read_as_a_stream_is(tmp_path):
    arrow_rows(tmp_path / "a.arrow", ["one", "two", "three"], pa.ipc.new_file)
    assert read(tmp_path / "a.arrow") == [b"one", b"two", b"three"]


def test_data_set_of_several_splits_is_refused_with_their_names(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        arrow_rows(tmp_path / split / "data-00000-of-00001.arrow", [split])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    message = refused(tmp_path)
    assert "several splits" in message and "data.val_paths (there are test, train)" in message
    assert read(tmp_path / "train") == [b"train"]


def test_damaged_arrow_and_unfit_columns_are_refused(tmp_path):
    (tmp_path / "cut.arrow").write_bytes(b"\0\1")
    assert "cannot be read as Arrow" in refused(tmp_path / "cut.arrow")
    arrow_rows(tmp_path / "a.arrow", ["one"])
    assert "no column 'txt'; there are 'text', 'id'" in refused(tmp_path / "a.arrow", field="txt")
    assert "column 'id' holds int64; expected strings" in refused(tmp_path / "a.arrow", field="id")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz", "rows.jsonl.zst"])
def test_packed_lines_are_lines(tmp_path, name):
    with pa.output_stream(tmp_path / name) as out:
        out.write(b'{"text": "one"}\n\n{"text": "two"}')
    assert read(tmp_path / name) == [b"one", b"two"]


def test_packed_lines_that_are_cut_short_are_refused(tmp_path):
    whole = gzip.compress(b'{"text": "one"}\n' * 1000)
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "plain.jsonl.gz").write_bytes(b'{"text": "one"}')
    for name in ("rows.jsonl.gz", "plain.jsonl.gz"):
        assert f"{name}' cannot be read" in refused(tmp_path / name)


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
