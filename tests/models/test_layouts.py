"""Layouts convert into one another bit for bit, and what one cannot say is refused; all on grouped-query heads."""

import itertools
from dataclasses import replace

import pytest
import torch

from gatelab.models.layouts import LAYOUTS, Canonical, Gain, Geometry, notes, read, write

HEADS = ((8, 2), (16, 8), (6, 1), (4, 4))
GRAINS = [(slug, grain) for slug, layout in LAYOUTS.items() for grain in layout.granularities]


def geometry(heads: tuple[int, int] = (8, 2), rotary_dim: int | None = None) -> Geometry:
    return Geometry(d_model=12, n_heads=heads[0], n_kv_heads=heads[1], head_dim=4, rotary_dim=rotary_dim)


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors_of(
    slug: str, grain: str | None, g: Geometry, *, biases: bool = True, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random tensors of a layout; gains as trained ones are, around 1 or 0."""
    layout = LAYOUTS[slug]
    always, maybe = layout.shapes(g, grain)
    names = always | {n: s for n, s in maybe.items() if biases or not n.endswith(".bias")}
    out = {}
    for i, (name, shape) in enumerate(names.items()):
        is_gain = name.removesuffix(".weight") in layout.norms
        values = drawn(shape, i, torch.float64)
        if is_gain:
            # In float32, offsets that 1 + w does not round; bfloat16's are all such.
            values = (1 + 0.1 * values.clamp(-3, 3)).float().double() - int(layout.gains[0] == "1+w")
        out[name] = values.to(dtype)
    return out


def canonical(grain: str | None = "elementwise", **changes: object) -> Canonical:
    g = geometry()
    own = read("gatelab", tensors_of("gatelab", grain, g, biases=False), g)
    return replace(own, **changes)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Same names, types and bits."""
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and torch.equal(left[n].view(torch.uint8), right[n].view(torch.uint8))
        for n in left
    )


def carries(slug: str, grain: str | None) -> bool:
    """Whether a layout can hold a gate of this granularity, repeated rows included."""
    grains = LAYOUTS[slug].granularities
    return grain in grains or (grain == "headwise" and "elementwise" in grains)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: f"{h[0]}/{h[1]}")
@pytest.mark.parametrize(("slug", "grain"), GRAINS)
def test_a_layout_read_and_written_is_itself(slug: str, grain: str, heads: tuple[int, int], dtype: torch.dtype):
    g = geometry(heads)
    given = tensors_of(slug, grain, g, dtype=dtype)
    own = read(slug, given, g)
    assert own.granularity == grain
    assert same(write(slug, own), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: f"{h[0]}/{h[1]}")
@pytest.mark.parametrize(("slug", "grain"), GRAINS)
def test_every_pair_of_layouts_agrees_through_every_third(
    slug: str, grain: str, heads: tuple[int, int], dtype: torch.dtype
):
    g = geometry(heads)
    # Any activation passes through layouts of its own alone; sigmoid is what the others share.
    given = tensors_of(slug, grain, g, biases=False, dtype=dtype)
    start = read(slug, given, g)
    hosts = [s for s in LAYOUTS if carries(s, grain) and (grain is None or start.activation in LAYOUTS[s].activations)]
    assert slug in hosts
    for second, third in itertools.permutations(hosts, 2):
        there = read(second, write(second, start), g, activation=start.activation)
        on = (
            read(third, write(third, there), g, activation=start.activation)
            if carries(third, there.granularity)
            else None
        )
        if on is None:
            # Rows were repeated on the way, and a headwise layout takes them as they agree.
            on = read(third, write(third, there, granularity="headwise"), g, activation=start.activation)
        assert same(write(slug, on, granularity=grain), given), (second, third)


