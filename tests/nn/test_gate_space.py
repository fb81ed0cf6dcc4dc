"""Every gate there is runs, learns, decodes, packs, saves and compiles; what is refused is refused with its sentence.

`core` are all gates without numbers (rank, mlp, init, around) and a cover of all pairs; the others are marked slow.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

import gate_space
import pytest
import torch
from torch import Tensor, nn

from gatelab.config import REFUSALS, GateSpec, SinkLogit
from gatelab.config.model import check_gates
from gatelab.nn.attention import GatedAttention
from gatelab.nn.cache import KVCache

B, T, S, D, H, G, K = 2, 7, 5, 8, 4, 2, 4
PIECES = (3, 1, 3)
Gates = Callable[[], tuple[GateSpec, ...]]
of_every_gate = pytest.mark.parametrize(
    "gates",
    [
        pytest.param(gate_space.core, id="core"),
        pytest.param(gate_space.rest, id="rest", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)


def layer(spec: GateSpec | None, **options: object) -> GatedAttention:
    """In float64, with gate parameters that are nowhere zero."""
    attention = GatedAttention(
        d_model=D, n_heads=H, n_kv_heads=G, head_dim=K, gate=spec, qk_norm=True, max_seq_len=T, **options
    ).double()
    for parameter in attention.gates.parameters():
        nn.init.normal_(parameter, std=0.7)
    return attention


@lru_cache(maxsize=4096)
def same_layer(spec: GateSpec, *, is_cross: bool = False) -> GatedAttention:
    """The same one for all tests that leave it alone, drawn without moving what they draw."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return layer(spec, rope_theta=None) if is_cross else layer(spec)


@pytest.fixture(autouse=True, scope="module")
def forgotten() -> Iterator[None]:
    yield
    same_layer.cache_clear()


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def new_cache(**options: int) -> KVCache:
    return KVCache(
        n_layers=1, batch=B, max_seq_len=T, n_kv_heads=G, head_dim=K, n_score_heads=H, dtype=torch.float64, **options
    )


def assert_same(found: Tensor, expected: Tensor, spec: GateSpec) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12, msg=lambda m: f"{spec.slug}: {m}")


def is_ignored(spec: GateSpec, name: str) -> bool:
    """One number added to all logits of a row: softmax does not see it, and a slot does (tested below)."""
    return spec.site == "scores" and spec.form == "add" and spec.activation == "identity" and name == "g_proj.bias"


def test_what_is_refused_is_refused_with_its_sentence_and_nothing_else() -> None:
    patterns = {name: re.sub(r"\\\{.*?\\\}", ".+", re.escape(says)) for name, (_, says) in REFUSALS.items()}
    patterns |= {
        "range": r"(init|around)=\S+ is not a value of \w+: its range is .+",
        "bias": r"(init|around)=\S+ needs a bias to start from: add the word 'bias'",
    }
    known = {name: re.compile(rf"(?:gate \S+ is impossible: )?{pattern}") for name, pattern in patterns.items()}
    reached: set[str] = set()
    for fields, found in gate_space.attempts():
        if isinstance(found, str):
            first = next((name for name, pattern in known.items() if pattern.fullmatch(found)), None)
            assert first is not None, (fields, found)
            reached.add(first)
    assert reached == set(known)


def test_a_gate_exists_unless_a_refusal_or_its_start_speaks_against_it() -> None:
    for fields, found in gate_space.attempts():
        described = any(is_nonsense(GateSpec.model_construct(**fields)) for is_nonsense, _ in REFUSALS.values())
        assert described == (isinstance(found, str) and "is impossible" in found), (fields, found)


def test_every_gate_parses_back_from_its_slug_and_no_two_share_one() -> None:
    gates = gate_space.every_gate()
    assert all(GateSpec.parse(g.slug) == g for g in gates)
    assert len({g.slug for g in gates}) == len(gates) > 5000


def test_the_cover_has_every_pair_that_a_gate_has() -> None:
    gates = gate_space.every_gate()
    cover = gate_space.pairwise(gates)
    covered = set().union(*map(gate_space.pairs, cover))
    assert all(gate_space.pairs(g) <= covered for g in gates)
    assert len(cover) < len(gates) / 50
    for axis, values in gate_space.AXES.items():
        assert {getattr(g, axis) for g in cover} == set(values)


