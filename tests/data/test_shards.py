import json
import lzma
import re

import numpy as np
import pytest

from gatelab.config import Text
from gatelab.data import DataError, open_source
from gatelab.data.tokenizer import train_bpe


def write_shard(path, ids, dtype="<u2"):
    data = np.asarray(ids, dtype).tobytes()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return str(path)


def open_shards(tmp_path, **settings):
    return open_source(Text(**{"vocab_size": 5000, "bos_id": 4999, **settings}), cache=tmp_path / "cache")


def epoch(source, seq_len):
    n = (source.n_train_tokens - seq_len) // seq_len
    return source.train_batch(0, 0, n, seq_len).targets_BT


def test_windows_run_over_the_joins_of_shards(tmp_path):
    ids = np.arange(1, 1001)
    pieces = np.split(ids, [3, 400, 405])
    paths = [write_shard(tmp_path / f"{i}.bin{'.xz' * (i % 2)}", piece) for i, piece in enumerate(pieces)]
    source = open_shards(tmp_path, paths=paths, val_share=0.2)
    assert (source.n_train_tokens, source.n_heldout_tokens) == (800, 200)
    windows = epoch(source, 16)
    assert np.all(np.diff(windows, axis=1) == 1)
    assert len(np.unique(windows)) == windows.size
    assert np.array_equal(np.sort(source.heldout_batch(0, 12, 16).targets_BT.ravel()), np.arange(801, 993))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("kinds", [["<u2"], [">u4"], ["<u2"] * 4, ["<u2", ">i4", "<u8", "<i8"]])
def test_windows_of_many_seeds_are_those_of_each_whatever_the_shards(tmp_path, kinds, bos):
    pieces = np.split(np.arange(1000), [3, 400, 405] if len(kinds) > 1 else [])
    for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)):
        np.save(tmp_path / f"{i}.npy", piece.astype(kind))
    source = open_shards(
        tmp_path, paths=[str(tmp_path / f"{i}.npy") for i in range(len(kinds))], val_share=0.2, bos=bos
    )
    both = source.train_batches([4, 1, 9], 7, 20, 16)
    alone = [source.train_batch(seed, 7, 20, 16) for seed in (4, 1, 9)]
    for name in ("inputs_BT", "targets_BT"):
        found = getattr(both, name)
        assert found.dtype == np.int64 and found.flags.c_contiguous
        assert np.array_equal(found, np.concatenate([getattr(batch, name) for batch in alone]))
    assert np.all(both.targets_BT == both.targets_BT[:, :1] + np.arange(16))
    assert np.array_equal(both.inputs_BT[:, 1:], both.targets_BT[:, :-1])
    assert np.all(both.inputs_BT[:, 0] == (4999 if bos else both.targets_BT[:, 0] - 1))


def test_validation_shards_are_held_out_instead_of_the_tail(tmp_path):
    train, val = write_shard(tmp_path / "t.bin", np.arange(300)), write_shard(tmp_path / "v.bin", np.arange(900, 950))
    source = open_shards(tmp_path, paths=train, val_paths=val)
    assert (source.n_train_tokens, source.n_heldout_tokens) == (300, 50)
    assert source.heldout_batch(0, 1, 50).targets_BT[0].tolist() == list(range(900, 950))
    copy = write_shard(tmp_path / "copy.bin", np.arange(300))
    with pytest.raises(DataError, match=r"in data\.paths and in data\.val_paths"):
        open_shards(tmp_path, paths=train, val_paths=copy)


def test_packed_and_plain_shards_of_any_place_have_one_digest(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    ids = np.arange(200)
    plain = open_shards(tmp_path, paths=write_shard(tmp_path / "a.bin", ids))
    packed = open_shards(tmp_path, paths=write_shard(tmp_path / "elsewhere" / "b.bin.xz", ids))
    assert plain.digest == packed.digest
    ids[7] += 1
    assert open_shards(tmp_path, paths=write_shard(tmp_path / "a.bin", ids)).digest != plain.digest
    assert open_shards(tmp_path, paths=str(tmp_path / "elsewhere" / "b.bin.xz"), val_share=0.5).digest != plain.digest


def test_ids_of_four_bytes(tmp_path):
    path = write_shard(tmp_path / "a.bin", np.arange(100_000, 100_200), "<u4")
    source = open_shards(tmp_path, paths=path, dtype="uint32", vocab_size=200_000)
    assert source.train_batch(0, 0, 4, 8).targets_BT.min() >= 100_000


def test_vocabulary_comes_from_meta_json_unless_it_is_given(tmp_path):
    path = write_shard(tmp_path / "a.bin", np.arange(3, 100))
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 120, "bos_id": 1, "eos_id": 0, "more": []}))
    source = open_source(Text(paths=path), cache=tmp_path / "cache")
    assert (source.vocab_size, source.bos_id) == (120, 1)
    assert open_shards(tmp_path, paths=path).vocab_size == 5000


