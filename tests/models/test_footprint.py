"""The memory of a look: weights and cache to the byte, the rest within a factor of 2, and a sentence where it is too much."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gatelab.models.footprint import Footprint, Prefill, check_fits, needed
from gatelab.models.memory import available

transformers = pytest.importorskip("transformers")

GIB = 2**30
LLAMA = {
    "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 300,
}  # fmt: skip
MLA = {
    "num_key_value_heads": 8, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "n_routed_experts": 8, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}  # fmt: skip
HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 16,
          "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}  # fmt: skip


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside had at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.forget, storage._cdata)
        return output

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


@torch.no_grad()
def prefill(model: torch.nn.Module, n_tokens: int, chunk: int) -> tuple[int, int]:
    """Bytes of the cache behind all tokens, and the most that else was there."""
    ids_BT = torch.randint(300, (1, n_tokens))
    cache = transformers.DynamicCache(config=model.config)
    with Peak() as measured:
        for start in range(0, n_tokens, chunk):
            model(ids_BT[:, start : start + chunk], past_key_values=cache)
    kept = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    n_bytes = sum(t.numel() * t.element_size() for t in kept if t is not None)
    return n_bytes, measured.peak - n_bytes


def built(family: str, **changes: Any) -> torch.nn.Module:
    config = getattr(transformers, f"{family}Config")(**(LLAMA | changes))
    return transformers.AutoModel.from_config(config).eval()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 700}),
        ("GPT2", {"num_key_value_heads": 8}),
        ("Mistral", {"sliding_window": 100}),
        ("Gemma3Text", {"sliding_window": 40, "head_dim": 16, "num_hidden_layers": 6}),
        ("DeepseekV3", MLA),
        ("Qwen3Next", HYBRID),
    ],
)
def test_weights_and_cache_are_exact_and_activations_within_a_factor_of_2(family: str, changes: dict[str, Any]) -> None:
    model = built(family, **changes)
    n_weights = sum(p.numel() for p in model.parameters())
    cache, rest = prefill(model, 512, 128)
    need = needed(model.config, n_weights, Prefill(512, chunk=128))
    assert need.weights == 4 * n_weights
    assert need.cache == cache
    assert rest / 2 < need.activations < 2 * rest


def test_without_a_cache_or_with_a_bias_activations_are_within_a_factor_of_2() -> None:
    t5 = transformers.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=300)
    ids_BT = torch.randint(300, (1, 512))
    for model, given in (
        (built("Bert", num_key_value_heads=8), {}),
        (transformers.AutoModel.from_config(t5).eval(), {"decoder_input_ids": ids_BT, "use_cache": False}),
    ):
        with torch.no_grad(), Peak() as measured:
            model(input_ids=ids_BT, **given)
        need = needed(model.config, 0, Prefill(512))
        assert need.cache == 0 and need.weights == 0
        assert measured.peak / 2 < need.activations < 2 * measured.peak


def test_what_the_probes_keep_is_added_up_by_its_formula() -> None:
    need = needed(transformers.LlamaConfig(**LLAMA), 0, Prefill(1000, chunk=100, block=50))
    rows = 8 * 1000 * 3 * 8
    one_layer = 4 * 50 * 1000 * 8 + 1000 * 2 * (8 + 8)
    assert need.statistics == 4 * (rows + one_layer)
    hybrid = needed(transformers.Qwen3NextConfig(**(LLAMA | HYBRID)), 0, Prefill(1000, chunk=100, block=50))
    assert hybrid.statistics == 4 * (8 * 1000 * 8 + 4 * 50 * 1000 * 8 + 1000 * 2 * (16 + 16))


def test_all_but_the_weights_grows_with_the_batch_and_the_cache_with_the_length() -> None:
    config = transformers.LlamaConfig(**LLAMA)
    one, three = (needed(config, 1000, Prefill(512, chunk=128, batch=n, has_head=True)) for n in (1, 3))
    assert three.weights == one.weights == 4000
    assert (three.cache, three.logits, three.statistics) == (3 * one.cache, 3 * one.logits, 3 * one.statistics)
    assert one.logits == 128 * 300 * (4 + 4)
    assert needed(config, 0, Prefill(1024, chunk=128)).cache == 2 * one.cache
    assert needed(config, 0, Prefill(512, chunk=128, dtype="bfloat16")).cache == one.cache // 2


def test_an_encoder_decoder_is_counted_with_both_stacks_and_what_crosses() -> None:
    bart = transformers.BartConfig(
        d_model=64, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=8,
        encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=300,
    )  # fmt: skip
    assert needed(bart, 0, Prefill(100, block=10)).statistics == 4 * (
        8 * 100 * (2 * 4 + 3 * 8 + 3 * 8) + 4 * 10 * 100 * 8 + 100 * 8 * (8 + 8)
    )


def test_a_footprint_reads_as_a_total_and_its_terms() -> None:
    need = Footprint(int(0.5 * GIB), 12 * GIB, int(3.14 * GIB), 0, int(25.4 * GIB))
    assert str(need) == "about 41 GiB (weights 0.5, cache 12, activations 3.1, statistics 25)"


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    config = transformers.LlamaConfig(**(LLAMA | {"hidden_size": 2048, "num_attention_heads": 16, "head_dim": 128}))
    look = Prefill(131072, chunk=2048)
    need = needed(config, 10**9, look)
    assert check_fits(config, 10**9, look, free=need.total) == need
    assert check_fits(config, 10**9, look, free=None) == need
    fits_16 = needed(config, 10**9, Prefill(131072, chunk=2048, dtype="bfloat16")).total
    with pytest.raises(
        ValueError, match=r"131072 tokens need about .* take --length \d+ or --dtype bfloat16$"
    ) as raised:
        check_fits(config, 10**9, look, free=fits_16)
    assert str(need) in str(raised.value)
    length = int(str(raised.value).split("--length ")[1].split()[0])
    assert needed(config, 10**9, Prefill(length, chunk=2048)).total <= fits_16
    assert needed(config, 10**9, Prefill(2 * length, chunk=2048)).total > fits_16
    with pytest.raises(ValueError, match=r"0\.00 GiB are free; take a machine with more memory, or a smaller model$"):
        check_fits(config, 10**9, look, free=1000)
    with pytest.raises(ValueError, match=r"take --length \d+ --dtype bfloat16$"):
        check_fits(config, 10**9, look, free=3 * 10**9)


# What is free


def planted(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:  8000 kB\n"}
V2 = {"proc/self/cgroup": "0::/job/step\n"}
V1 = {"proc/self/cgroup": "3:cpu,memory:/job\n1:pids:/job\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MACHINE, 8000 * 1024),
        (MACHINE | V2, 8000 * 1024),
        (MACHINE | V2 | {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "7\n"}, 8000 * 1024),
        (MACHINE | V2 | {"sys/fs/cgroup/memory.max": "5000\n", "sys/fs/cgroup/memory.current": "2000\n"}, 3000),
        (
            MACHINE | V2 | {
                "sys/fs/cgroup/job/memory.max": "5000\n", "sys/fs/cgroup/job/memory.current": "4000\n",
                "sys/fs/cgroup/job/memory.stat": "anon 3000\ninactive_file 700\n",
                "sys/fs/cgroup/job/step/memory.max": "4500\n", "sys/fs/cgroup/job/step/memory.current": "500\n",
            },
            1700,
        ),
        (
            MACHINE | V1 | {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "6000\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "5500\n",
                "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 100\n",
            },
            600,
        ),
        (MACHINE | V2 | {"sys/fs/cgroup/memory.max": "5\n", "sys/fs/cgroup/memory.current": "9\n"}, 0),
    ],
)  # fmt: skip
def test_what_is_free_is_the_least_of_the_machine_and_its_groups(
    tmp_path: Path, files: dict[str, str], free: int
) -> None:
    assert available(root=planted(tmp_path, files)) == free


def test_something_is_free_here() -> None:
    assert (available() or 1) > 0
