"""Prompts of unequal length together: each row is what it is alone, and what transformers' generate gives."""

import pytest
import tiny
import torch
from torch import Tensor, nn

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.generate import Keep, Sampling, continuations, generate, new_cache, stream
from gatelab.nn.cache import Padding

FEW_KV = {"n_heads": 4, "n_kv_heads": 2}
EVERY_SITE = "query-headwise+key-elementwise+value-headwise+sdpa-elementwise+out-elementwise+scores-headwise"
KINDS = [
    {"gate": EVERY_SITE, **FEW_KV},
    {"gate": "sdpa-headwise", "qk_norm": "rms", "window": 3, "global_every": 2, **FEW_KV},
    {"gate": "sdpa-headwise-lse", "softmax": "sink-logit", "window": 4, **FEW_KV},
    {"gate": "scores-headwise-forget-bias+value-elementwise-value", "positions": "relative", "window": 5, **FEW_KV},
    {"gate": "sdpa-headwise", "positions": "relative", **FEW_KV},
    {"output_map": "xsa", "kv_experts": "kv-3top2", "rope_fraction": 0.5, "window": 2, **FEW_KV},
    {"positions": "none", "moe": {"n_experts": 4, "top_k": 2, "d_expert": 8}, "d_ff": None, **FEW_KV},
    {"positions": "learned", "norm": "layer", "norm_position": "post", "mlp": "relu", "bias": True, **FEW_KV},
    {"registers": 2, "gate": "sdpa-elementwise-hybrid", "window": 4, **FEW_KV},
    {"softmax": "key-bias", **FEW_KV},
    {"softmax": "differential", **FEW_KV},
]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=str)

LENGTHS = (5, 1, 9, 5)
V = 17


def counts_distances(kind: dict[str, object]) -> bool:
    """Where a row may stand behind padding."""
    return kind.get("positions") != "learned" and kind.get("softmax") != "key-bias" and "registers" not in kind


def drawn(**kind: object) -> nn.Module:
    """Every parameter is random, gates and sinks too."""
    model = build_model(tiny.model(init="fan-in", max_seq_len=32, **kind))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def prompts(*lengths: int) -> list[Tensor]:
    return [torch.randint(0, V, (n,)) for n in lengths]


@by_kind
def test_a_row_of_a_batch_is_what_it_is_alone(kind: dict[str, object]) -> None:
    model, given = drawn(**kind), prompts(*LENGTHS)
    found = continuations(model, given, 20)
    assert found == [generate(model, ids[None], 20)[0, len(ids) :].tolist() for ids in given]
    assert len({tuple(row) for row in found}) > 1


@pytest.mark.parametrize("kind", [k for k in KINDS if counts_distances(k)], ids=str)
@torch.no_grad()
def test_logits_behind_padding_are_those_without(kind: dict[str, object]) -> None:
    """In float64, after the prompt and token by token, whatever stands in the padding's place."""
    model, tokens_BT = drawn(**kind).double(), torch.randint(0, V, (2, 20))
    cache = new_cache(model, 2, 20, Keep())
    cache.padding = Padding(torch.tensor([0, 7]), 20, torch.float64)
    found = torch.cat([model(piece, cache=cache) for piece in tokens_BT.split([10, 1, 1, 3, *[1] * 5], dim=1)], dim=1)
    torch.testing.assert_close(found[:1], model(tokens_BT[:1]))
    torch.testing.assert_close(found[1:, 7:], model(tokens_BT[1:, 7:]))


@by_kind
def test_a_greedy_row_is_the_argmax_of_full_passes(kind: dict[str, object]) -> None:
    """Without a cache, so that nothing but the model is asked."""
    model, given = drawn(**kind), prompts(*LENGTHS)
    for ids, found in zip(given, continuations(model, given, 12), strict=True):
        ids_1T = ids[None]
        for token in found:
            assert model(ids_1T)[0, -1].argmax() == token
            ids_1T = torch.cat([ids_1T, torch.tensor([[token]])], dim=1)


