"""Layers that are shown to the probes as one view give each layer the rows that it has alone."""

import pytest
import torch

from gatelab.probes.capture import PROBES
from gatelab.probes.external import observe

transformers = pytest.importorskip("transformers")
TOGETHER = [name for name, probe in PROBES.items() if probe.takes_layers]


def model(**changes: object) -> torch.nn.Module:
    fields = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**(fields | changes))
    return transformers.Qwen2ForCausalLM(config).eval()


def rows(net: torch.nn.Module, names: list[str], **inputs: torch.Tensor) -> dict[str, float]:
    with torch.no_grad(), observe(net, names) as recorder:
        net(**inputs)
        net(**inputs)
    return {str({k: v for k, v in r.as_dict().items() if k != "value"}): r.value for r in recorder.rows()}


WINDOWED = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}


@pytest.mark.parametrize("changes", [{}, WINDOWED], ids=["alike", "two with a window"])
@pytest.mark.parametrize("padded", [False, True])
def test_together_is_what_each_layer_gives_alone(
    changes: dict[str, object], padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, generator = model(**changes), torch.Generator().manual_seed(1)
    inputs = {"input_ids": torch.randint(0, 64, (3, 20), generator=generator)}
    if padded:
        mask_BT = torch.ones(3, 20, dtype=torch.int64)
        mask_BT[1, :7] = 0
        inputs["attention_mask"] = mask_BT
    together = rows(net, TOGETHER, **inputs)
    for name in TOGETHER:
        monkeypatch.setattr(PROBES[name], "takes_layers", False)
    alone = rows(net, TOGETHER, **inputs)
    assert len(TOGETHER) >= 5 and together.keys() == alone.keys() and len(alone) > 500
    assert list(together.values()) == pytest.approx([alone[name] for name in together], rel=1e-5, abs=1e-7)


def test_the_residual_meets_the_layers_that_have_attention() -> None:
    """Blocks of which only some attend: the others' norms have no peak."""
    net = model()
    net.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with torch.no_grad(), observe(net, ["anywhere"]) as recorder:
        net(input_ids=torch.arange(20)[None])
    peaks = {r.layer for r in recorder.rows() if r.metric == "sink_residual_peak" and r.layer is not None}
    assert peaks == {0, 2, 3}