def test_biases_come_through_a_layout_that_has_more_of_them_and_one_that_has_fewer():
    g = geometry()
    given = tensors_of("afmoe", "elementwise", g)
    assert "gate_proj.bias" not in given and "o_proj.bias" in given
    for second, third in itertools.permutations(
        ["gatelab", "olmo-core", "qwen-gated-elementwise", "qwen3-next", "megatron"], 2
    ):
        there = read(second, write(second, read("afmoe", given, g)), g)
        back = write("afmoe", read(third, write(third, there), g))
        assert same(back, given), (second, third)
    fused = write("qwen3-next", read("afmoe", given, g))
    assert fused["q_proj.bias"].view(8, 2, 4)[:, 1].count_nonzero() == 0
    assert "gate" in notes("qwen3-next", read("afmoe", given, g))[-1]


def test_a_gate_s_bias_is_refused_where_the_layout_has_none_unless_it_is_zero():
    own = canonical()
    assert "gate_proj.bias" not in write("afmoe", replace(own, gate_bias_HK=torch.zeros(8, 4)))
    with pytest.raises(ValueError, match="afmoe has no bias of gate; layouts that serve are gatelab, "):
        write("afmoe", replace(own, gate_bias_HK=drawn((8, 4), 1)))
    with pytest.raises(ValueError, match="megatron-headwise has no bias of q"):
        write("megatron-headwise", replace(canonical("headwise"), q_bias_HK=drawn((8, 4), 1)))


def test_an_elementwise_gate_becomes_headwise_only_where_all_rows_of_a_head_agree_bit_for_bit():
    own = canonical("elementwise")
    with pytest.raises(
        ValueError, match="step: an elementwise gate cannot be made headwise: the weight rows of head 0"
    ):
        write("step", own)
    agreeing = canonical("headwise").regrained("elementwise")
    assert torch.equal(agreeing.regrained("headwise").gate_HKD, canonical("headwise").gate_HKD)
    off = agreeing.gate_HKD.clone()
    off[5, 3, 7] = torch.nextafter(off[5, 3, 7], torch.tensor(9.0))
    with pytest.raises(ValueError, match="rows of head 5 differ"):
        write("qwen-gated-headwise", replace(agreeing, gate_HKD=off))
    zeros = agreeing.gate_HKD.clone()
    zeros[3] = 0.0
    zeros[3, 2] = -0.0
    with pytest.raises(ValueError, match="rows of head 3 differ"):
        write("qwen-gated-headwise", replace(agreeing, gate_HKD=zeros))
    bias = drawn((8, 1), 3).expand(8, 4).clone()
    bias[2, 1] += 1
    with pytest.raises(ValueError, match="the bias rows of head 2 differ"):
        write("gatelab", replace(agreeing, gate_bias_HK=bias), granularity="headwise")


