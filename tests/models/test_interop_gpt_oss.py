"""gpt-oss whole: positions beyond the window, text with a cache, weights in MXFP4, and what is refused of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import changed, save_model, save_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gatelab.models.generate import generate
from gatelab.models.interop import export_model, import_model, load_model, open_folder
from gatelab.models.interop.mxfp4 import numbers
from gatelab.train.objectives import Choices, router_loss

pytest.importorskip("transformers")

YARN = {
    "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False,
}  # fmt: skip
# A limit that some products reach; widths that MXFP4's blocks of 32 divide.
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "head_dim": 6, "num_hidden_layers": 4, "num_local_experts": 5,
    "num_experts_per_tok": 2, "sliding_window": 5, "rope_parameters": YARN, "swiglu_limit": 1.5,
}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
UP, DOWN = (f"model.layers.0.mlp.experts.{word}" for word in ("gate_up_proj", "down_proj"))
IDS = torch.randint(300, (2, 23), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model of transformers and its folder, which is left as it is."""
    folder = tmp_path_factory.mktemp("gpt_oss") / "in"
    model = save_model(folder, "GptOssForCausalLM", **SIZES).eval()
    save_tokenizer(folder)
    return model, folder


@pytest.fixture
def copy(theirs: tuple[nn.Module, Path], tmp_path: Path) -> Path:
    (tmp_path / "copy").mkdir()
    for path in theirs[1].iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "copy"


