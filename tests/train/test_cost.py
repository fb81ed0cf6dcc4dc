"""Operations are those that torch counts in a model; states are exact; activations are near what autograd keeps."""

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gatelab.config import ModelConfig, Run, TrainConfig
from gatelab.config.moe import MoE
from gatelab.config.objective import Continuation, SpanCorruption
from gatelab.models import build_model
from gatelab.models.ladder import SIZES
from gatelab.models.sizes import count_active, count_parameters, parameter_shapes
from gatelab.train.cost import flops_per_token, model_flops_per_token, run_flops, state_bytes, training_bytes
from gatelab.train.objectives import target_loss

EVERY_SITE = "sdpa-elementwise+value-headwise+key-elementwise+query-headwise+out-elementwise"
GROUPED = {"n_heads": 4, "n_kv_heads": 2, "max_seq_len": 40}
# A router that chooses all, since the reference computes the experts that were not chosen too.
CLAMPED = MoE(n_experts=8, top_k=2, d_expert=64, activation="clamped_swiglu", bias=True, router_bias=True)
ALL_EXPERTS = {"d_ff": None, "moe": MoE(n_experts=3, top_k=3, d_expert=8, n_shared=2)}
MODELS = {
    "decoder": {},
    "gated": {"gate": EVERY_SITE},
    "tied": {"tied_embeddings": True, "positions": "learned"},
    "experts": ALL_EXPERTS,
    "experts of values": {"kv_experts": "kv-4top2"},
    "encoder": {"arch": "encoder", "mlp": "gelu", "gate": EVERY_SITE},
    "registers": {"arch": "encoder", "registers": 3},
    "encoder-decoder": {"arch": "encoder-decoder", "n_encoder_layers": 3, "gate": EVERY_SITE},
    "relative": {"arch": "encoder-decoder", "positions": "relative", "mlp": "relu", "tied_embeddings": True},
}


def lengths_of(config: ModelConfig, seq_len: int) -> tuple[int, int | None]:
    return Run(model=config, train=TrainConfig(seq_len=seq_len)).resolved_objective.lengths(seq_len)


def loss_of(config: ModelConfig, seq_len: int, *, batch: int = 1, precision: torch.dtype = torch.float32) -> Any:
    """A model, and a function that computes its loss on the lengths that its own objective makes of `seq_len`."""
    model = build_model(config)
    model.compute_dtype = precision
    read, spoken = lengths_of(config, seq_len)
    tokens_BS = torch.randint(config.vocab_size, (batch, read))
    tokens_BT = None if spoken is None else torch.randint(config.vocab_size, (batch, spoken))
    targets_BT = tokens_BS if tokens_BT is None else tokens_BT
    return model, lambda: target_loss(model, tokens_BS, targets_BT, None, tokens_BT, None if config.moe is None else [])


@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    config, S = tiny.model(**GROUPED | MODELS[name]), 20
    model, loss = loss_of(config, S)
    for module in model.modules():
        if hasattr(module, "impl"):
            module.impl = "reference"  # products that the counter knows
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    # Norms and biases are counted as if they multiplied, as is common; torch counts products of matrices.
    stacks, read = config.architecture.stacks, lengths_of(config, S)[0]
    n = {s.blocks: n + config.registers for s, n in zip(stacks, lengths_of(config, S), strict=False)}
    small = 0
    for word, shape in parameter_shapes(config).items():
        own = n["encoder_blocks" if word.startswith("encoder_") else "blocks"]
        if ".cross_attention.k_norm" in word:
            own = read
        small += 6 * math.prod(shape) * own * (len(shape) == 1)
    # The reference multiplies by the keys that a causal query does not see; half of them are left out here.
    causal = sum(n[s.blocks] ** 2 / 2 * config.depth(s) for s in stacks if s.is_causal)
    unseen = 12 * config.n_heads * config.head_dim * causal
    assert model_flops_per_token(config, S) * S == pytest.approx(counter.get_total_flops() + small - unseen, rel=1e-12)


def test_a_decoder_costs_six_a_weight_and_attention_over_half_of_the_context() -> None:
    for name in ("30m", "paper/1.7b-28l", "70b"):
        m = SIZES[name].model
        run = Run(model=m, train=TrainConfig(seq_len=1024))
        multiplying = count_parameters(m) - (0 if m.tied_embeddings else m.vocab_size * m.d_model)
        assert flops_per_token(run) == 6 * multiplying + 12 * m.n_layers * m.n_heads * m.head_dim * 512
        assert run_flops(run) == flops_per_token(run) * run.train.steps * run.train.tokens_per_step


def test_experts_that_are_not_chosen_cost_nothing() -> None:
    m = SIZES["paper/15a2b"].model
    multiplying = count_active(m) - m.vocab_size * m.d_model
    assert model_flops_per_token(m, 4096) == 6 * multiplying + 12 * 24 * 32 * 128 * 2048


def test_of_biases_too_only_those_of_chosen_experts_count() -> None:
    m = tiny.model(d_ff=None, moe=CLAMPED)
    per_token = model_flops_per_token(m, 16) - 12 * m.n_layers * m.n_heads * m.head_dim * 8
    assert per_token == 6 * (count_active(m) - m.vocab_size * m.d_model)