@of_every_gate
def test_it_runs_forward_and_backward_and_matters(gates: Gates) -> None:
    x_BTD, upstream_BTD = numbers(B, T, D), numbers(B, T, D)
    plain = layer(None)
    for spec in gates():
        attention = layer(spec)
        attention.load_state_dict(plain.state_dict(), strict=False)
        out_BTD = attention(x_BTD)
        assert not torch.allclose(out_BTD, plain(x_BTD)), spec.slug
        out_BTD.backward(upstream_BTD)
        for name, parameter in attention.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (spec.slug, name)
            word = name.partition(f"gates.{spec.site}.")[2]
            assert not word or parameter.grad.any() or is_ignored(spec, word), (spec.slug, name)


@of_every_gate
def test_decode_in_pieces_equals_the_full_pass(gates: Gates) -> None:
    x_BTD = numbers(B, T, D)
    with torch.no_grad():
        for spec in gates():
            attention, cache, out = same_layer(spec), new_cache(), []
            for piece_BTD in x_BTD.split(PIECES, dim=1):
                out.append(attention(piece_BTD, cache=cache))
                cache.advance(piece_BTD.shape[1])
            assert_same(torch.cat(out, dim=1), attention(x_BTD), spec)


@of_every_gate
def test_future_tokens_do_not_matter(gates: Gates) -> None:
    x_BTD = numbers(B, T, D)
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 4:] = 10 * numbers(B, T - 4, D)
    with torch.no_grad():
        for spec in gates():
            attention = same_layer(spec)
            before_BTD, after_BTD = attention(x_BTD), attention(changed_BTD)
            assert_same(after_BTD[:, :4], before_BTD[:, :4], spec)
            assert not torch.allclose(after_BTD[:, 4:], before_BTD[:, 4:]), spec.slug


@of_every_gate
def test_packed_products_are_the_same(gates: Gates) -> None:
    x_BTD = numbers(B, T, D)
    with torch.no_grad():
        for spec in gates():
            attention = layer(spec, bias=True)
            apart_BTD = attention(x_BTD)
            attention.is_packed = True
            assert_same(attention(x_BTD), apart_BTD, spec)


@of_every_gate
def test_its_state_dict_is_all_of_it(gates: Gates) -> None:
    x_BTD = numbers(B, T, D)
    with torch.no_grad():
        for spec in gates():
            one, other = same_layer(spec), layer(spec)
            out_BTD = one(x_BTD)
            assert not torch.allclose(other(x_BTD), out_BTD), spec.slug
            other.load_state_dict(one.state_dict())
            assert torch.equal(other(x_BTD), out_BTD), spec.slug
            names = {
                n.partition(f"gates.{spec.site}.")[2]: tuple(p.shape) for n, p in one.gates.named_parameters("gates")
            }
            assert names == spec.parameter_shapes(D, H, G, K), spec.slug


@of_every_gate
def test_documents_in_one_row_do_not_see_each_other(gates: Gates) -> None:
    documents, ids_BT = [numbers(B, 3, D), numbers(B, 4, D)], torch.tensor([[0] * 3 + [1] * 4]).expand(B, -1)
    with torch.no_grad():
        for spec in gates():
            attention = same_layer(spec, is_cross=True)
            packed_BTD = attention(torch.cat(documents, dim=1), segment_ids_BT=ids_BT)
            assert_same(packed_BTD, torch.cat([attention(d) for d in documents], dim=1), spec)


def may_cross(spec: GateSpec) -> bool:
    try:
        check_gates((spec,), is_causal=False, is_cross=True)
    except ValueError:
        return False
    return True


def test_what_may_not_cross_is_what_has_no_source_there() -> None:
    stay = {g for g in gate_space.every_gate() if not may_cross(g)}
    assert stay == {g for g in gate_space.every_gate() if g.form == "forget" or (g.site, g.source) == ("sdpa", "value")}