def test_segments_follow_the_end_token_and_bos_is_no_end(tmp_path):
    ids = np.tile([7, 8, 9, 0], 50)
    source = open_shards(tmp_path, paths=write_shard(tmp_path / "a.bin", ids), bos_id=0, eos_id=0, document_mask=True)
    batch = source.heldout_batch(0, 1, 8)
    assert batch.inputs_BT[0, 0] == 0 and (batch.inputs_BT[0, 1:-1] == 0).any()
    ends = batch.inputs_BT[0, 1:-1] == 0
    assert np.array_equal(np.diff(batch.segment_ids_BT[0]), np.concatenate([[0], ends]))


def test_bytes_per_token_is_counted_with_the_tokenizer_beside_the_shards(tmp_path):
    train_bpe([b"the cat sat on the mat\n" * 20], 300, tmp_path / "tokenizer.json")
    (tmp_path / "meta.json").write_text(json.dumps({"tokenizer": "tokenizer.json (BPE)", "vocab_size": 300}))
    (tmp_path / "elsewhere").mkdir()
    ids = [json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"][token] for token in "abc"]
    path = write_shard(tmp_path / "a.bin", [*ids, 0] * 100)
    source = open_source(Text(paths=path, bos=False, val_share=0.5), cache=tmp_path / "cache")
    assert source.bytes_per_token == pytest.approx(0.75)
    assert open_shards(tmp_path, paths=write_shard(tmp_path / "elsewhere" / "b.bin", ids * 9)).bytes_per_token is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"vocab_size": 50, "bos_id": 1},
            r"holds id 99, and the vocabulary has 50; check data.vocab_size and data.dtype \(uint16\)",
        ),
        ({"vocab_size": None, "bos_id": None}, "do not tell their vocabulary: set data.vocab_size"),
        ({"bos_id": None}, "name it in data.bos_id, or set data.bos=false"),
        ({"document_mask": True}, "needs the end-of-document token; name it in data.eos_id"),
        ({"eos_id": 5000}, "eos_id=5000 is no id of a vocabulary of 5000"),
    ],
)
def test_settings_that_do_not_fit_the_shard_are_refused(tmp_path, settings, said):
    path = write_shard(tmp_path / "a.bin", np.arange(100))
    with pytest.raises(DataError, match=said):
        open_shards(tmp_path, paths=path, **settings)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", b"abc", "its 3 bytes are no whole number of 2-byte ids"),
        ("a.bin", b"", "an empty file"),
        ("a.bin", b"\1\0", "one token, and nothing to hold out"),
        ("a.bin.xz", b"no", "is no whole .xz file"),
        ("a.bin.xz", lzma.compress(bytes(4000))[:-20], "is no whole .xz file"),
    ],
)
def test_broken_shards_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_shards(tmp_path, paths=str(tmp_path / name))
    assert not list(tmp_path.glob("cache/shards/.draft*"))


@pytest.mark.parametrize(
    ("written", "read", "vocab_size", "said"),
    [
        (
            "<u4",
            "uint16",
            5000,
            r"uint32 or int32 and is read as uint16 .* every second one are 0; set data\.dtype=uint32",
        ),
        ("<i4", "uint16", 200_000, r"every second one are at most 3; set data\.dtype=uint32"),
        ("<i8", "uint16", 5000, r"int64 or uint64 .* every fourth one are 0; write it again, .*data\.dtype=uint32"),
        ("<i8", "uint32", 200_000, r"int64 or uint64 and is read as uint32 .* every second one are 0; write it again"),
    ],
)
@pytest.mark.parametrize("name", ["a.bin", "a.bin.xz"])
def test_shard_of_wider_ids_than_stated_is_refused(tmp_path, name, written, read, vocab_size, said):
    ids = np.random.default_rng(0).integers(1, min(vocab_size, 150_000) - 1, 9000)
    path = write_shard(tmp_path / name, ids, written)
    with pytest.raises(DataError, match=said):
        open_shards(tmp_path, paths=path, dtype=read, vocab_size=vocab_size)


def test_second_ids_that_are_zeros_are_read_where_meta_json_says_the_type(tmp_path):
    path = write_shard(tmp_path / "a.bin", np.arange(2, 4002) * (np.arange(4000) % 2 == 0))
    with pytest.raises(DataError, match=r'say "dtype": "uint16" in the meta\.json beside the shard'):
        open_shards(tmp_path, paths=path)
    (tmp_path / "meta.json").write_text(json.dumps({"dtype": "uint16"}))
    assert open_shards(tmp_path, paths=path, val_share=0.5).n_train_tokens == 2000


def test_beginning_and_padding_are_ids(tmp_path):
    begun = write_shard(tmp_path / "begun.bin", [1] + [0] * 4095)
    same = write_shard(tmp_path / "same.bin", np.tile([7, 0], 3000))
    open_shards(tmp_path, paths=[begun, same])


