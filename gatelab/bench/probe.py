"""bench probe: the statistics of attention from `observe` against those from all matrices (`output_attentions=True`).

Notable: four layers of a decoder of transformers with random weights; both give first-token mass, every key's share,
entropy and focus of every head. The probes are first held to the numeric contract by all four. A length whose matrices would
not fit is timed without them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..config.base import ConfigError
from ..probes.anywhere import MIN_QUERIES
from ..probes.external import observe
from .floors import Rates
from .held import held
from .plan import ProbePlan
from .room import no_room
from .timing import Budget, Timing, Work, take_turns, wall_clock

if find_spec("transformers") is not None:
    # Seconds of import, which are then not the benchmark's.
    import transformers.models.llama.modeling_llama  # noqa: F401

NOTE = (
    "Floor: the pass alone at the product's rate. Probes: sinks, anywhere, shape; the matrices' row takes first-token mass, "
    "every key's share, entropy and focus from them."
)
_PROBES = ("sinks", "anywhere", "shape")
_CHECKED = 48  # tokens
_WIDTHS = {
    "cuda": {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_key_value_heads": 16},
    "cpu": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
}
_MATRICES = "all matrices"
# What is compared, [L, H] each: as the probes call it. Of every key's share the largest, of keys that enough queries see.
STATISTICS = ("first_token_mass", "sink_importance", "attention_entropy", "attention_focus")


def measure(plan: ProbePlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    """A row a length and a way.

    Raises:
        ConfigError: when transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            ["bench probe watches a model of transformers, which is not installed; pip install 'gatelab[hf]'"]
        )
    tell("the contract: first-token mass, every key's share, entropy, focus")
    model = _model(plan.device)
    contract = _contract(model, budget)
    rows: list[Timing] = []
    for i, length in enumerate(plan.length):
        tell(f"{length} tokens")
        rows += _of_length(plan, model, length, contract, rates, budget, share=1 / (len(plan.length) - i))
    return rows


def _of_length(
    plan: ProbePlan, model: nn.Module, length: int, contract: str, rates: Rates, budget: Budget, *, share: float
) -> list[Timing]:
    device = torch.device(plan.device)
    ways = {"no probes": _plain, "probes": _probed, _MATRICES: from_matrices}
    crowded = no_room(_pass_bytes(model, length), plan.device)
    why = dict.fromkeys(ways, crowded) if crowded else {_MATRICES: no_room(_matrix_bytes(model, length), plan.device)}
    if contract != "holds":
        why["probes"] = contract
    floor_ms = rates.ms(0, _flops(model, length))
    ids_BT = torch.randint(0, model.config.vocab_size, (1, 1 if crowded else length), device=device)
    works = {
        name: Work(partial(way, model, ids_BT), floor_ms=floor_ms) for name, way in ways.items() if not why.get(name)
    }
    turns = take_turns(works, device, budget=budget, share=share, measure=wall_clock(device))
    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    shape = f"{length:,}, {layers} layers, {heads} heads of {model.config.hidden_size // heads}"
    rows = []
    for name in ways:
        row = Timing("probe", shape, "none", name, "pass", is_own=name != _MATRICES, at={"length": length})
        if name == "probes":
            row = replace(row, contract=contract)
        if name not in turns.times:
            rows.append(replace(row, contract=why.get(name) or turns.failed[name]))
            continue
        row, base = row.timed(turns.times[name], floor_ms=floor_ms), turns.times.get(_MATRICES)
        rows.append(row if base is None else row.over(turns.times[name], base, _MATRICES))
    return rows


@torch.no_grad()
def _model(device: str) -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config = LlamaConfig(
        vocab_size=4096, max_position_embeddings=131_072, num_hidden_layers=4, use_cache=False, **_WIDTHS[device]
    )
    return LlamaModel._from_config(config, attn_implementation="sdpa").eval().to(device, dtype).requires_grad_(False)


def _plain(model: nn.Module, ids_BT: Tensor, _: None) -> None:
    with torch.no_grad():
        model(ids_BT)


def _probed(model: nn.Module, ids_BT: Tensor, _: None) -> None:
    with torch.no_grad(), observe(model, list(_PROBES)) as recorder:
        model(ids_BT)
    recorder.rows()