@of_every_gate
def test_cross_attention_with_a_kept_context_equals_the_full_pass(gates: Gates) -> None:
    x_BTD, context_BSD = numbers(B, T, D), numbers(B, S, D)
    with torch.no_grad():
        for spec in filter(may_cross, gates()):
            attention, cache = same_layer(spec, is_cross=True), new_cache()
            full_BTD = attention(x_BTD, context_BSD=context_BSD)
            first, *others = x_BTD.split(PIECES, dim=1)
            out = [attention(first, context_BSD=context_BSD, cache=cache, is_cross=True)]
            out += [attention(piece, cache=cache, is_cross=True) for piece in others]
            assert_same(torch.cat(out, dim=1), full_BTD, spec)
            other_BTD = attention(x_BTD, context_BSD=context_BSD.flip(0))
            assert not torch.allclose(other_BTD, full_BTD), spec.slug


@of_every_gate
def test_a_context_that_is_the_sequence_itself_is_attention_both_ways(gates: Gates) -> None:
    x_BTD = numbers(B, T, D)
    with torch.no_grad():
        for spec in filter(may_cross, gates()):
            attention = same_layer(spec, is_cross=True)
            assert_same(attention(x_BTD, context_BSD=x_BTD.clone()), attention(x_BTD, is_causal=False), spec)


def test_gradients_are_those_of_finite_differences() -> None:
    for spec in gate_space.pairwise(gate_space.every_gate()):
        attention = GatedAttention(
            d_model=4, n_heads=2, n_kv_heads=1, gate=spec, qk_norm=True, rope_theta=None
        ).double()
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.7)
        names, parameters = zip(*attention.named_parameters(), strict=True)

        def out(
            x_BTD: Tensor, *values: Tensor, attention: nn.Module = attention, names: tuple[str, ...] = names
        ) -> Tensor:
            return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), x_BTD)

        try:
            torch.autograd.gradcheck(out, (numbers(1, 3, 4).requires_grad_(), *parameters))
        except RuntimeError as error:
            pytest.fail(f"{spec.slug}: {error}")


def compiled_equals_eager(spec: GateSpec, backend: str) -> None:
    """Output and gradients of one graph, in float32."""
    torch.compiler.reset()
    attention, x_BTD = layer(spec).float(), torch.randn(B, T, D)
    compiled = torch.compile(attention, fullgraph=True, backend=backend)
    results = []
    for module in (attention, compiled):
        attention.zero_grad()
        out_BTD = module(x_BTD)
        out_BTD.square().sum().backward()
        results.append((out_BTD, *(p.grad.clone() for p in attention.parameters())))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5, msg=lambda m: f"{spec.slug}: {m}")


# Where a gate starts changes no graph.
def test_it_is_one_graph() -> None:
    for spec in gate_space.pairwise(gate_space.without(*gate_space.STARTS)):
        compiled_equals_eager(spec, "eager")


def test_the_graph_and_its_gradient_are_traced_to_the_same_numbers() -> None:
    for spec in gate_space.one_of_each(gate_space.without(*gate_space.STARTS)):
        compiled_equals_eager(spec, "aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_graph_of_every_pair_is_traced_to_the_same_numbers() -> None:
    for spec in gate_space.pairwise(gate_space.without(*gate_space.STARTS)):
        compiled_equals_eager(spec, "aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_gate_without_numbers_is_one_graph() -> None:
    for spec in gate_space.without(*gate_space.NUMBERS):
        compiled_equals_eager(spec, "aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecated
def test_it_compiles_to_the_same_numbers() -> None:
    for spec in gate_space.pairwise(gate_space.without(*gate_space.NUMBERS, "bias", "activation")):
        compiled_equals_eager(spec, "inductor")


def test_one_number_added_to_all_logits_of_a_row_matters_to_a_slot_alone() -> None:
    x_BTD, spec = numbers(B, T, D), GateSpec.parse("scores-headwise-identity-add-bias")
    for softmax, is_seen in ((None, False), (SinkLogit(init=0.3), True)):
        attention = layer(spec, softmax=softmax)
        before_BTD = attention(x_BTD)
        attention.gates["scores"].g_proj.bias.data += 1.0
        assert torch.allclose(attention(x_BTD), before_BTD) != is_seen
