"""Tokens a second of greedy decoding: ours and transformers' `generate`, on the same weights, in the same run.

A Llama of transformers is drawn and its weights are copied into our decoder; prompts of unequal length stand in one batch,
padded by each side's own means. Both sides take turns in one process, and the ratio is the median over pairs of turns, so
that a busy machine slows both; transformers' is called as its users call it (key/value cache, sdpa attention, no
compilation). The prompt's pass counts. On a CPU time is that of the process, in which nothing else runs; on a GPU it is the
clock's. Before anything is timed both sides have to give the same tokens, in float32. Goal: no slower at batch 1 and 16.

    python benchmarks/decoding.py                     # CPU, one thread, float32
    python benchmarks/decoding.py --device cuda       # bfloat16, the shape of SmolLM2-135M
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from gatelab.config import ModelConfig
from gatelab.models import build_model
from gatelab.models.decoder import Decoder
from gatelab.models.generate import Keep, continuations, new_cache

BATCHES = (1, 16)
OURS, THEIRS = "gatelab", "transformers"
NAMES = {
    "model.": "", "embed_tokens": "embedding", "layers": "blocks", "post_attention_layernorm": "mlp_norm",
    "input_layernorm": "attention_norm", "self_attn": "attention", "gate_proj": "w1", "up_proj": "w3",
    "down_proj": "w2", "lm_head": "head",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A decoder, and what it is asked: `n_prompt` tokens at most in a prompt, `n_tokens` more."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    vocab_size: int
    n_prompt: int
    n_tokens: int


SIZES = {
    "tiny": Size(256, 4, 8, 4, 768, 4096, 64, 128),
    "smollm2-135m": Size(576, 30, 9, 3, 1536, 49_152, 64, 128),
}


def theirs(size: Size) -> transformers.LlamaForCausalLM:
    """A random Llama that never stops by itself."""
    config = transformers.LlamaConfig(
        vocab_size=size.vocab_size, hidden_size=size.d_model, num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads, num_key_value_heads=size.n_kv_heads, intermediate_size=size.d_ff,
        max_position_embeddings=1024, rms_norm_eps=1e-5, pad_token_id=0, eos_token_id=None, bos_token_id=None,
        tie_word_embeddings=False, initializer_range=0.08,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def ours(size: Size, weights: dict[str, Tensor]) -> Decoder:
    """The same decoder here."""
    config = ModelConfig(
        vocab_size=size.vocab_size, max_seq_len=1024, d_model=size.d_model, n_layers=size.n_layers, n_heads=size.n_heads,
        n_kv_heads=size.n_kv_heads, d_ff=size.d_ff, norm_eps=1e-5,
    )  # fmt: skip
    renamed = {}
    for name, weight in weights.items():
        for word, word_of_ours in NAMES.items():
            name = name.replace(word, word_of_ours)
        renamed["final_norm.weight" if name == "norm.weight" else name] = weight
    model = build_model(config)
    model.load_state_dict(renamed)
    return model.eval()


def prompts(size: Size, batch: int) -> list[Tensor]:
    """Random ids; the first prompt is the longest, the others have half of its length or more."""
    generator = torch.Generator().manual_seed(batch)
    least = size.n_prompt // 2
    lengths = [size.n_prompt, *torch.randint(least, size.n_prompt + 1, (batch - 1,), generator=generator).tolist()]
    return [torch.randint(1, size.vocab_size, (n,), generator=generator) for n in lengths]


def sides(size: Size, batch: int, device: str, dtype: torch.dtype) -> dict[str, Callable[[], list[list[int]]]]:
    """What each side does once: the new tokens of every row, as lists."""
    their_model = theirs(size)
    our_model = ours(size, their_model.state_dict()).to(device, dtype)
    their_model = their_model.to(device, dtype)
    given = [ids.to(device) for ids in prompts(size, batch)]
    longest = max(len(ids) for ids in given)
    tokens_BT = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids in given])
    mask_BT = (tokens_BT != 0).long()

    def generate() -> list[list[int]]:
        out_BT = their_model.generate(
            input_ids=tokens_BT, attention_mask=mask_BT, max_new_tokens=size.n_tokens, do_sample=False
        )
        return out_BT[:, longest:].tolist()

    cache = new_cache(our_model, batch, size.n_prompt + size.n_tokens, Keep())
    print(f"batch {batch}: keys and values take {cache.n_bytes / 2**20:.1f} MiB here")
    return {OURS: lambda: continuations(our_model, given, size.n_tokens), THEIRS: generate}


def compare(size: Size, batch: int, device: str, dtype: torch.dtype, repeats: int) -> None:
    """Alternate the two sides and print the ratio of their medians; refuses when they do not give the same tokens."""
    calls = sides(size, batch, device, dtype)
    first = {name: call() for name, call in calls.items()}  # also the warm-up
    n_new = batch * size.n_tokens
    same = sum(a == b for x, y in zip(*first.values(), strict=True) for a, b in zip(x, y, strict=True))
    if dtype == torch.float32 and same != n_new:
        sys.exit(f"batch {batch}: {n_new - same} of {n_new} tokens differ; no ratio is printed over that")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for turn in range(repeats):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            start = clock()
            calls[name]()  # ends with ids on the host, so nothing is left under way
            seconds[name].append(clock() - start)
    rate = {name: [n_new / s for s in spent] for name, spent in seconds.items()}
    shown = ", ".join(f"{n} {statistics.median(r):,.0f} ({min(r):,.0f} to {max(r):,.0f})" for n, r in rate.items())
    ratios = [a / b for a, b in zip(rate[OURS], rate[THEIRS], strict=True)]
    print(
        f"batch {batch}: tokens/s {shown}; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
        f"goal 1; {same} of {n_new} tokens equal",
        flush=True,
    )


def main() -> None:
    """Both batches on one device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--size", choices=list(SIZES), help="tiny on a CPU, smollm2-135m on a GPU")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    is_cpu = args.device == "cpu"
    name = args.size or ("tiny" if is_cpu else "smollm2-135m")
    dtype = torch.float32 if is_cpu else torch.bfloat16
    where = "CPU, one thread" if is_cpu else torch.cuda.get_device_name()
    print(f"{where}, torch {torch.__version__}, transformers {transformers.__version__}, {dtype}, {name} {SIZES[name]}")
    for batch in BATCHES:
        compare(SIZES[name], batch, args.device, dtype, args.repeats)


if __name__ == "__main__":
    main()