@pytest.mark.parametrize("keep", ["last-4", "first-2-last-3"])
def test_rows_stay_what_they_are_where_keys_are_dropped(keep: str) -> None:
    model, given, keep = drawn(gate="sdpa-headwise", **FEW_KV), prompts(*LENGTHS), Keep.model_validate(keep)
    found = continuations(model, given, 50, keep=keep)
    assert found == [continuations(model, [ids], 50, keep=keep)[0] for ids in given]
    assert {len(row) for row in found} == {50} and found != continuations(model, given, 20)


def test_a_continuation_goes_on_where_it_was_cut() -> None:
    model, (ids,) = drawn(window=3, **FEW_KV), prompts(4)
    (whole,) = continuations(model, [ids], 20)
    assert continuations(model, [[*ids.tolist(), *whole[:7]]], 13) == [whole[7:]]
    assert continuations(model, [ids], 0) == [[]]


def test_a_sampled_row_depends_on_its_own_seed_alone() -> None:
    model, given = drawn(gate="sdpa-headwise", **FEW_KV), prompts(*LENGTHS)
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=(3, 1, 4, 1))
    found = continuations(model, given, 15, sampling=sampling)
    for row, ids in enumerate(given):
        alone = sampling.model_copy(update={"seed": (sampling.seed[row],)})
        assert continuations(model, [ids], 15, sampling=alone) == [found[row]]
    shuffled = sampling.model_copy(update={"seed": (4, 3)})
    assert continuations(model, [given[2], given[0]], 15, sampling=shuffled) == [found[2], found[0]]
    assert found != continuations(model, given, 15, sampling=sampling.model_copy(update={"seed": (5, 6, 7, 8)}))


def test_rows_of_one_seed_draw_apart() -> None:
    model, (ids,) = drawn(**FEW_KV), prompts(4)
    sampling = Sampling(temperature=2.0, seed=7)
    one, other = continuations(model, [ids, ids], 15, sampling=sampling)
    assert one != other and continuations(model, [ids], 15, sampling=sampling) == [one]


@by_kind
def test_a_stream_is_the_continuation_token_by_token(kind: dict[str, object]) -> None:
    model, given = drawn(**kind), prompts(*LENGTHS)
    sampling = Sampling(temperature=0.8, top_k=5)
    steps = list(stream(model, given, 10, sampling=sampling))
    assert [list(row) for row in zip(*steps, strict=True)] == continuations(model, given, 10, sampling=sampling)


def test_a_stream_computes_what_is_asked_for() -> None:
    model, calls = drawn(**FEW_KV), []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    tokens = stream(model, prompts(3, 5), 10)
    assert not calls
    next(tokens), next(tokens)
    assert calls == [False, False] and torch.is_grad_enabled()


def test_a_row_ends_with_its_first_stop_id() -> None:
    model, given = drawn(gate="sdpa-headwise", **FEW_KV), prompts(*LENGTHS)
    sampling = Sampling(temperature=2.0)
    whole = continuations(model, given, 20, sampling=sampling)
    stops = {whole[0][3], whole[2][0]}
    cut = [row[: min((i for i, t in enumerate(row) if t in stops), default=19) + 1] for row in whole]
    assert continuations(model, given, 20, sampling=sampling, stop_ids=stops) == cut
    steps = list(stream(model, given, 20, sampling=sampling, stop_ids=stops))
    assert [[t for t in row if t is not None] for row in zip(*steps, strict=True)] == cut
    assert len(steps) == max(len(row) for row in cut) and None in steps[-1]


def test_nothing_is_computed_once_all_rows_have_stopped() -> None:
    model, given, calls = drawn(**FEW_KV), prompts(3, 5), []
    first = [row[0] for row in continuations(model, given, 1)]
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    assert continuations(model, given, 20, stop_ids=first) == [[t] for t in first] and len(calls) == 1


def their_llama(**fields: object) -> nn.Module:
    code = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = code.LlamaConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=20, max_position_embeddings=64, rms_norm_eps=1e-5, pad_token_id=0, eos_token_id=None,
        bos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 100.0}, tie_word_embeddings=False,
        **fields,
    )  # fmt: skip
    model = code.LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.3)
    return model


