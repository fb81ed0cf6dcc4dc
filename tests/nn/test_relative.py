"""T5's relative bias: the buckets of the released code, whole or row by row, and gradients where distances fall."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from gatelab.config import ModelConfig
from gatelab.models.init import initialise
from gatelab.nn.relative import RelativeBias, distance_buckets

H, T, S = 3, 40, 200
both_ways = pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])


def bias(is_causal: bool, **options: int) -> RelativeBias:
    module = RelativeBias(H, is_causal=is_causal, **options)
    nn.init.normal_(module.table.weight)
    return module


@both_ways
@pytest.mark.parametrize("n_buckets, max_distance", [(32, 128), (64, 256), (8, 20), (12, 100), (32, 1000), (4, 3)])
def test_buckets_are_those_of_transformers(n_buckets: int, max_distance: int, is_causal: bool):
    pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    offset = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(offset, not is_causal, n_buckets, max_distance)
    module = bias(is_causal, n_buckets=n_buckets, max_distance=max_distance)
    assert torch.equal(module.buckets(offset), expected)


@both_ways
@pytest.mark.parametrize("start", [0, 160])
def test_the_bias_is_that_of_transformers(is_causal: bool, start: int):
    transformers = pytest.importorskip("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    config = transformers.T5Config(d_model=12, d_kv=4, num_heads=H, is_decoder=is_causal)
    released = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    module = bias(is_causal)
    released.relative_attention_bias.weight.data = module.table.weight.data
    expected_1HTS = released.compute_bias(T, S, past_seen_tokens=start)
    assert torch.equal(module(T, S, start), expected_1HTS)


@both_ways
def test_the_bias_reads_the_table_at_the_bucket_of_the_distance(is_causal: bool):
    """The paper's formula in float64, away from the edges of buckets, where float64 is not to be trusted either."""
    module, near, far = bias(is_causal), 16 if is_causal else 8, 16 if is_causal else 8
    table = module.table.weight.detach().numpy()
    bias_HTS = module(T, S)[0].detach().numpy()
    checked = 0
    for t in range(0, T, 3):
        for s in range(S):
            distance = max(t - s, 0) if is_causal else abs(t - s)
            place = far * math.log(max(distance, 1) / near) / math.log(128 / near)
            if distance >= near and abs(place - round(place)) < 1e-9:
                continue
            bucket = distance if distance < near else min(near + math.floor(place), near + far - 1)
            if not is_causal and s > t:
                bucket += 16
            np.testing.assert_array_equal(bias_HTS[:, t, s], table[bucket])
            checked += 1
    assert checked > 2000


@both_ways
def test_a_step_of_decoding_has_the_row_of_the_whole(is_causal: bool):
    module = bias(is_causal)
    whole_1HTS = module(T, T)
    for t in (0, 1, 17, T - 1):
        assert torch.equal(module(1, t + 1, start=t), whole_1HTS[:, :, t : t + 1, : t + 1])
    assert torch.equal(module(3, T, start=10), whole_1HTS[:, :, 10:13])
    assert module(0, 5).shape == (1, H, 0, 5)


@both_ways
def test_the_bias_depends_on_the_difference_alone(is_causal: bool):
    bias_1HTS = bias(is_causal)(60, 60)
    assert torch.equal(bias_1HTS[:, :, 1:, 1:], bias_1HTS[:, :, :-1, :-1])


def test_two_sides_are_told_apart_and_one_side_hides_the_other():
    two, one = bias(is_causal=False)(9, 9)[0], bias(is_causal=True)(9, 9)[0]
    assert (two[:, 2, 5] != two[:, 5, 2]).all()
    assert torch.equal(one[:, 2, 5], one[:, 2, 2]) and (one[:, 5, 2] != one[:, 2, 2]).all()


def test_far_distances_share_the_last_bucket():
    module = bias(is_causal=True)
    bucket = module.buckets(-torch.tensor([127, 128, 129, 10**9]))
    assert bucket.tolist() == [31, 31, 31, 31]
    assert module.buckets(-torch.arange(17)).tolist() == list(range(17))


@pytest.mark.parametrize("n_buckets, max_distance", [(2, 2), (3, 5), (16, 128), (64, 40_000)])
def test_buckets_of_distances_begin_one_by_one_never_fall_and_end_at_the_last(n_buckets: int, max_distance: int):
    bucket = distance_buckets(n_buckets, max_distance)
    near = n_buckets // 2
    assert bucket[: near + 1] == list(range(near + 1)) and bucket[-1] == n_buckets - 1
    assert all(a <= b for a, b in itertools.pairwise(bucket)) and len(bucket) == max_distance + 1


def test_an_exact_edge_opens_its_bucket():
    """8 · (128/8)^(j/8) is a whole number for even j: 16, 32, 64 begin buckets 10, 12, 14."""
    bucket = distance_buckets(16, 128)
    assert [(bucket[d - 1], bucket[d]) for d in (16, 32, 64)] == [(9, 10), (11, 12), (13, 14)]


def test_the_gradient_of_a_bucket_is_the_sum_over_its_places():
    module, weight_TS = bias(is_causal=False), torch.randn(30, 30)
    (module(30, 30) * weight_TS).sum().backward()
    bucket_TS = module.buckets(torch.arange(30) - torch.arange(30)[:, None])
    expected = torch.zeros(32).index_add(0, bucket_TS.flatten(), weight_TS.flatten())
    torch.testing.assert_close(module.table.weight.grad, expected[:, None].expand(32, H))


def test_the_table_is_the_only_weight_and_is_drawn_as_embeddings_are():
    module = nn.ModuleDict({"relative": bias(is_causal=True)})
    assert list(module.state_dict()) == ["relative.table.weight"]
    before = module["relative"].table.weight.clone()
    initialise(module, ModelConfig(init_std=0.5), seed=0)
    after = module["relative"].table.weight
    assert not (after == before).any() and 0.3 < after.std() < 0.7


def test_it_builds_on_the_meta_device():
    with torch.device("meta"):
        bias_1HTS = RelativeBias(H, is_causal=True)(4, 9)
    assert bias_1HTS.is_meta and bias_1HTS.shape == (1, H, 4, 9)


@both_ways
def test_it_compiles_to_one_graph(is_causal: bool):
    module = bias(is_causal)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(5, 9, 4), module(5, 9, 4)) and compiled(5, 9, 4).is_contiguous()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"n_buckets": 1, "is_causal": True}, "n_buckets=1 with is_causal=True: take 2 or more"),
        ({"n_buckets": 31, "is_causal": False}, "n_buckets=31 with is_causal=False: take an even number from 4"),
        ({"n_buckets": 2, "is_causal": False}, "n_buckets=2 with is_causal=False: take an even number from 4"),
        ({"max_distance": 16, "is_causal": True}, "max_distance=16: distances below 16 .* take more than 16"),
    ],
)
def test_an_impossible_bias_is_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        RelativeBias(H, **options)


def test_negative_positions_are_refused():
    with pytest.raises(ValueError, match="start=-1: counts and positions are 0 or more"):
        bias(is_causal=True)(1, 5, start=-1)


def test_buckets_that_were_built_on_the_meta_device_get_their_values():
    plain = bias(True)
    with torch.device("meta"):
        emptied, assigned = RelativeBias(H, is_causal=True), RelativeBias(H, is_causal=True)
    emptied.to_empty(device="cpu").load_state_dict(plain.state_dict())
    assigned.load_state_dict(plain.state_dict(), assign=True)
    for module in (emptied, assigned):
        assert torch.equal(module(T, T), plain(T, T))
