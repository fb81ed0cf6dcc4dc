"""Rotary positions: only differences count, norms stay, and every scaling and share turns as its formula says."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gatelab.config.rope import LinearScaling, NTKScaling, RopeScaling, Unscaled, YaRN
from gatelab.nn.rope import Rope

B, T, H, G, K, THETA = 2, 7, 4, 2, 16, 100.0
SCALINGS = [
    Unscaled(),
    LinearScaling(factor=4),
    NTKScaling(factor=4),
    YaRN(factor=4, original_seq_len=64),
    YaRN(factor=4, original_seq_len=64, beta_fast=8, attention_factor=0.7),
]
every_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=["none", "linear", "ntk", "yarn", "yarn-0.7"])
every_fraction = pytest.mark.parametrize("fraction", [1.0, 0.5])


def turned(x: np.ndarray, scaling: RopeScaling, fraction: float, start: int = 0) -> np.ndarray:
    """x [B, T, H, K] in float64, pairs of channels as complex numbers."""
    R = round(K * fraction)
    position_T = np.arange(start, start + x.shape[1])
    phase_TK = np.exp(1j * np.outer(position_T, scaling.frequencies(R, THETA)))
    pairs = (x[..., : R // 2] + 1j * x[..., R // 2 : R]) * scaling.amplitude * phase_TK[:, None]
    return np.concatenate([pairs.real, pairs.imag, x[..., R:]], axis=-1)


def double(x: Tensor) -> np.ndarray:
    return x.double().numpy()


@every_scaling
@every_fraction
@pytest.mark.parametrize("start", [0, 90])
def test_it_equals_the_product_of_complex_numbers(scaling: RopeScaling, fraction: float, start: int):
    rope, x_BTHK = Rope(K, THETA, 128, fraction=fraction, scaling=scaling), torch.randn(B, T, H, K)
    expected = turned(double(x_BTHK), scaling, fraction, start)
    np.testing.assert_allclose(double(rope(x_BTHK, start)), expected, rtol=1e-5, atol=1e-6)


@every_scaling
@every_fraction
def test_scores_depend_on_differences_alone(scaling: RopeScaling, fraction: float):
    q_BTHK, k_BSGK = torch.randn(B, T, H, K), torch.randn(B, T, G, K)
    rope = Rope(K, THETA, 128, fraction=fraction, scaling=scaling)

    def scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
        return np.einsum("bthk,bshk->bhts", q, k.repeat(H // G, axis=2))

    def in_float64(start: int) -> np.ndarray:
        return scores(*(turned(double(x), scaling, fraction, start) for x in (q_BTHK, k_BSGK)))

    def in_tables(start: int) -> np.ndarray:
        return scores(*(double(rope(x, start)) for x in (q_BTHK, k_BSGK)))

    np.testing.assert_allclose(in_float64(0), in_float64(100), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(in_tables(0), in_float64(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(in_tables(100), in_float64(0), rtol=1e-5, atol=1e-5)
    assert not np.allclose(in_tables(0), scores(double(rope(q_BTHK)), double(k_BSGK)), atol=0.1)


@every_scaling
@every_fraction
def test_norms_stay_up_to_the_amplitude_and_the_other_channels_pass_through(scaling: RopeScaling, fraction: float):
    x_BTHK, R = torch.randn(B, T, H, K), round(K * fraction)
    y_BTHK = Rope(K, THETA, 64, fraction=fraction, scaling=scaling)(x_BTHK, 5)
    torch.testing.assert_close(y_BTHK[..., :R].norm(dim=-1), x_BTHK[..., :R].norm(dim=-1) * scaling.amplitude)
    assert torch.equal(y_BTHK[..., R:], x_BTHK[..., R:])


@every_fraction
def test_linear_scaling_reads_position_s_times_t_as_t(fraction: float):
    plain = Rope(K, THETA, 64, fraction=fraction)
    stretched = Rope(K, THETA, 256, fraction=fraction, scaling=LinearScaling(factor=4))
    x_B1HK = torch.randn(B, 1, H, K)
    for t in (0, 1, 17, 63):
        torch.testing.assert_close(stretched(x_B1HK, 4 * t), plain(x_B1HK, t))
    assert not torch.allclose(stretched(x_B1HK, 17), plain(x_B1HK, 17), atol=0.1)


def test_yarn_multiplies_logits_by_the_square_of_its_amplitude():
    q_BTHK, k_BTHK = torch.randn(2, B, T, H, K)
    one, two = (Rope(K, THETA, 64, scaling=YaRN(factor=4, original_seq_len=64, attention_factor=a)) for a in (1.0, 2.0))
    logits_BTH = (one(q_BTHK) * one(k_BTHK)).sum(-1)
    torch.testing.assert_close((two(q_BTHK) * two(k_BTHK)).sum(-1), 4 * logits_BTH)


@pytest.mark.parametrize("theta, head_dim", [(10_000.0, 48), (10_000.0, 64), (100.0, 6), (1_000_000.0, 128)])
def test_the_default_is_the_plain_formula_to_the_last_bit(theta: float, head_dim: int):
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle_TK = torch.outer(torch.arange(4096, dtype=torch.float64), frequency)
    cos_T1K, sin_T1K = angle_TK.cos().float()[:, None], angle_TK.sin().float()[:, None]
    for dtype in (torch.float32, torch.bfloat16):
        x_BTHK = torch.randn(1, 4096, 1, head_dim).to(dtype)
        left, right = x_BTHK.float().chunk(2, dim=-1)
        expected = torch.cat([left * cos_T1K - right * sin_T1K, right * cos_T1K + left * sin_T1K], dim=-1).to(dtype)
        assert torch.equal(Rope(head_dim, theta, 4096)(x_BTHK), expected)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("scaling", SCALINGS[:2] + SCALINGS[3:], ids=["none", "linear", "yarn", "yarn-0.7"])
def test_it_turns_heads_as_transformers_does(scaling: RopeScaling, fraction: float):
    pytest.importorskip("transformers")
    from transformers.models.qwen3_next import modeling_qwen3_next as released

    parameters = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": fraction}
    if scaling.kind != "none":
        parameters |= {"rope_type": scaling.kind, **scaling.model_dump(exclude={"kind", "original_seq_len"})}
    if scaling.kind == "yarn":
        parameters["original_max_position_embeddings"] = scaling.original_seq_len
    config = released.Qwen3NextConfig(head_dim=K, max_position_embeddings=256, rope_parameters=parameters)
    q_BTHK, k_BTGK = torch.randn(B, T, H, K), torch.randn(B, T, G, K)
    cos, sin = released.Qwen3NextRotaryEmbedding(config)(q_BTHK, torch.arange(20, 20 + T)[None])
    expected = released.apply_rotary_pos_emb(q_BTHK, k_BTGK, cos, sin, unsqueeze_dim=2)
    rope = Rope(K, THETA, 64, fraction=fraction, scaling=scaling)
    for x, y in zip((q_BTHK, k_BTGK), expected, strict=True):
        torch.testing.assert_close(rope(x, 20), y, rtol=1e-4, atol=1e-5)


@every_fraction
def test_pieces_are_turned_as_the_whole(fraction: float):
    rope, x_BTHK = Rope(K, THETA, T, fraction=fraction, scaling=SCALINGS[3]), torch.randn(B, T, H, K)
    pieces = [rope(x_BTHK[:, :4]), rope(x_BTHK[:, 4:5], 4), rope(x_BTHK[:, 5:], 5)]
    assert torch.equal(torch.cat(pieces, dim=1), rope(x_BTHK))


@every_fraction
def test_bfloat16_stays_bfloat16_and_is_turned_in_float32(fraction: float):
    rope, x_BTHK = Rope(K, THETA, 64, fraction=fraction), torch.randn(B, T, H, K).bfloat16()
    assert torch.equal(rope(x_BTHK, 50), rope(x_BTHK.float(), 50).bfloat16())


def test_channels_that_do_not_turn_keep_every_bit_of_a_double():
    x_BTHK = torch.randn(B, T, H, K, dtype=torch.float64)
    y_BTHK = Rope(K, THETA, 64, fraction=0.5)(x_BTHK)
    assert y_BTHK.dtype == torch.float64 and torch.equal(y_BTHK[..., K // 2 :], x_BTHK[..., K // 2 :])


def test_the_tables_are_no_part_of_the_state_dict():
    assert not Rope(K, THETA, 64, fraction=0.5).state_dict()


@every_scaling
def test_it_builds_on_the_meta_device(scaling: RopeScaling):
    with torch.device("meta"):
        y_BTHK = Rope(K, THETA, 64, fraction=0.5, scaling=scaling)(torch.randn(B, T, H, K))
    assert y_BTHK.is_meta and y_BTHK.shape == (B, T, H, K)


@every_fraction
def test_it_compiles_to_one_graph_with_the_same_gradient(fraction: float):
    rope, x_BTHK = Rope(K, THETA, 64, fraction=fraction, scaling=SCALINGS[3]), torch.randn(B, T, H, K)
    compiled = torch.compile(rope, fullgraph=True, backend="aot_eager")
    weight_BTHK = torch.randn(B, T, H, K)
    gradients = []
    for module in (rope, compiled):
        leaf = x_BTHK.clone().requires_grad_()
        (module(leaf, 3) * weight_BTHK).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(compiled(x_BTHK, 3), rope(x_BTHK, 3))
    torch.testing.assert_close(*gradients)
    # A rotation's transpose turns back: the gradient has the norm of what came.
    R = round(K * fraction)
    amplitude = SCALINGS[3].amplitude
    torch.testing.assert_close(gradients[0][..., :R].norm(), weight_BTHK[..., :R].norm() * amplitude)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"head_dim": 5}, "head_dim=5 is odd, and rope turns pairs of channels"),
        ({"fraction": 0.3}, "rope_fraction=0.3 of head_dim=16 is 4.8 channels, .* take rope_fraction=0.25 for 4"),
        ({"theta": 0.0}, "rope_theta=0.0: the base of the frequencies is a number above 0"),
        ({"fraction": 0.125, "scaling": NTKScaling(factor=2)}, "rotary_dim=2 is one pair"),
        ({"theta": 1.0, "scaling": SCALINGS[3]}, "theta=1: yarn needs"),
    ],
)
def test_impossible_positions_are_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        Rope(**{"head_dim": K, "theta": THETA, "max_seq_len": 64, **options})


@every_fraction
@pytest.mark.parametrize("width", [K - 2, K + 2])
def test_heads_of_another_width_are_refused(fraction: float, width: int):
    with pytest.raises(RuntimeError, match="sum"):
        Rope(K, THETA, 64, fraction)(torch.randn(B, T, H, width))


def test_positions_past_the_table_are_refused():
    rope = Rope(K, THETA, 8, scaling=LinearScaling(factor=4))
    with pytest.raises(ValueError, match="position 8 is past max_seq_len=8; build the model with a larger one"):
        rope(torch.randn(1, 3, H, K), 6)


def test_float64_stays_float64_in_values_and_in_tables():
    rope, x_BTHK = Rope(K, THETA, 128).double(), torch.randn(B, T, H, K, dtype=torch.float64)
    found = rope(x_BTHK, 90)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), turned(x_BTHK.numpy(), Unscaled(), 1.0, 90), rtol=1e-13, atol=1e-13)


def test_a_module_in_bfloat16_keeps_the_digits_of_its_tables():
    plain, x_BTHK = Rope(K, THETA, 128), torch.randn(B, T, H, K, dtype=torch.bfloat16)
    for cast in (
        Rope(K, THETA, 128).bfloat16(),
        Rope(K, THETA, 128).bfloat16().float(),
        Rope(K, THETA, 128).double().float(),
    ):
        assert torch.equal(cast.cos_TK, plain.cos_TK) and torch.equal(cast.sin_TK, plain.sin_TK)
        assert torch.equal(cast(x_BTHK, 90), plain(x_BTHK, 90))


def test_tables_that_were_built_on_the_meta_device_get_their_values():
    plain, x_BTHK = Rope(K, THETA, 128), torch.randn(B, T, H, K)
    with torch.device("meta"):
        emptied, untouched = Rope(K, THETA, 128), Rope(K, THETA, 128)
        emptied.to_empty(device="cpu")
    for rope in (emptied, untouched):
        assert torch.equal(rope(x_BTHK, 90), plain(x_BTHK, 90))


@every_fraction
@pytest.mark.parametrize("n_tokens", [1, T])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_without_gradients_it_turns_in_fewer_kernels_to_the_same_numbers(
    dtype: torch.dtype, n_tokens: int, fraction: float
):
    rope = Rope(K, THETA, 128, fraction=fraction, scaling=SCALINGS[3])
    rope = rope.double() if dtype == torch.float64 else rope
    x_BTHK = torch.randn(B, n_tokens, 2 * H, K, dtype=torch.float64).to(dtype)[:, :, 1 : H + 1]
    with Kernels() as with_gradients:
        expected = rope(x_BTHK, 90)
    with torch.no_grad(), Kernels() as without:
        found = rope(x_BTHK, 90)
    assert found.dtype == dtype and found.is_contiguous() and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)
    is_partial = fraction < 1
    assert without.names == ["mul", "addcmul", "mul", "addcmul", *["copy_"] * is_partial]
    casts = 2 * ["_to_copy"] if dtype in (torch.bfloat16, torch.float16) else []
    plain = ["mul", "mul", "sub", "mul", "mul", "add", *["cat"] * (1 + is_partial)]
    assert sorted(with_gradients.names) == sorted([*plain, *casts])


def test_without_gradients_it_compiles_to_one_graph():
    rope, x_BTHK = Rope(K, THETA, 64), torch.randn(B, T, H, K)
    compiled = torch.compile(rope, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x_BTHK, 3), rope(x_BTHK, 3))


class Kernels(TorchDispatchMode):
    """The names of what computes or copies, in order; views and empty tensors are neither."""

    def __enter__(self) -> "Kernels":
        self.names: list[str] = []
        return super().__enter__()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if not op.is_view and op.overloadpacket.__name__ not in ("empty_like", "promote_types"):
            self.names.append(op.overloadpacket.__name__)
        return op(*args, **(kwargs or {}))