def from_matrices(model: nn.Module, ids_BT: Tensor, _: None = None) -> list[Tensor]:
    """First-token mass, every key's importance, entropy and focus, from all attention matrices, layer by layer."""
    n_seen_S = torch.arange(ids_BT.shape[1], 0, -1, device=ids_BT.device)
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = model(ids_BT, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    out = []
    for weights_BHTS in maps:
        wide_BHTS = weights_BHTS.float()
        out.append(wide_BHTS[..., 0].mean(dim=-1))
        out.append(wide_BHTS.sum(dim=2) / n_seen_S)
        out.append(torch.special.entr(wide_BHTS).sum(dim=-1).mean(dim=-1))
        out.append(1 / wide_BHTS.square_().sum(dim=-1))
    return [x.cpu() for x in out]


def _matrix_bytes(model: nn.Module, length: int) -> int:
    """Of all attention matrices."""
    c = model.config
    return c.num_hidden_layers * c.num_attention_heads * length**2 * model.dtype.itemsize


def _pass_bytes(model: nn.Module, length: int) -> int:
    """Of the pass alone in its widest place, the MLP."""
    return length * (2 * model.config.hidden_size + 2 * model.config.intermediate_size) * model.dtype.itemsize


def _flops(model: nn.Module, length: int) -> float:
    """Of the pass alone: 2 a weight and token, and 4 H K a pair of a query and a key that it sees."""
    weights = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("embed_tokens"))
    return 2 * weights * length + 4 * model.config.hidden_size * model.config.num_hidden_layers * length**2 / 2


def _contract(model: nn.Module, budget: Budget) -> str:
    """The first of the four that fails, or what is said of the last."""
    ids_BT = torch.randint(0, model.config.vocab_size, (1, _CHECKED), device=model.device)
    shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
    said = "holds"
    for statistic in STATISTICS:
        arguments = {name: p.detach() for name, p in model.named_parameters()}
        arguments |= {"grad_BTHK": torch.zeros(shape, device=model.device, dtype=model.dtype)}
        watched, whole = (partial(way, model, ids_BT, statistic) for way in (_watched, _of_matrices))
        said = held(watched, whole, arguments, budget)
        if said != "holds":
            return said.replace("output", statistic, 1)
    return said


@torch.no_grad()
def _watched(model: nn.Module, ids_BT: Tensor, statistic: str, **weights: Tensor) -> Tensor:
    """A statistic of every layer and head, [L, H], from the probes."""
    with observe(model, list(_PROBES)) as recorder:
        functional_call(model, weights, (ids_BT,))
    found_LH = torch.full(
        (model.config.num_hidden_layers, model.config.num_attention_heads), torch.nan, device=ids_BT.device
    )
    for row in recorder.rows():
        if row.metric == statistic and row.layer is not None and row.head is not None:
            found_LH[row.layer, row.head] = row.value
    return found_LH


@torch.no_grad()
def _of_matrices(model: nn.Module, ids_BT: Tensor, statistic: str, **weights: Tensor) -> Tensor:
    """The same from the matrices; the first query, which sees nothing else, is left out but where a key's share counts it."""
    model.set_attn_implementation("eager")
    try:
        maps = functional_call(model, weights, (ids_BT,), {"output_attentions": True}).attentions
    finally:
        model.set_attn_implementation("sdpa")
    wide = torch.promote_types(maps[0].dtype, torch.float32)
    weights_LHTS = torch.cat(maps).to(wide)
    later_LHTS, T = weights_LHTS[:, :, 1:], weights_LHTS.shape[2]
    if statistic == "first_token_mass":
        return later_LHTS[..., 0].mean(dim=-1)
    if statistic == "attention_entropy":
        return torch.special.entr(later_LHTS).sum(dim=-1).mean(dim=-1)
    if statistic == "attention_focus":
        return (1 / later_LHTS.square().sum(dim=-1)).mean(dim=-1)
    n_seen_S = torch.arange(T, 0, -1, device=ids_BT.device)
    return (weights_LHTS.sum(dim=2) / n_seen_S)[..., n_seen_S >= max(MIN_QUERIES, T / 2)].amax(dim=-1)
