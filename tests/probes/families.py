"""Families of transformers as random models of two layers, and by which path the probes see their attention.

    python tests/probes/families.py

prints the table as markdown. `registry`: the family looks up its attention function, which `observe` stands around;
`intercepted`: it does not, and `intercepted` notices its softmax; `none`: it has no softmax over the tokens. Layers without
rows are those that `observe` names, and why.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gatelab.config import ProbeConfig
from gatelab.probes.external import observe
from gatelab.probes.external.intercept import Intercepted, intercepted
from gatelab.probes.external.interpose import interposed

T, V, WINDOW = 40, 61, 16
Path = Literal["registry", "intercepted", "none"]

_PLAIN = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = _PLAIN | {"num_key_value_heads": 2, "head_dim": 8}
_EXPERTS = {
    "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}  # fmt: skip
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_MAMBA = {"mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_chunk_size": 16}
_STATE = {"vocab_size": V, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
_T5 = {
    "vocab_size": V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": V, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 2}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_HEADS = {k: v for k, v in _PLAIN.items() if k != "intermediate_size"}


@dataclass(frozen=True)
class Family:
    """A family by the stem of its classes' names (`Llama`), its configuration, and what is expected of it: the path, and
    why layers have no rows, by the class that is named."""

    stem: str
    config: dict[str, Any]
    path: Path = "registry"
    why: dict[str, str] = field(default_factory=dict)


UNSEEN = "no call of an attention function that can be replaced was seen in it"
_TWICE = "it calls attention more than once in a pass"

FAMILIES: dict[str, Family] = {
    # Decoders with the softmax alone.
    "llama": Family("Llama", _GROUPED),
    "mistral": Family("Mistral", _GROUPED | {"sliding_window": WINDOW}),
    "qwen2": Family("Qwen2", _GROUPED),
    "qwen3": Family("Qwen3", _GROUPED),
    "phi": Family("Phi", _PLAIN | {"num_key_value_heads": 2}),
    "phi3": Family("Phi3", _GROUPED | {"sliding_window": WINDOW, "original_max_position_embeddings": 64}),
    "olmo": Family("Olmo", _GROUPED),
    "olmo2": Family("Olmo2", _GROUPED),
    "olmo3": Family("Olmo3", _GROUPED | _SLIDING),
    "granite": Family("Granite", _GROUPED | {"attention_multiplier": 0.3}),
    "glm4": Family("Glm4", _GROUPED),
    "cohere": Family("Cohere", _GROUPED),
    "cohere2": Family("Cohere2", _GROUPED | _SLIDING),
    "starcoder2": Family("Starcoder2", _GROUPED | {"sliding_window": WINDOW}),
    "stablelm": Family("StableLm", _PLAIN | {"num_key_value_heads": 2}),
    "persimmon": Family("Persimmon", _PLAIN),
    "nemotron": Family("Nemotron", _GROUPED),
    "smollm3": Family("SmolLM3", _GROUPED),
    "ernie4_5": Family("Ernie4_5", _GROUPED),
    "seed_oss": Family("SeedOss", _GROUPED),
    "hunyuan": Family("HunYuanDenseV1", _GROUPED),
    "apertus": Family("Apertus", _GROUPED),
    "exaone4": Family("Exaone4", _GROUPED | {"layer_types": ["full_attention", "full_attention"]}),
    "gemma": Family("Gemma", _GROUPED),
    "gemma3": Family("Gemma3Text", _GROUPED | _SLIDING | {"query_pre_attn_scalar": 3}),
    "llama4": Family("Llama4Text", _GROUPED | {
        "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": WINDOW,
        "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0],
    }),
    "gpt2": Family("GPT2", _GPT),
    "gpt_bigcode": Family("GPTBigCode", _GPT),
    "gpt_neox": Family("GPTNeoX", _PLAIN),
    "opt": Family("OPT", _HEADS | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "biogpt": Family("BioGpt", _PLAIN),
    "ctrl": Family("CTRL", _GPT | {"dff": 48}),
    # Experts.
    "mixtral": Family("Mixtral", _GROUPED | _EXPERTS),
    "qwen3_moe": Family("Qwen3Moe", _GROUPED | _EXPERTS),
    "deepseek_v3": Family("DeepseekV3", _PLAIN | {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 8, "first_k_dense_replace": 2,
    }),
    # Sinks, caps, gates, differences.
    "gpt_oss": Family("GptOss", _GROUPED | _EXPERTS | _SLIDING | {"rope_parameters": {"rope_type": "default"}}),
    "granite_swa": Family("GraniteSWA", _GROUPED | _SLIDING),
    "gemma2": Family("Gemma2", _GROUPED | _SLIDING | {"query_pre_attn_scalar": 3, "attn_logit_softcapping": 2.0}),
    "afmoe": Family("Afmoe", _GROUPED | _EXPERTS | _SLIDING | {"num_dense_layers": 2}),
    "laguna": Family("Laguna", _GROUPED | _EXPERTS | {"layer_types": ["full_attention", "full_attention"]}),
    "step3p7": Family("Step3p7Text", _GROUPED | {"sliding_window": WINDOW}),
    "diffllama": Family("DiffLlama", _GROUPED, why={"DiffLlamaAttention": _TWICE}),
    # Hybrids: a softmax in some layers.
    "qwen3_next": Family("Qwen3Next", _GROUPED | _EXPERTS | _DELTA, why={"Qwen3NextGatedDeltaNet": UNSEEN}),
    "qwen3_5": Family("Qwen3_5Text", _GROUPED | _DELTA, why={"Qwen3_5GatedDeltaNet": UNSEEN}),
    "minimax": Family("MiniMax", _GROUPED | _EXPERTS | {
        "layer_types": ["linear_attention", "full_attention"], "block_size": 16,
    }, why={"MiniMaxLightningAttention": UNSEEN}),
    "falcon_h1": Family("FalconH1", _GROUPED | _MAMBA | {"mamba_d_ssm": 64}, why={"FalconH1Mixer": UNSEEN}),
    "jamba": Family("Jamba", _GROUPED | _EXPERTS | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
    }, why={"JambaMambaMixer": UNSEEN}),
    "bamba": Family("Bamba", _GROUPED | _MAMBA | {"attn_layer_indices": [1]}, why={"BambaMixer": UNSEEN}),
    "nemotron_h": Family("NemotronH", _GROUPED | {
        "layers_block_type": ["mamba", "attention"], "ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 8,
        "n_groups": 1, "chunk_size": 16,
    }, why={"NemotronHMamba2Mixer": UNSEEN}),
    "lfm2": Family("Lfm2", _GROUPED | {"layer_types": ["conv", "full_attention"]}, why={"Lfm2ShortConv": UNSEEN}),
    "recurrent_gemma": Family("RecurrentGemma", _GROUPED | {
        "block_types": ["recurrent", "attention"], "attention_window_size": WINDOW, "lru_width": 32,
    }, why={"RecurrentGemmaRecurrentBlock": UNSEEN}),
    # Encoders, and encoders with a decoder.
    "bert": Family("Bert", _PLAIN),
    "roberta": Family("Roberta", _PLAIN),
    "xlm_roberta": Family("XLMRoberta", _PLAIN),
    "electra": Family("Electra", _PLAIN | {"embedding_size": 32}),
    "albert": Family("Albert", _PLAIN | {"embedding_size": 32}, why={"AlbertAttention": _TWICE}),
    "distilbert": Family("DistilBert", {"vocab_size": V, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    "modernbert": Family("ModernBert", _PLAIN | {
        "local_attention": WINDOW, "cls_token_id": 1, "sep_token_id": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    }),
    "t5": Family("T5", _T5),
    "mt5": Family("MT5", _T5),
    "bart": Family("Bart", _BART),
    "pegasus": Family("Pegasus", _BART),
    # Beside the registry.
    "bloom": Family("Bloom", {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "intercepted"),
    "falcon": Family("Falcon", _HEADS, "intercepted"),
    "falcon_grouped": Family("Falcon", _HEADS | {"new_decoder_architecture": True, "num_kv_heads": 2}, "intercepted"),
    "falcon_alibi": Family("Falcon", _HEADS | {"alibi": True, "multi_query": False}, "intercepted"),
    "gptj": Family("GPTJ", _GPT | {"rotary_dim": 4}, "intercepted"),
    "codegen": Family("CodeGen", _GPT | {"rotary_dim": 4}, "intercepted"),
    "gpt_neo": Family("GPTNeo", {
        "vocab_size": V, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
        "window_size": WINDOW, "attention_types": [[["global", "local"], 1]], "bos_token_id": 1, "eos_token_id": 2,
    }, "intercepted"),
    "mpt": Family("Mpt", {"vocab_size": V, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, "intercepted"),
    "xglm": Family("XGLM", {
        "vocab_size": V, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 64,
    }, "intercepted"),
    "openai_gpt": Family("OpenAIGPT", _GPT, "intercepted"),
    "gpt_neox_japanese": Family("GPTNeoXJapanese", _PLAIN | {"intermediate_multiple_size": 2}, "intercepted"),
    "cpmant": Family("CpmAnt", {
        "vocab_size": V, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48, "num_hidden_layers": 2,
        "segment_types": 4, "prompt_types": 4, "prompt_length": 4, "position_bias_num_buckets": 8,
    }, "intercepted"),
    "deberta": Family("Deberta", _PLAIN | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, "intercepted"),
    "deberta_v2": Family("DebertaV2", _PLAIN | {
        "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
    }, "intercepted"),
    "mpnet": Family("MPNet", _PLAIN, "intercepted"),
    "roformer": Family("RoFormer", _PLAIN, "intercepted"),
    "megatron_bert": Family("MegatronBert", _PLAIN, "intercepted"),
    "rembert": Family("RemBert", _PLAIN | {"input_embedding_size": 32}, "intercepted"),
    "luke": Family("Luke", _PLAIN | {"entity_emb_size": 32, "entity_vocab_size": 10}, "intercepted"),
    "convbert": Family("ConvBert", _PLAIN | {"embedding_size": 32}, "intercepted"),
    "squeezebert": Family("SqueezeBert", _PLAIN | {"embedding_size": 32}, "intercepted"),
    "big_bird_full": Family("BigBird", _PLAIN | {"attention_type": "original_full"}, "intercepted"),
    "xlnet": Family("XLNet", {"vocab_size": V, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "intercepted"),
    "xlm": Family("XLM", {
        "vocab_size": V, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
    }, "intercepted"),
    "mvp": Family("Mvp", _BART, "intercepted"),
    "fsmt": Family("FSMT", _BART | {"src_vocab_size": V, "tgt_vocab_size": V, "langs": ["en", "de"]}, "intercepted"),
    "prophetnet": Family("ProphetNet", {
        "vocab_size": V, "hidden_size": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_encoder_layers": 2,
        "num_decoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4,
        "max_position_embeddings": 64, "ngram": 2, "num_buckets": 8, "relative_max_distance": WINDOW,
    }, "intercepted"),
    # Its encoder's softmax is within chunks.
    "led": Family("LED", _BART | {
        "attention_window": [16, 16], "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64,
    }, "intercepted", {"LEDEncoderAttention": UNSEEN}),
    # Softmax within chunks of tokens, or over landmarks.
    "longformer": Family("Longformer", _PLAIN | {"attention_window": [16, 16]}, "none", {"LongformerAttention": UNSEEN}),
    "big_bird": Family("BigBird", _PLAIN | {"block_size": 2, "num_random_blocks": 1}, "none", {"BigBirdAttention": UNSEEN}),
    "nystromformer": Family("Nystromformer", _PLAIN | {
        "num_landmarks": 8, "segment_means_seq_len": T,
    }, "none", {"NystromformerAttention": UNSEEN}),
    # No softmax over tokens.
    "mamba": Family("Mamba", _STATE, "none", {"MambaMixer": UNSEEN}),
    "mamba2": Family("Mamba2", _STATE | {
        "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16,
    }, "none", {"Mamba2Mixer": UNSEEN}),
    "rwkv": Family("Rwkv", _STATE | {"context_length": 64}, "none", {"RwkvSelfAttention": UNSEEN}),
    "fnet": Family("FNet", _PLAIN, "none", {"FNetFourierTransform": UNSEEN}),
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """By which modules a model's attention was called, on each path, and what `observe` gave rows and reasons for."""

    registry: tuple[str, ...]
    intercepted: tuple[Intercepted, ...]
    rows: tuple[tuple[str | None, int], ...]
    unobserved: tuple[tuple[str, str, str], ...]

    @property
    def path(self) -> Path:
        """The first on which anything was seen."""
        return "registry" if self.registry else "intercepted" if self.intercepted else "none"