def test_a_headwise_gate_is_repeated_for_layouts_that_are_elementwise_only():
    own = canonical("headwise")
    gate = write("qwen3-next", own)["q_proj.weight"].view(8, 2, 4, 12)[:, 1]
    assert torch.equal(gate, own.gate_HKD.expand(8, 4, 12))
    assert "repeated" in notes("qwen3-next", own)[-1]
    assert not notes("gatelab", own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("convention", ["w", "1+w"])
def test_gains_around_one_multiply_by_the_same_numbers_in_either_convention(convention: str, dtype: torch.dtype):
    weight_K = ((convention == "w") + 0.1 * drawn((64,), 0, torch.float64)).to(dtype)
    gain = Gain(weight_K, convention)
    other = gain.to("1+w" if convention == "w" else "w", dtype)
    assert other.equals(gain) and not torch.equal(other.weight_K.float(), weight_K.float())
    if dtype is torch.bfloat16 or convention == "w":
        back = other.to(convention, dtype)
        assert back.weight_K.dtype == dtype and torch.equal(back.weight_K, weight_K)


def test_a_float32_offset_finer_than_one_can_bear_multiplies_the_same_after_a_round_trip_and_is_noted():
    offset = Gain(0.1 * drawn((4,), 5), "1+w")
    back = offset.to("w", torch.float32).to("1+w", torch.float32)
    assert back.equals(offset) and not torch.equal(back.weight_K, offset.weight_K)
    own = canonical(q_norm=offset, k_norm=Gain(torch.zeros(4), "1+w"))
    rounded, kept = notes("gatelab", own)
    assert "the gains are the same, and what is stored does not come back bit for bit" in rounded
    assert kept.endswith("the gains are the same")
    assert not notes("qwen3-next", own)


def test_a_bfloat16_offset_that_bfloat16_cannot_hold_as_a_gain_is_kept_in_float32():
    offset = Gain(torch.tensor([0.0123, -0.25], dtype=torch.bfloat16), "1+w")
    gain = offset.to("w", torch.bfloat16)
    assert gain.weight_K.dtype == torch.float32
    assert torch.equal(gain.weight_K, 1 + offset.weight_K.float())
    assert (
        Gain(torch.tensor([0.5], dtype=torch.bfloat16), "1+w").to("w", torch.bfloat16).weight_K.dtype == torch.bfloat16
    )


def test_a_gain_that_float32_cannot_move_exactly_is_noted():
    far = Gain(torch.tensor([0.1, 1.0, 1.0, 1.0]))
    moved = far.to("1+w", torch.float32)
    assert not moved.equals(far)
    sentences = notes("qwen3-next", canonical(q_norm=far, k_norm=Gain(torch.ones(4))))
    assert "q_norm: from w to 1+w, stored as float32; 1 of 4 gains differ" in sentences[0]
    assert "k_norm" in sentences[1] and "the gains are the same" in sentences[1]


def test_what_a_layout_cannot_say_is_refused():
    own = canonical()
    with pytest.raises(ValueError, match=r"qwen3-next has no gate with activation softplus; .* gatelab and laguna"):
        write("qwen3-next", replace(own, activation="softplus"))
    with pytest.raises(ValueError, match="laguna has no gate with activation sigmoid"):
        write("laguna", own)
    with pytest.raises(ValueError, match="qwen3-next norms queries and keys always"):
        write("qwen3-next", replace(own, q_norm=None, k_norm=None))
    with pytest.raises(ValueError, match="qwen3-next has a gate always"):
        write("qwen3-next", canonical(None))
    partial = replace(own, geometry=geometry(rotary_dim=2))
    assert write("qwen3-next", partial)
    with pytest.raises(ValueError, match="qwen-gated-elementwise turns all 4 channels of a head, and here 2 turn"):
        write("qwen-gated-elementwise", partial)
    with pytest.raises(ValueError, match=r"keeps q bfloat16, gate float32 in one tensor, q_proj"):
        write("qwen3-next", replace(own, q_HKD=own.q_HKD.bfloat16()))
    with pytest.raises(ValueError, match=r"layout 'qwen-next': .*did you mean 'qwen3-next'"):
        write("qwen-next", own)
    with pytest.raises(ValueError, match="step has no elementwise gates"):
        write("step", own, granularity="elementwise")


def test_tensors_that_are_not_a_layout_s_are_refused_with_both_shapes_and_the_nearest_layout():
    g = geometry()
    given = tensors_of("qwen3-next", "elementwise", g, biases=False)
    with pytest.raises(ValueError, match=r"not qwen3-next: k_norm.weight \(4,\) is missing"):
        read("qwen3-next", {n: t for n, t in given.items() if n != "k_norm.weight"}, g)
    with pytest.raises(
        ValueError, match=r"not megatron: .*; these tensors would fit qwen-gated-elementwise or qwen3-next"
    ):
        read("megatron", given, g)
    with pytest.raises(
        ValueError, match=r"q_proj.weight has shape \(63, 12\) and not \(64, 12\); no other layout is nearer"
    ):
        read("qwen3-next", given | {"q_proj.weight": given["q_proj.weight"][:-1]}, g)
    with pytest.raises(ValueError, match=r"not megatron: .* is missing; .*; the nearest layout is laguna"):
        headwise = tensors_of("step", "headwise", g, biases=False)
        read("megatron", headwise | {"g_proj.weight": headwise["g_proj.weight"][:-1]}, g)
    with pytest.raises(ValueError, match=r"gate_proj.weight \(1, 1\) is none of its tensors"):
        read("qwen3-next", given | {"gate_proj.weight": torch.ones(1, 1)}, g)
    with pytest.raises(ValueError, match=r"k_proj.bias \(8,\) is missing, as q_proj.bias is there"):
        read("qwen3-next", given | {"q_proj.bias": torch.ones(64)}, g)
    with pytest.raises(ValueError, match=r"g_proj.bias \(8,\) is none of its tensors"):
        step = tensors_of("step", "headwise", g, biases=False)
        read("step", step | {"g_proj.bias": torch.ones(8)}, g)
    with pytest.raises(ValueError, match=r"q_norm.weight has shape \(32,\) and not \(4,\)"):
        olmo = tensors_of("olmo-core", "headwise", g, biases=False)
        read("olmo-core", olmo | {"q_norm.weight": torch.ones(32), "k_norm.weight": torch.ones(8)}, g)


def test_values_that_no_checkpoint_should_hold_are_refused_by_name():
    g = geometry()
    given = tensors_of("afmoe", "elementwise", g, biases=False)
    bad = given["v_proj.weight"].clone()
    bad[3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"v_proj.weight holds 1 values that are NaN or infinite"):
        read("afmoe", given | {"v_proj.weight": bad}, g)
    with pytest.raises(ValueError, match=r"k_proj.weight is of type int8"):
        read("afmoe", given | {"k_proj.weight": given["k_proj.weight"].to(torch.int8)}, g)
    with pytest.raises(ValueError, match=r"k_proj.weight is of type float8_e4m3fn"):
        read("afmoe", given | {"k_proj.weight": given["k_proj.weight"].to(torch.float8_e4m3fn)}, g)
    with pytest.raises(ValueError, match=r"k_proj.weight is of type list"):
        read("afmoe", given | {"k_proj.weight": [1.0]}, g)
    with pytest.raises(ValueError, match=r"k_proj.weight is a torch.sparse_coo tensor"):
        read("afmoe", given | {"k_proj.weight": given["k_proj.weight"].to_sparse()}, g)
    with pytest.raises(ValueError, match="on the meta device"):
        read("afmoe", given | {"k_proj.weight": given["k_proj.weight"].to("meta")}, g)


def test_a_prefix_names_the_layer_and_comes_back():
    g, prefix = geometry(), "model.layers.3.self_attn."
    given = {prefix + n: t for n, t in tensors_of("afmoe", "elementwise", g).items()}
    others = {"model.layers.3.mlp.gate_proj.weight": torch.ones(3, 3)}
    assert same(write("afmoe", read("afmoe", given | others, g, prefix=prefix), prefix=prefix), given)
    with pytest.raises(ValueError, match=r"none of 11 tensors has a name that begins with 'model.layers.4.'"):
        read("afmoe", given, g, prefix="model.layers.4.")


def test_canonical_tensors_that_do_not_fit_are_refused():
    own = canonical()
    with pytest.raises(ValueError, match=r"the weight of gate of shape \(8, 3, 12\): expected \(8, 1, 12\)"):
        replace(own, gate_HKD=own.gate_HKD[:, :3])
    with pytest.raises(ValueError, match=r"the weight of k of shape \(8, 4, 12\): expected \(2, 4, 12\)"):
        replace(own, k_GKD=own.q_HKD)
    with pytest.raises(ValueError, match="one of q_norm and k_norm is missing"):
        replace(own, k_norm=None)
    with pytest.raises(ValueError, match="a gate's bias without its weight"):
        replace(own, gate_HKD=None, gate_bias_HK=torch.ones(8, 1))
    with pytest.raises(ValueError, match="activation='sigmod'"):
        replace(own, activation="sigmod")
    for wrong in ({"n_kv_heads": 3}, {"rotary_dim": 3}, {"rotary_dim": 6}, {"head_dim": 0}):
        with pytest.raises(ValueError):
            Geometry(**{**geometry().model_dump(), **wrong})
