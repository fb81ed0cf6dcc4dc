"""LongPPL and loss by position, by plain arithmetic: one pass a token, each with the context that the definition gives it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from gatelab.config import ConfigError
from gatelab.evals.long_ppl import KeyTokens, LongPPL, key_tokens, long_ppl
from gatelab.evals.next_token import next_token
from gatelab.evals.position_loss import position_rows, token_losses
from gatelab.models import build_model
from gatelab.models.decoder import Decoder

V, T = 17, 40


def model(seed: int = 0) -> Decoder:
    made = build_model(tiny.model(vocab_size=V, max_seq_len=T), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        if "norm" not in name:
            parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator)
    return made


def documents(n: int = 3, length: int = T) -> list[list[int]]:
    return torch.randint(0, V, (n, length), generator=torch.Generator().manual_seed(9)).tolist()


@torch.no_grad()
def log_p(net: Decoder, context: list[int], token: int) -> float:
    return float(net(torch.tensor([context]))[0, -1].double().log_softmax(dim=-1)[token])


def keys_by_hand(
    net: Decoder, ids: list[int], window: int, stride: int, gain: float, floor: float, bos: list[int]
) -> list[int]:
    out = []
    for i in range(1, len(ids)):
        # The context begins at a multiple of the stride and has window … window + stride − 1 tokens; near the beginning, all.
        start = max(0, (i - window) // stride * stride)
        whole = log_p(net, ids[:i], ids[i])
        short = log_p(net, (bos if start else []) + ids[start:i], ids[i])
        if whole - short > gain and whole > floor:
            out.append(i)
    return out


@pytest.mark.parametrize(("window", "stride"), [(8, 1), (8, 5), (6, 11), (39, 4), (100, 7)])
@pytest.mark.parametrize("bos", [None, 3])
def test_key_tokens_are_those_of_one_pass_a_token(window: int, stride: int, bos: int | None):
    net, texts = model(), documents()
    if bos is not None:
        texts = [[bos, *ids[1:]] for ids in texts]
    gain, floor = 0.1, -4.0
    keys = key_tokens(net, texts, window=window, stride=stride, gain=gain, floor=floor, bos_id=bos, name="r")
    by_hand = [keys_by_hand(net, ids, window, stride, gain, floor, [] if bos is None else [bos]) for ids in texts]
    assert [list(d.positions) for d in keys.documents] == by_hand
    assert keys.n == sum(map(len, by_hand)) and (keys.n > 0) == (window < 30)


def test_long_ppl_is_the_perplexity_over_the_key_tokens_of_any_model(tmp_path: Path):
    texts = [*documents(2), documents(1, 30)[0]]
    keys = key_tokens(model(), texts, window=8, stride=4, gain=0.1, floor=-4.0, name="reference")
    keys.write(tmp_path / "keys.json")
    kept = KeyTokens.read(tmp_path / "keys.json")
    assert kept == keys and kept.reference == "reference" and not list(tmp_path.glob(".*"))
    other = model(seed=4)
    found = long_ppl(other, texts, kept)
    losses = [
        [-log_p(other, ids[:i], ids[i]) for i in d.positions] for ids, d in zip(texts, keys.documents, strict=True)
    ]
    pooled = [x for of in losses for x in of]
    assert found.n_keys == tuple(map(len, losses))
    assert found.loss == pytest.approx(np.mean(pooled), abs=1e-5)
    assert found.value == pytest.approx(math.exp(np.mean(pooled)), rel=1e-5)
    rows = {r.metric: r.value for r in found.rows("r", 2)}
    every = [-log_p(other, ids[:i], ids[i]) for ids in texts for i in range(1, len(ids))]
    assert rows["plain_ppl"] == pytest.approx(math.exp(np.mean(every)), rel=1e-5)
    assert rows["key_share"] == len(pooled) / len(every)
    assert rows["long_loss_low"] < rows["long_loss"] < rows["long_loss_high"]


@pytest.mark.parametrize("n_documents", [5, 30])
def test_the_interval_is_of_the_loss_of_all_key_tokens_and_covers_it(n_documents: int):
    """Documents of one to forty key tokens, those of more having the lower loss; the truth is the population's ratio."""
    rng = np.random.default_rng(0)
    n_KD = rng.integers(1, 41, (100, n_documents))
    s_KD = n_KD * (3.0 - n_KD / 20) + rng.normal(0, 1, n_KD.shape)
    truth = 3.0 - (41 * 81 / 6) / 20.5 / 20
    covered = 0
    for n_D, s_D in zip(n_KD, s_KD, strict=True):
        found = LongPPL(tuple(n_D.tolist()), tuple(s_D.tolist()), (1.0,) * n_documents, (50,) * n_documents).rows()
        rows = {r.metric: r.value for r in found}
        assert rows["long_loss_low"] < rows["long_loss"] < rows["long_loss_high"]
        covered += rows["long_loss_low"] < truth < rows["long_loss_high"]
    assert 85 <= covered <= 99


def test_a_model_that_reads_no_context_has_no_key_token():
    net = model()
    for block in net.blocks:
        nn.init.zeros_(block.attention.o_proj.weight)
    keys = key_tokens(net, documents(), window=8, stride=4, gain=1e-6, floor=-100.0)
    assert keys.n == 0
    with pytest.raises(ValueError, match="the key set has no token"):
        long_ppl(net, documents(), keys)