@cache
def build(name: str, implementation: str | None = None) -> nn.Module:
    """The model with random parameters, none of them zero, in float32; implementation None: the family's default."""
    import transformers

    family = FAMILIES[name]
    config = getattr(transformers, f"{family.stem}Config")(**family.config)
    chosen = {} if implementation is None else {"attn_implementation": implementation}
    torch.manual_seed(0)
    model = getattr(transformers, f"{family.stem}Model")._from_config(config, **chosen)
    for parameter in model.parameters():
        # Norms' gains are near one elsewhere; large queries and keys make attention uneven.
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.25)
    return model.eval()


def tokens(length: int = T) -> Tensor:
    """Two sequences without padding."""
    return torch.randint(3, V, (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def run(model: nn.Module, **given: Any) -> Any:
    """The model on `tokens()`; an encoder-decoder's decoder reads fewer."""
    if model.config.is_encoder_decoder:
        given = {"decoder_input_ids": tokens(T - 7)} | given
    return model(**{"input_ids": tokens()} | given)


@cache
def look(name: str) -> Look:
    """Run a family under `observe` and see what was called."""
    model = build(name)
    called: dict[nn.Module, None] = {}
    seen: list[Intercepted] = []

    def around(attend: Any, module: nn.Module, *args: Any, **keywords: Any) -> Any:
        called[module] = None
        return attend(module, *args, **keywords)

    with interposed(model, around), intercepted(model, seen.append, skip=called.__contains__):
        run(model)
    with observe(model, ["sinks", "massive"], config=ProbeConfig(thresholds=(0.02,))) as recorder:
        run(model)
    names = {module: name for name, module in model.named_modules()}
    rows = [r for r in recorder.rows() if r.source == "sinks" and r.layer is not None]
    return Look(
        tuple(names[m] for m in called),
        tuple(seen),
        tuple(dict.fromkeys((r.stack, r.layer) for r in rows)),
        tuple((u.module, u.class_name, u.why) for u in recorder.unobserved),
    )


def table() -> str:
    """All families as markdown: the path, how many modules called attention on it, how many of them have rows, and what has
    none and why."""
    lines = ["| family | class | path | modules seen | with rows | without rows |", "|---|---|---|---|---|---|"]
    for name in FAMILIES:
        found = look(name)
        n_seen = len(found.registry) + len({call.name for call in found.intercepted})
        reasons = Counter((class_name, why) for _, class_name, why in found.unobserved)
        without = "; ".join(f"{count} {class_name}: {why}" for (class_name, why), count in reasons.items())
        class_name = type(build(name)).__name__
        lines.append(f"| {name} | {class_name} | {found.path} | {n_seen} | {len(found.rows)} | {without} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
