"""bench probe: the statistics of attention from `observe` against those from all matrices (`output_attentions=True`).

Notable: four layers of a decoder of transformers with random weights; both give first-token mass, every key's share,
entropy and focus of every head. The probes are first held to the numeric contract by the first-token mass. A length whose
matrices would not fit is timed without them.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..config.base import ConfigError
from ..probes.external import observe
from .candidates import Candidate
from .floors import Rates
from .ops import held
from .plan import ProbePlan
from .timing import Budget, Timing, Work, take_turns, wall_clock

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


def measure(plan: ProbePlan, rates: Rates, budget: Budget, tell: Callable[[str], None]) -> list[Timing]:
    """A row a length and a way.

    Raises:
        ConfigError: when transformers is not installed.
    """
    if find_spec("transformers") is None:
        raise ConfigError(
            ["bench probe watches a model of transformers, which is not installed; pip install 'gatelab[hf]'"]
        )
    tell("the contract: first-token mass")
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
    ids_BT = torch.randint(0, model.config.vocab_size, (1, length), device=device)
    ways = {"no probes": _plain, "probes": _probed, _MATRICES: _from_matrices}
    why = {"probes": "" if contract == "holds" else contract, _MATRICES: _no_room(model, length, device)}
    works = {name: Work(partial(way, model, ids_BT)) for name, way in ways.items() if not why.get(name)}
    turns = take_turns(works, device, budget=budget, share=share, measure=wall_clock(device))
    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    shape = f"{length:,}, {layers} layers, {heads} heads of {model.config.hidden_size // heads}"
    floor_ms = rates.ms(0, _flops(model, length))
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


def _from_matrices(model: nn.Module, ids_BT: Tensor, _: None) -> list[Tensor]:
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


def _no_room(model: nn.Module, length: int, device: torch.device) -> str:
    """Why all matrices cannot be had, or nothing; a CPU's process would be killed where a GPU's raises."""
    if device.type == "cuda":
        room, itemsize = torch.cuda.mem_get_info(device)[0], 2
    else:
        room, itemsize = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"), 4
    n_bytes = model.config.num_hidden_layers * model.config.num_attention_heads * length**2 * itemsize
    if n_bytes < 0.8 * room:
        return ""
    return f"not run: the matrices take {n_bytes / 2**30:.0f} GiB of {room / 2**30:.0f}"


def _flops(model: nn.Module, length: int) -> float:
    """Of the pass alone: 2 a weight and token, and 4 H K a pair of a query and a key that it sees."""
    weights = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("embed_tokens"))
    return 2 * weights * length + 4 * model.config.hidden_size * model.config.num_hidden_layers * length**2 / 2


def _contract(model: nn.Module, budget: Budget) -> str:
    ids_BT = torch.randint(0, model.config.vocab_size, (1, _CHECKED), device=model.device)
    arguments = {name: p.detach() for name, p in model.named_parameters()}
    shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
    arguments |= {"grad_BTHK": torch.zeros(shape, device=model.device, dtype=model.dtype)}
    watched, whole = partial(_mass_watched, model, ids_BT), partial(_mass_of_matrices, model, ids_BT)
    return held(Candidate("probes", watched), whole, arguments, budget)


@torch.no_grad()
def _mass_watched(model: nn.Module, ids_BT: Tensor, **weights: Tensor) -> Tensor:
    """First-token mass of every layer and head, [L, H], from the probe `sinks`."""
    with observe(model, ["sinks"]) as recorder:
        functional_call(model, weights, (ids_BT,))
    mass_LH = torch.zeros(model.config.num_hidden_layers, model.config.num_attention_heads, device=ids_BT.device)
    for row in recorder.rows():
        if row.metric == "first_token_mass" and row.layer is not None and row.head is not None:
            mass_LH[row.layer, row.head] = row.value
    return mass_LH


@torch.no_grad()
def _mass_of_matrices(model: nn.Module, ids_BT: Tensor, **weights: Tensor) -> Tensor:
    """The same from the matrices; the first query, which sees nothing else, is left out."""
    model.set_attn_implementation("eager")
    try:
        maps = functional_call(model, weights, (ids_BT,), {"output_attentions": True}).attentions
    finally:
        model.set_attn_implementation("sdpa")
    mass_LH = torch.stack([weights_BHTS[:, :, 1:, 0].mean(dim=(0, 2)) for weights_BHTS in maps])
    return mass_LH.to(torch.promote_types(mass_LH.dtype, torch.float32))
