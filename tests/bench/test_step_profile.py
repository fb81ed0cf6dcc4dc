"""Kernels of a step by kind: made-up steps with known answers, floors that add up to a step's count, one real profile."""

import json
import sys
from pathlib import Path

import pytest

from gatelab.bench.floors import Rates
from gatelab.bench.plan import size
from gatelab.config import override
from gatelab.config.gate import parse_gates
from gatelab.models.sizes import count_parameters
from gatelab.train.cost import attention_flops_per_token, model_flops_per_token
from gatelab.train.feed import Feed
from gatelab.train.stack import StackedBatch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import step_kinds as kinds
import step_profile as profile
from step_kinds import Kernel
from warm_training import Trained, begun

GEMM = "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT"
SPLIT = "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(...)"
# A step as the trainer takes it: a model of one block, the head in two chunks, and the update.
STEP = (
    ("Memcpy HtoD (Pinned -> Device)", kinds.COPIES),
    ("Memcpy DtoD (Device -> Device)", kinds.COPIES),
    ("triton_red_fused__to_copy_embedding_mean_mul_pow_rsqrt_0", kinds.FUSED),
    (GEMM, kinds.BODY),
    ("kernel_cutlass_kernel_gatelabopsgated_attentionhopper_kernelsGatedForward_object_at__tensor", kinds.ATTENTION),
    (GEMM, kinds.BODY),
    (SPLIT, kinds.BODY),
    ("void at::native::vectorized_elementwise_kernel<2, at::native::FillFunctor<float>, ...>", kinds.COPIES),
    (GEMM, kinds.HEAD),
    (SPLIT, kinds.HEAD),
    ("cross_entropy_kernel", kinds.ENTROPY),
    (GEMM, kinds.HEAD),
    (GEMM, kinds.HEAD),
    (SPLIT, kinds.HEAD),
    (GEMM, kinds.HEAD),
    ("cross_entropy_kernel", kinds.ENTROPY),
    (GEMM, kinds.HEAD),
    (GEMM, kinds.HEAD),
    ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, ...>>", kinds.OTHER),
    (GEMM, kinds.BODY),
    ("prepare_kernel", kinds.PREPARE),
    ("kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90FlashAttentionBackwardSm90_object_at_", kinds.ATTENTION),
    ("gradients_kernel", kinds.GATE),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x128x128", kinds.ATTENTION),
    ("triton_poi_fused_embedding_dense_backward_12", kinds.FUSED),
    ("void at::native::(anonymous namespace)::CatArrayBatchedCopy_aligned16_contig<...>", kinds.GATHERED),
    ("triton_red_fused_pow_sum_0", kinds.NORM),
    ("triton_per_fused_pow_sqrt_sum_1", kinds.NORM),
    ("triton_poi_fused_add_clamp_copy__div_gt_mul_sqrt_sub_where_2", kinds.OPTIMIZER),
    ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>", kinds.GATHERED),
)


def test_every_kernel_of_two_steps_is_of_its_kind():
    kernels = [Kernel(name, i, i + 1) for i, (name, _) in enumerate(STEP * 2)]
    assert kinds.kinds_of(kernels) == [kind for _, kind in STEP] * 2


def test_gaps_are_where_none_runs():
    kernels = [Kernel("a", 0, 10), Kernel("b", 5, 8), Kernel("c", 9, 12), Kernel("d", 40, 50), Kernel("e", 51, 52)]
    assert kinds.busy_us(kernels) == 23
    found = profile.profiled(kernels, 2)
    assert found["busy_ms"] == pytest.approx(0.0115) and found["gaps_ms"] == pytest.approx(0.0145)
    assert found["long_gaps"] == {"over_us": 20.0, "count": 0.5, "ms": pytest.approx(0.014)}
    assert found["kinds"] == {kinds.OTHER: {"ms": pytest.approx(27e-3 / 2), "count": 2.5}}


