"""Tiny checkpoints as files: a model's folder, its tokenizer, a GGUF file, and ways to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

WORDS = "a gate may close and a sink may stay where the first token stands, or elsewhere. " * 60
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 300,
}  # fmt: skip
Change = Callable[[Path], None]


def save_tokenizer(folder: Path, *, begins: bool = True) -> None:
    import transformers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([WORDS], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)


def save_model(folder: Path, architecture: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A random model of a class of transformers, such as LlamaForCausalLM, and its folder."""
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**(SIZES | changes)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    model.to(dtype).save_pretrained(folder)
    return model


def without(pattern: str) -> Change:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return change


def changed(**config: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))

    return change


def cut(name: str) -> Change:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def write_gguf(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """A decoder of one layer as llama.cpp's layout has it, with the tokenizer of a folder, and its weights."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (
        ("block_count", 1), ("context_length", 64), ("embedding_length", 16), ("feed_forward_length", 24),
        ("head_count", 4), ("head_count_kv", 2), ("vocab_size", 300),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-6)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draw = np.random.default_rng(0)
    shapes = {
        "attn_q": (16, 16), "attn_k": (8, 16), "attn_v": (8, 16), "attn_output": (16, 16),
        "ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24), "attn_norm": (16,), "ffn_norm": (16,),
    }  # fmt: skip
    tensors = {f"blk.0.{name}": shape for name, shape in shapes.items()}
    tensors |= {"token_embd": (len(tokens), 16), "output_norm": (16,)}
    weights = {name: draw.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