def logits(model: nn.Module, ids_BT: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found = model(ids_BT)
    return getattr(found, "logits", found)


def imported(folder: Path, out: Path) -> nn.Module:
    return load_model(import_model(folder, out).path)


def test_the_configuration_says_what_a_layer_computes(theirs: tuple[nn.Module, Path], tmp_path: Path) -> None:
    c = import_model(theirs[1], tmp_path / "out").config
    assert (c.softmax.kind, c.window, [c.is_global(layer) for layer in range(4)]) == (
        "sink-logit",
        5,
        [False, True] * 2,
    )
    assert (c.moe.activation.kind, c.moe.activation.limit, c.moe.activation.alpha) == ("clamped_swiglu", 1.5, 1.702)
    assert c.moe.bias and c.moe.router_bias and c.moe.normalise_top_k and c.bias
    assert (c.rope_scaling.kind, c.rope_scaling.truncate, c.d_ff) == ("yarn", False, 64)


def test_logits_and_greedy_text_are_theirs_beyond_the_window(theirs: tuple[nn.Module, Path], tmp_path: Path) -> None:
    ours = imported(theirs[1], tmp_path / "out")
    expected_BTV = logits(theirs[0])
    assert expected_BTV.std() > 0.1
    torch.testing.assert_close(logits(ours), expected_BTV, rtol=0, atol=1e-4)
    text_BT = theirs[0].generate(IDS, max_new_tokens=16, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(generate(ours, IDS, 16), text_BT)


@pytest.mark.parametrize("part", ["window", "sink_logit_H", "limit", "router.bias"])
def test_the_model_is_another_without(part: str, theirs: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """What could be lost without a trace in these tests is large enough to be seen by them."""
    ours = imported(theirs[1], tmp_path / "out")
    for block in ours.blocks:
        if part == "window":
            block.attention.window = None
        if part == "limit":
            kind = block.mlp.moe.activation.model_copy(update={"limit": 100.0})
            block.mlp.moe = block.mlp.moe.model_copy(update={"activation": kind})
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith(part):
                parameter.fill_(-1e4 if part == "sink_logit_H" else 0.0)
    assert (logits(ours) - logits(theirs[0])).abs().max() > 0.01


@pytest.mark.parametrize("first", [1, 4, 9])
def test_steps_with_a_cache_are_the_whole_pass(first: int, theirs: tuple[nn.Module, Path], tmp_path: Path) -> None:
    ours = imported(theirs[1], tmp_path / "out")
    cache, whole_BTV = ours.new_cache(2), logits(ours)
    with torch.no_grad():
        steps = [
            ours(IDS[:, :first], cache=cache),
            *(ours(ids_B1, cache=cache) for ids_B1 in IDS[:, first:].split(1, dim=1)),
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole_BTV, rtol=0, atol=1e-5)


def test_it_leaves_as_it_came(theirs: tuple[nn.Module, Path], tmp_path: Path) -> None:
    import transformers

    import_model(theirs[1], tmp_path / "ours")
    assert export_model(open_folder(tmp_path / "ours"), tmp_path / "out").family == "gpt_oss"
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(theirs[0])
    torch.testing.assert_close(logits(again), logits(theirs[0]), rtol=0, atol=0)


def test_it_goes_on_learning(theirs: tuple[nn.Module, Path], tmp_path: Path) -> None:
    ours, routed = imported(theirs[1], tmp_path / "out").train(), []
    tokens_N = IDS[:, 1:].flatten()

    def loss() -> Tensor:
        routed.clear()
        own = nn.functional.cross_entropy(ours(IDS, routed=routed)[:, :-1].flatten(0, 1), tokens_N)
        counts_LX, n_tokens_L = torch.stack([r.counts_X for r in routed]), torch.tensor([float(IDS.numel())] * 4)
        return own + router_loss(routed, ours.config.moe, Choices(counts_LX, n_tokens_L))

    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-3)
    before = loss()
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in ours.parameters())
    optimizer.step()
    assert loss() < before


def packed(folder: Path) -> dict[str, Tensor]:
    """The experts of a checkpoint replaced by random MXFP4, and its tensors."""
    held, g = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(2)
    for name in [n for n in held if n.endswith(("gate_up_proj", "down_proj"))]:
        X, I, O = held.pop(name).shape  # noqa: E741
        held[f"{name}_blocks"] = torch.randint(256, (X, O, I // 32, 16), generator=g, dtype=torch.uint8)
        held[f"{name}_scales"] = torch.randint(121, 126, (X, O, I // 32), generator=g, dtype=torch.uint8)
    held = {n: t if t.dtype == torch.uint8 or "norm" in n else t.bfloat16() for n, t in held.items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    changed(quantization_config=MXFP4, dtype="bfloat16")(folder)
    return held


def by_the_standard(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[O, B, 16] and [O, B] to [O, 32 B]: E2M1 numbers, the lower half of a byte first, times a power of two."""
    out = np.zeros((*scales.shape, 32))
    for place in np.ndindex(*out.shape):
        byte = int(blocks[(*place[:2], place[2] // 2)])
        half = byte >> 4 if place[2] % 2 else byte & 15
        sign, exponent, mantissa = -1.0 if half & 8 else 1.0, half >> 1 & 3, half & 1
        value = 0.5 * mantissa if exponent == 0 else (1 + 0.5 * mantissa) * 2.0 ** (exponent - 1)
        out[place] = sign * value * 2.0 ** (int(scales[place[:2]]) - 127)
    return out.reshape(len(out), -1)


def test_every_number_of_mxfp4_is_exact() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(2, 1, 1)
    scales = torch.stack([torch.arange(0, 16), torch.arange(237, 253)]).to(torch.uint8)
    found = numbers(blocks, scales)
    assert found.dtype == torch.bfloat16
    np.testing.assert_array_equal(found.double().numpy(), by_the_standard(blocks.numpy(), scales.numpy()))
    assert numbers(blocks[:1], torch.full((1, 16), 255, dtype=torch.uint8)).isnan().all()


def test_experts_in_mxfp4_are_unpacked_as_transformers_does(copy: Path, tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    import transformers

    held, done = packed(copy), import_model(copy, tmp_path / "out")
    assert any("mxfp4" in note for note in done.notes)
    stored = load_file(tmp_path / "out" / "weights.safetensors")
    up_XDF, down_XFD = (mxfp4.convert_moe_packed_tensors(held[f"{n}_blocks"], held[f"{n}_scales"]) for n in (UP, DOWN))
    assert torch.equal(stored["blocks.0.mlp.w1.weight"], up_XDF[..., 0::2].transpose(1, 2))
    assert torch.equal(stored["blocks.0.mlp.w3.weight"], up_XDF[..., 1::2].transpose(1, 2))
    assert torch.equal(stored["blocks.0.mlp.w2.weight"], down_XFD.transpose(1, 2))
    assert {t.dtype for n, t in stored.items() if "norm" not in n} == {torch.bfloat16}
    export_model(open_folder(tmp_path / "out"), tmp_path / "full")
    full = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(load_model(done.path)), logits(full), rtol=0, atol=1e-4)


def test_an_expert_at_a_time_is_unpacked(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(copy)
    seen = []

    def noted(blocks: Tensor, scales: Tensor) -> Tensor:
        seen.append(blocks.dim())
        return numbers(blocks, scales)

    monkeypatch.setattr("gatelab.models.interop.mxfp4.numbers", noted)
    import_model(copy, tmp_path / "out")
    assert set(seen) == {3} and len(seen) == 4 * 5 * 3  # of layers and experts, once for each of ours


def edited(folder: Path, change: Any) -> None:
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file({n: t.contiguous() for n, t in held.items()}, folder / "model.safetensors", metadata={"format": "pt"})


SINKS, ROUTER = "model.layers.1.self_attn.sinks", "model.layers.0.mlp.router.bias"
SPOILT: dict[str, tuple[Any, str]] = {
    "no sinks": (lambda w: w.pop(SINKS), r"tensor model.layers.1.self_attn.sinks \[4\] is missing"),
    "no router bias": (lambda w: w.pop(ROUTER), r"tensor model.layers.0.mlp.router.bias \[5\] is missing"),
    "no experts": (lambda w: w.pop(UP), r"experts.gate_up_proj \[5, 32, 128\] is missing"),
    "turned": (
        lambda w: w.update({UP: w[UP].transpose(1, 2)}),
        r"gate_up_proj has shape \[5, 128, 32\], .* says \[5, 32, 128\]",
    ),
    "too many": (lambda w: w.update({f"{UP}_scale": torch.zeros(3)}), r"gate_up_proj_scale \[3\] has no place"),
    "nan": (
        lambda w: w[f"{DOWN}_bias"][2].fill_(float("nan")),
        r"down_proj_bias \[5, 32\] holds 32 values that are NaN",
    ),
    "bytes": (lambda w: w.update({f"{UP}_blocks": torch.zeros(3, dtype=torch.uint8)}), "blocks is stored as U8"),
}
SPOILT_MXFP4: dict[str, tuple[Any, str]] = {
    "no scales": (lambda w: w.pop(f"{UP}_scales"), r"gate_up_proj \[5, 32, 128\] is missing; did you mean '.*_blocks'"),
    "fewer scales": (
        lambda w: w.update({f"{UP}_scales": w[f"{UP}_scales"][:, :5]}),
        r"_blocks \[5, 128, 1, 16\] and .*_scales \[5, 5, 1\] do not go together",
    ),
    "fewer rows": (
        lambda w: w.update({f"{UP}_{k}": w[f"{UP}_{k}"][:, :64] for k in ("blocks", "scales")}),
        r"gate_up_proj has shape \[5, 32, 64\], .* says \[5, 32, 128\]",
    ),
    "no number": (lambda w: w[f"{DOWN}_scales"].fill_(255), r"down_proj \[5, 64, 32\] holds 10240 values that are NaN"),
    "other bytes": (
        lambda w: w.update({SINKS: torch.zeros(4, dtype=torch.uint8)}),
        r"sinks is stored as U8, and F64, F32, F16, BF16 are read",
    ),
}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"hidden_act": "gelu"}, "hidden_act='gelu' of this gpt_oss"),
    "layers": ({"layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types=.* every n-th"),
    "gate": ({"attn_output_gate": True}, "attn_output_gate=True of this gpt_oss asks for a gate"),
    "quantised": (
        {"quantization_config": {"quant_method": "fp8"}},
        r"quantised \(fp8\); take the full ones, or those of mxfp4",
    ),
    "one expert": ({"num_local_experts": 1}, "top_k=2 of n_experts=1"),
}


@pytest.mark.parametrize("name", [*SPOILT, *SPOILT_MXFP4, *CONFIGS])
def test_a_spoilt_checkpoint_is_refused_in_one_line_and_leaves_no_folder(name: str, copy: Path, tmp_path: Path) -> None:
    if name in CONFIGS:
        change, sentence = CONFIGS[name]
        changed(**change)(copy)
    else:
        if name in SPOILT_MXFP4:
            packed(copy)
        change, sentence = {**SPOILT, **SPOILT_MXFP4}[name]
        edited(copy, change)
    with pytest.raises(ValueError, match=sentence) as refused:
        import_model(copy, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy"]