def test_tokens_of_which_the_reference_says_no_number_are_counted():
    net = model()
    language, whole = next_token(net), token_losses(net, documents())
    own = language.losses

    def losses(states, at, targets):
        found, entropy = own(states, at, targets)
        # Of the first document's whole pass alone, which is longer than any window.
        return (found.where(torch.arange(len(found)) % 3 != 0, math.nan) if len(at) == T - 1 else found), entropy

    language.losses = losses
    keys = key_tokens(language, documents(1), window=8, stride=4, gain=0.1, floor=-4.0)
    (one,) = keys.documents
    assert one.not_finite == len(range(0, T - 1, 3)) and keys.not_finite == one.not_finite / (T - 1)
    wanted = key_tokens(net, documents(1), window=8, stride=4, gain=0.1, floor=-4.0).documents[0].positions
    assert list(one.positions) == [i for i in wanted if (i - 1) % 3] and len(whole[0]) == T - 1


def test_a_key_set_is_of_its_own_documents_alone():
    keys = key_tokens(model(), documents(), window=8, stride=4, gain=0.1, floor=-4.0)
    other = documents()
    other[1][5] = (other[1][5] + 1) % V
    with pytest.raises(ValueError, match="document 1 of 40 ids is not the one of 40 that the key set was made of"):
        long_ppl(model(), other, keys)
    with pytest.raises(ValueError, match="2 documents, and the key set is of 3"):
        long_ppl(model(), documents()[:2], keys)


def test_what_is_no_key_set_is_refused(tmp_path: Path):
    path = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match="is no key set"):
        KeyTokens.read(path)
    for text in ("{", "[]", '{"format": "another"}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no key set"):
            KeyTokens.read(path)
    keys = key_tokens(model(), documents(), window=8, stride=4, gain=0.1, floor=-4.0)
    keys.write(path)
    value = json.loads(path.read_text())
    value["documents"][0]["positions"] = [1, 40]
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="positions of a document of 40 tokens"):
        KeyTokens.read(path)


def test_what_cannot_be_chosen_is_refused():
    net = model()
    for texts, options, message in (
        (documents(), {"window": 0}, "expected numbers of tokens from 1"),
        (documents(), {"bos_id": 99}, "document 0 does not begin with it"),
        ([], {}, "no documents"),
        ([[3]], {}, "document 0 has 1 tokens"),
        ([[3] * (T + 1)], {}, f"has positions for {T}"),
        ([[3, V]], {}, f"document 0 has the id {V}"),
    ):
        with pytest.raises(ValueError, match=message):
            key_tokens(net, texts, **options)


def test_loss_by_position_is_a_mean_of_each_octave_over_documents():
    net, texts = model(), documents(2)
    losses = token_losses(net, texts)
    by_hand = [[-log_p(net, ids[: i + 1], ids[i + 1]) for i in range(T - 1)] for ids in texts]
    np.testing.assert_allclose(losses, by_hand, atol=1e-5)
    rows = position_rows(losses, "r", 1)
    for n, (first, last) in enumerate([(0, 0), (1, 2), (3, 6), (7, 14), (15, 30), (31, 38)]):
        means = [np.mean(loss[first : last + 1]) for loss in by_hand]
        found = {r.metric: r.value for r in rows if r.bin == n}
        assert found["position_loss"] == pytest.approx(np.mean(means), abs=1e-5)
        assert found["position_loss_low"] < found["position_loss"] < found["position_loss_high"]
    assert {r.bin for r in rows} == set(range(6))


def test_bits_per_byte_are_all_bits_over_all_bytes():
    losses = [np.array([1.0, 3.0]), np.array([2.0, 2.0]), np.array([4.0])]
    found = {r.metric: (r.value, r.unit) for r in position_rows(losses, n_bytes=[4, 6, 2]) if r.bin is None}
    assert found["bits_per_byte"] == (pytest.approx(12 / math.log(2) / 12), "bits/byte")
    assert found["bits_per_byte_low"][0] < 1 / math.log(2) < found["bits_per_byte_high"][0]
    assert not [r for r in position_rows(losses) if r.metric.startswith("bits")]
    with pytest.raises(ValueError, match=r"n_bytes=.* expected a number from 1 of each of 3 documents"):
        position_rows(losses, n_bytes=[4, 6])


@pytest.mark.parametrize("begins", [True, False])
def test_bytes_are_those_of_the_tokens_that_are_predicted(begins: bool, tmp_path: Path):
    pytest.importorskip("transformers")
    from checkpoints import save_tokenizer
    from transformers import AutoTokenizer

    from gatelab.evals.harness.tokens import Tokens

    save_tokenizer(tmp_path, begins=begins)
    tokens = Tokens(AutoTokenizer.from_pretrained(tmp_path), 10_000)
    text = "a gate may close, and a sink may stay where the first token stands"
    bare = tokens.encode([text], begins=False)[0]
    first = tokens.tokenizer.decode(bare[:1])
    for n in (2, 5, len(bare)):
        read = bare[: n - len(tokens.begins)]
        said = tokens.tokenizer.decode(read)
        assert said == text[: len(said)] and len(tokens.begins) == begins
        assert tokens.n_bytes(text, n) == len(said.encode()) - (0 if begins else len(first.encode()))


def test_every_row_is_defined_in_the_metrics_page():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = page.partition("(`gatelab.evals.long_ppl`")[2].partition("\n## ")[0]
    keys = key_tokens(model(), documents(), window=8, stride=4, gain=0.1, floor=-4.0)
    for row in [
        *long_ppl(model(), documents(), keys).rows(),
        *position_rows(token_losses(model(), documents()), n_bytes=[9, 9, 9]),
    ]:
        assert f"| `{row.metric}` | {row.unit} |" in section, row.metric