def our_llama(theirs: nn.Module) -> nn.Module:
    """Ours with the weights of theirs, under our names."""
    config = ModelConfig(
        vocab_size=61, max_seq_len=64, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=20,
        norm_eps=1e-5, rope_theta=100.0,
    )  # fmt: skip
    names = {
        "model.": "", "embed_tokens": "embedding", "layers": "blocks", "post_attention_layernorm": "mlp_norm",
        "input_layernorm": "attention_norm", "self_attn": "attention", "gate_proj": "w1", "up_proj": "w3",
        "down_proj": "w2", "lm_head": "head",
    }  # fmt: skip
    weights = {}
    for name, weight in theirs.state_dict().items():
        for word, ours in names.items():
            name = name.replace(word, ours)
        weights["final_norm.weight" if name == "norm.weight" else name] = weight
    model = build_model(config)
    model.load_state_dict(weights)
    return model


def theirs_greedy(model: nn.Module, given: list[Tensor], n_tokens: int) -> list[list[int]]:
    longest = max(len(ids) for ids in given)
    tokens_BT = torch.stack([nn.functional.pad(ids, (longest - len(ids), 0)) for ids in given])
    mask_BT = torch.stack([torch.arange(longest) >= longest - len(ids) for ids in given]).long()
    out_BT = model.generate(input_ids=tokens_BT, attention_mask=mask_BT, max_new_tokens=n_tokens, do_sample=False)
    return out_BT[:, longest:].tolist()


@pytest.mark.parametrize("lengths", [(6,), (7, 7), (9, 3, 1, 12)], ids=str)
def test_greedy_tokens_are_those_of_transformers(lengths: tuple[int, ...]) -> None:
    theirs = their_llama()
    ours, given = our_llama(theirs), [torch.randint(0, 61, (n,)) for n in lengths]
    found = continuations(ours, given, 40)
    assert found == theirs_greedy(theirs, given, 40)
    assert all(len(set(row)) > 3 for row in found)


def test_slips_in_an_argument_are_told() -> None:
    model = drawn(**FEW_KV)
    for given, says in [
        ([], "prompts is empty: give the ids of one prompt at least"),
        (
            [[1, 2], []],
            r"prompt 1 of shape \(0,\): expected the ids of its tokens in a row, one at least to go on from",
        ),
        ([1, 2], r"prompt 0 of shape \(\): expected the ids"),
        (["words"], "prompt 0 is text, and a model reads ids"),
        ([[1, 17]], "prompt 0 has ids from 1 to 17: expected ids from 0 to 16"),
        ([[1, -2]], "prompt 0 has ids from -2 to 1: expected"),
        ([[0.5]], "prompt 0 of type torch.float32: expected whole numbers"),
        ([[1] * 30, [2]], "30 tokens and 3 more do not fit into max_seq_len=32; ask for fewer"),
    ]:
        for call in (continuations, stream):
            with pytest.raises(ValueError, match=says):
                call(model, given, 3)
    for options, says in [
        ({"n_tokens": 2.5}, r"n_tokens=2\.5: expected the number of new tokens"),
        ({"sampling": {"top_k": 3}}, "sampling={'top_k': 3}: give a Sampling, as in Sampling"),
        ({"n_tokens": -1}, "n_tokens=-1: expected the number of new tokens, 0 or more"),
        ({"stop_ids": [99]}, r"stop_ids \[99\]: expected ids from 0 to 16"),
        ({"sampling": Sampling(temperature=1, seed=(1, 2))}, "2 seeds for 1 prompts; give one a prompt, or one number"),
        ({"keep": Keep(first=4, last=29)}, "first-4-last-29 and 1 tokens a pass take 33 positions, and max_seq_len=32"),
    ]:
        with pytest.raises(ValueError, match=says):
            stream(model, [[1]], **{"n_tokens": 2, **options})
    with pytest.raises(ValueError, match="arch='encoder' does not continue the tokens that it reads"):
        continuations(build_model(tiny.model(arch="encoder")), [[1]], 2)