def test_floors_add_up_to_what_a_step_is_counted_as():
    model = override(size("64x2x2x96"), {"max_seq_len": 32, "gate": parse_gates("sdpa-headwise")})
    # One operation and one byte a millisecond.
    floors = kinds.floors_ms(model, Rates(1e3, 1e3, 64), "flash-lean", tokens=128, context=32, runs=3)
    products = floors[kinds.BODY] + floors[kinds.HEAD]
    assert products == pytest.approx(
        3 * 128 * (model_flops_per_token(model, 32) - attention_flops_per_token(model, 32))
    )
    assert floors[kinds.HEAD] == 3 * 128 * 6 * 64 * 96
    # 2 B H T² K forward and 2.5 times that backward, in each of two layers, of which attention's count is three times.
    assert floors[kinds.ATTENTION] == pytest.approx(2 * 3.5 * 2 * 12 * 2 * 32**2 * 32)
    weights = count_parameters(model)
    assert floors[kinds.OPTIMIZER] == pytest.approx((28 * 3 + 4) * weights)
    assert (floors[kinds.NORM], floors[kinds.GATHERED]) == pytest.approx((12 * weights, 24 * weights))
    # Headwise: two tensors of the output's size forward and three backward.
    assert floors[kinds.GATE] == pytest.approx(2 * 5 * 2 * 3 * 128 * 64)
    assert kinds.GATE not in kinds.floors_ms(model, Rates(1e3, 1e3, 64), "hopper", tokens=128, context=32, runs=3)


def test_what_a_step_costs_whatever_its_tokens_follows_from_two():
    def record(tokens: int) -> dict:
        ms = 2.0 + 0.01 * tokens
        found = {"kinds": {kinds.BODY: {"ms": ms, "count": 1}}, "busy_ms": ms}
        # What a graph's profile does not see is taken from the other.
        profiles = {"trained": {"kinds": {}, "busy_ms": 0.0}, "launched": found}
        same = {"size": "s", "gate": "none", "runs": 1, "context": 16, "profiles": profiles}
        return {"name": f"{tokens}", "tokens": tokens, "wall_ms": ms + 0.5, **same}

    head, _, body, gaps, wall = profile.side_by_side([record(100), record(200)]).splitlines()
    assert head.endswith("ms a step, whatever its tokens |")
    # 30,000 and 20,000 nanoseconds a token; ten thousand less, of 100 tokens, are 1 of 3.5 ms.
    assert body == "| products, body | 30000.00 | 20000.00 | -10000.00 | -28.57% | 2.000 |"
    assert gaps.endswith("| 0.500 |") and wall.endswith("| 2.500 |")


def test_a_launched_step_is_the_stacks_own():
    group, _ = begun(Trained("16x1x2x64", 32, 1, context=16, attention="auto", runs=2), "cpu")
    stack = group.stacked()
    batch = StackedBatch(Feed(group.members).at(0), 2, group.device)
    step = profile.launched(group, batch, stack._hyper([1e-3, 0.0], 0))
    before = stack.weights_MP.clone()
    step()
    changed = (stack.weights_MP != before).any(dim=1)
    # The second run's rate is nothing.
    assert changed.tolist() == [True, False]


def test_a_step_of_the_trainer_is_profiled(tmp_path: Path, capsys):
    out = tmp_path / "steps.jsonl"
    profile.main(["--size", "16x1x2x64", "--gate", "sdpa-headwise", "--context", "16", "--tokens", "64", "--device", "cpu",
                  "--out", str(out)])  # fmt: skip
    (record,) = (json.loads(line) for line in out.read_text().splitlines())
    assert list(record["profiles"]) == ["trained"]
    found = record["profiles"]["trained"]["kinds"]
    assert {kinds.BODY, kinds.ATTENTION, kinds.FUSED} <= set(found)
    # Queries with gates, keys and values, out, three of the feed-forward and the head are multiplied; each has two gradients.
    assert found[kinds.BODY]["count"] >= 3 * 6 and record["wall_ms"] > 0 and record["attention"] == "sdpa"
    assert "| products, body |" in capsys.readouterr().out


def test_neither_cases_nor_a_size_is_a_sentence():
    with pytest.raises(SystemExit, match="give --cases or --size"):
        profile.main([])