def test_a_window_costs_the_pairs_that_it_leaves() -> None:
    """Layers 2 and 4 of 4 see everything; the others 5 keys of 20 (the first 5 queries half of them on average)."""
    plain = tiny.model(n_layers=4, max_seq_len=20)
    both = {
        arch: tiny.model(n_layers=4, max_seq_len=20, arch=arch, window=5, global_every=2)
        for arch in ("decoder", "encoder")
    }
    pair = 12 * plain.n_heads * plain.head_dim
    weights = model_flops_per_token(plain, 20) - pair * 4 * 20**2 / 2 / 20
    causal = 2 * 20**2 / 2 + 2 * (15 * 5 + 5**2 / 2)
    assert model_flops_per_token(both["decoder"], 20) == pytest.approx(weights + pair * causal / 20)
    assert model_flops_per_token(both["encoder"], 20) == pytest.approx(weights + pair * 2 * causal / 20)


def test_the_objective_says_who_reads_what() -> None:
    """A continuation of three quarters runs the encoder on more of each source token than one of a quarter."""
    m = tiny.model(arch="encoder-decoder", n_encoder_layers=4, n_layers=1, max_seq_len=40)
    much, little, spans = (
        model_flops_per_token(m, 40, o) for o in (Continuation(share=0.75), Continuation(share=0.25), SpanCorruption())
    )
    assert model_flops_per_token(m, 40) == spans > much > little


@pytest.mark.parametrize("name", ["decoder", "encoder", "encoder-decoder"])
def test_states_are_sixteen_bytes_a_weight(name: str) -> None:
    config = tiny.model(**MODELS[name])
    memory = training_bytes(config, 3, 8)
    assert (
        memory.states == state_bytes(Run(model=config, train=TrainConfig(seq_len=8))) == 16 * count_parameters(config)
    )
    parts = (memory.casts, memory.activations, memory.logits)
    assert memory.total() == memory.states + sum(parts)
    assert memory.total() - memory.total(recompute=True) == memory.activations - memory.recomputed


# With layer norm, whose fused kernel CPUs have too.
KEPT = {
    "decoder": {},
    "relu": {"mlp": "relu"},
    "gelu": {"mlp": "gelu", "bias": True},
    "post": {"norm_position": "post"},
    "sandwich": {"norm_position": "sandwich"},
    "G1 elementwise": {"gate": "sdpa-elementwise"},
    "G1 headwise": {"gate": "sdpa-headwise"},
    "low rank": {"gate": "sdpa-elementwise-rank=8"},
    "every site": {"gate": EVERY_SITE},
    "experts": {"d_ff": None, "moe": MoE(n_experts=8, top_k=2, d_expert=64, n_shared=1)},
    "clamped experts": {"d_ff": None, "moe": CLAMPED},
    "encoder": {"arch": "encoder"},
    "encoder-decoder": {"arch": "encoder-decoder", "n_encoder_layers": 1, "gate": "sdpa-elementwise+value-elementwise"},
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", KEPT)
def test_the_estimate_is_near_what_autograd_keeps(name: str, precision: str) -> None:
    fields = {"d_model": 96, "n_heads": 6, "n_kv_heads": 2, "d_ff": 256, "norm": "layer", "max_seq_len": 48}
    config = tiny.model(**fields | KEPT[name], vocab_size=211)
    model, loss = loss_of(config, 48, batch=2, precision=getattr(torch, precision))
    for module in model.modules():
        if type(module).__name__ == "ExpertMLP":
            module.impl = "grouped"
    states = [*model.parameters(), *model.buffers()]
    own, kept = {t.untyped_storage().data_ptr() for t in states}, {}

    def note(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t  # the tensor too, or its place would be taken again
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        graph = loss()
    assert graph.requires_grad
    found = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in own)
    memory = training_bytes(config, 2, 48, precision=precision)
    # Of the logits, autograd keeps the log-probabilities; their gradient comes later.
    estimate = memory.casts + memory.activations + memory.logits // 2
    assert estimate == pytest.approx(found, rel=0.06)


def test_recomputing_keeps_the_input_of_every_block_and_one_block_whole() -> None:
    three, two = (training_bytes(tiny.model(n_layers=n), 2, 16, precision="float32") for n in (3, 2))
    block = three.activations - two.activations
    block_input = three.recomputed - two.recomputed
    assert block_input == 2 * 16 * 16 * 4
    assert three.recomputed == three.activations - 3 * block + 3 * block_input + block


def test_activations_grow_with_the_batch_and_states_do_not() -> None:
    one, three = (training_bytes(tiny.model(gate=EVERY_SITE, n_kv_heads=1), b, 16) for b in (1, 3))
    assert (three.activations, three.recomputed, three.logits) == (
        3 * one.activations,
        3 * one.recomputed,
        3 * one.logits,
    )
    assert (three.states, three.casts) == (one.states, one.casts)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"precision": "auto"}, "precision='auto': expected 'float32' or 'bfloat16'"),
        ({"batch_size": 0}, "batch_size=0, seq_len=8: give at least one"),
        ({"seq_len": 0}, "batch_size=1, seq_len=0: give at least one"),
    ],
)
def test_what_cannot_be_estimated_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        training_bytes(tiny.model(), **{"batch_size": 1, "seq_len": 8} | wrong)