def test_folder_of_shards_to_hold_out_is_not_trained_on(tmp_path):
    train, val = write_shard(tmp_path / "train.bin", range(200)), write_shard(tmp_path / "val.bin", range(300, 340))
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(DataError) as error:
        open_shards(tmp_path, paths=str(tmp_path))
    assert f"data.paths={train} data.val_paths={val}, or name it in data.paths itself" in str(error.value)
    assert open_shards(tmp_path, paths=train, val_paths=val).n_heldout_tokens == 40
    assert open_shards(tmp_path, paths=[train, val], val_share=0.5).n_train_tokens == 120
    (tmp_path / "val.bin").rename(tmp_path / "values.bin")
    open_shards(tmp_path, paths=str(tmp_path))


def test_notes_beside_shards_are_counted(tmp_path):
    for name in ("README.md", "LICENSE", "meta.json"):
        (tmp_path / name).write_text("{}")
    write_shard(tmp_path / "a.bin", range(200))
    assert open_shards(tmp_path, paths=str(tmp_path)).description.endswith("; 2 files left out, such as LICENSE")


def test_zeros_that_take_no_turns_are_ids(tmp_path):
    zeros = write_shard(tmp_path / "zeros.bin", np.zeros(9000))
    ends = write_shard(tmp_path / "ends.bin", np.tile([7, 0, 8, 9, 0, 3], 1500))
    few = write_shard(tmp_path / "few.bin", [7, 0, 8, 0])
    open_shards(tmp_path, paths=[zeros, ends, few])


def test_folder_of_shards_is_read_with_its_meta_json(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(folder / "b.bin.xz", np.arange(60, 100))
    write_shard(folder / "a.bin", np.arange(3, 60))
    (folder / "meta.json").write_text(json.dumps({"vocab_size": 120, "bos_id": 1, "eos_id": 0}))
    source = open_source(Text(paths=str(folder)), cache=tmp_path / "cache")
    assert (source.vocab_size, source.n_train_tokens + source.n_heldout_tokens) == (120, 97)


def test_shards_and_text_do_not_mix(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"token shards and text in one run: .*a\.bin' and .*a\.txt'"):
        open_shards(tmp_path, paths=[write_shard(tmp_path / "a.bin", range(9)), str(tmp_path / "a.txt")])


def test_folders_that_disagree_about_the_vocabulary_are_refused(tmp_path):
    paths = []
    for name, size in (("a", 100), ("b", 200)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text(json.dumps({"vocab_size": size}))
        paths.append(write_shard(tmp_path / name / "x.bin", range(9)))
    with pytest.raises(DataError, match=r"b/meta\.json' says vocab_size=200, another meta\.json 100"):
        open_source(Text(paths=paths, bos=False), cache=tmp_path / "cache")
    (tmp_path / "b" / "meta.json").write_text("{")
    with pytest.raises(DataError, match="is not a JSON object"):
        open_source(Text(paths=paths, bos=False), cache=tmp_path / "cache")


def test_the_tokenizer_of_a_study_of_text_does_not_keep_shards_out(tmp_path):
    path = write_shard(tmp_path / "a.bin", np.arange(100))
    settings = {"paths": str(path), "vocab_size": 5000, "bos_id": 1}
    with_bpe, without = (open_source(Text(**settings, tokenizer=t), cache=tmp_path) for t in ("bpe:1024", "byte"))
    assert with_bpe.digest == without.digest


@pytest.mark.parametrize("kind", ["<u2", ">i4", "<i8"])
def test_numpy_arrays_are_shards_of_their_own_type(tmp_path, kind):
    ids = np.arange(1, 700) % 300
    np.save(tmp_path / "a.npy", ids.astype(kind))
    ids.astype("<u2").tofile(tmp_path / "b.bin")
    plain, array = (open_shards(tmp_path, paths=str(tmp_path / name)) for name in ("b.bin", "a.npy"))
    assert np.array_equal(epoch(array, 16), epoch(plain, 16)) and array.n_train_tokens == plain.n_train_tokens
    assert (array.digest == plain.digest) == (kind == "<u2")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 4), "u2"), "holds uint16 of shape (3, 4); expected token ids, whole numbers of one axis"),
        (np.ones(9), "holds float64 of shape (9,); expected token ids"),
        (np.zeros(0, "u2"), "of shape (0,)"),
        (np.array([1, -1, 2]), "holds -1; expected ids from 0 on"),
        (np.array([1, 300, 2]), "holds id 300, and the vocabulary has 300; check data.vocab_size"),
        (np.array([{}], object), "no array that NumPy's `np.save` wrote"),
    ],
)
def test_arrays_that_are_no_ids_are_refused(tmp_path, array, said):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=re.escape(said)):
        open_shards(tmp_path, paths=str(tmp_path / "a.npy"), vocab_size=300, bos_id=299)
