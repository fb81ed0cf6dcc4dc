"""intercepted: softmaxes and fused calls, in every way to write them, and what is no attention."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from gatelab.ops.attention_stats import attention_stats
from gatelab.probes.external.intercept import Fused, Intercepted, Softmaxed, intercepted

B, H, G, T, K = 2, 4, 2, 7, 3
D = H * K
# attend(logits [B, H, T, S], v [B, H, S, K]) -> [B, H, T, K]
Attend = Callable[[Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """Queries, keys and values of heads, and a way to weigh them; every `router` axis makes a softmax that is no attention."""

    def __init__(self, attend: Attend, n_experts: int = T):
        super().__init__()
        self.attend = attend
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(D, D) for _ in range(3))
        self.router = nn.Linear(D, n_experts)

    def forward(self, x_BTD: Tensor, context_BSD: Tensor | None = None, past_BPD: Tensor | None = None) -> Tensor:
        context_BSD = x_BTD if context_BSD is None else context_BSD
        if past_BPD is not None:
            context_BSD = torch.cat([past_BPD, context_BSD], dim=1)
        q, k, v = (
            project(x).unflatten(-1, (H, K)).transpose(1, 2)
            for project, x in ((self.q_proj, x_BTD), (self.k_proj, context_BSD), (self.v_proj, context_BSD))
        )
        y_BTD = self.attend(q @ k.transpose(-1, -2), v).transpose(1, 2).flatten(2)
        shares_BTX = self.router(x_BTD).softmax(dim=-1)
        return x_BTD + y_BTD * shares_BTX.amax(dim=-1, keepdim=True)


class Head(nn.Module):
    """Weighs tokens, outside of any block, and has a softmax over as many words."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(D, T)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.out((x_BTD @ x_BTD.transpose(1, 2)).softmax(dim=-1) @ x_BTD).softmax(dim=-1)


class Model(nn.Module):
    """Two blocks, tokens in, and a softmax out."""

    def __init__(self, attend: Attend):
        super().__init__()
        self.embed = nn.Embedding(T, D)
        self.layers = nn.ModuleList(nn.ModuleDict({"attention": Attention(attend)}) for _ in range(2))
        self.head = Head()

    def forward(
        self,
        input_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        x_BTD = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        past = None if past_key_values is None else past_key_values.x_BPD
        for layer in self.layers:
            x_BTD = layer["attention"](x_BTD, encoder_hidden_states, past)
        return self.head(x_BTD)


IDS = torch.randint(0, T, (B, T), generator=torch.Generator().manual_seed(3))


def folded(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def unfolded(x: Tensor) -> Tensor:
    return x.unflatten(0, (B, H))


WAYS: dict[str, Attend] = {
    "functional, matmul": lambda z, v: torch.matmul(F.softmax(z, dim=-1), v),
    "torch, @": lambda z, v: torch.softmax(z, 3) @ v,
    "method": lambda z, v: z.softmax(-1).matmul(v),
    "special": lambda z, v: torch.special.softmax(z, dim=-1) @ v,
    "module": lambda z, v: nn.Softmax(dim=-1)(z) @ v,
    "cast": lambda z, v: F.softmax(z, dim=-1, dtype=torch.float64).to(v.dtype) @ v,
    "dropout": lambda z, v: F.dropout(z.softmax(-1), 0.5, training=False) @ v,
    "folded, bmm": lambda z, v: unfolded(torch.bmm(F.softmax(folded(z), dim=-1), folded(v))),
    "folded after": lambda z, v: unfolded(z.softmax(-1).view(B * H, T, T).bmm(folded(v))),
    "baddbmm": lambda z, v: unfolded(torch.baddbmm(folded(v), folded(z).softmax(-1), folded(v), beta=0)),
    "einsum": lambda z, v: torch.einsum("bhts,bhsk->bhtk", z.softmax(-1), v),
    "einsum of tokens first": lambda z, v: torch.einsum("bnij, jbnd -> bnid", z.softmax(-1), v.permute(2, 0, 1, 3)),
    "groups": lambda z, v: (z.unflatten(1, (G, 2)).softmax(-1) @ v.unflatten(1, (G, 2))[:, :, :1]).flatten(1, 2),
    "one group": lambda z, v: z.softmax(-1) @ v[:, :1],
}


def model(attend: Attend) -> Model:
    torch.manual_seed(0)
    return Model(attend).eval()


def noticed(model: nn.Module, *args: Any, skip: Any = lambda _: False, **given: Any) -> list[Any]:
    seen: list[Intercepted] = []
    with torch.no_grad(), intercepted(model, seen.append, skip=skip):
        model(*args, **given)
    return seen


def by_hand(model: Model, layer: int, x_BTD: Tensor, context_BSD: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits and weights [B, H, T, S] and values [B, H, S, K] of a layer that reads these, in float64."""
    attention = model.layers[layer]["attention"]
    q, k, v = (
        (x.detach().double().numpy() @ p.weight.detach().double().numpy().T + p.bias.detach().double().numpy())
        .reshape(B, -1, H, K)
        .swapaxes(1, 2)
        for p, x in ((attention.q_proj, x_BTD), (attention.k_proj, context_BSD), (attention.v_proj, context_BSD))
    )
    logits = q @ k.swapaxes(-1, -2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return logits, weights / weights.sum(-1, keepdims=True), v


@pytest.mark.parametrize("way", [*WAYS])
def test_a_softmax_is_noticed_with_its_values_however_it_is_written(way: str) -> None:
    toy = model(WAYS[way])
    first, second = noticed(toy, input_ids=IDS)
    logits, weights, v = by_hand(toy, 0, toy.embed(IDS), toy.embed(IDS))
    assert isinstance(first, Softmaxed) and (first.name, second.name) == ("layers.0.attention", "layers.1.attention")
    assert first.module is toy.layers[0]["attention"]
    np.testing.assert_allclose(first.logits_BHTS.numpy(), logits, atol=1e-5)
    np.testing.assert_allclose(first.weights_BHTS.numpy(), weights, atol=1e-5)
    v = {"groups": v[:, ::2], "one group": v[:, :1]}.get(way, v)
    np.testing.assert_allclose(first.v_BGSK.numpy(), v, atol=1e-5)


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("way", [*WAYS])
def test_outputs_and_gradients_are_bit_for_bit_the_models_own(way: str, is_training: bool) -> None:
    toy = model(WAYS[way]).train(is_training)

    def step() -> list[Tensor]:
        toy.zero_grad()
        out = toy(IDS)
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in toy.parameters())]

    plain = step()
    with intercepted(toy, lambda _: None):
        during = step()
    assert all(torch.equal(a, b) for a, b in zip(plain, during, strict=True))


def test_in_training_the_weights_are_those_before_dropout() -> None:
    toy = model(lambda z, v: F.dropout(z.softmax(-1), 0.5, training=True) @ v)
    weights_BHTS = noticed(toy, IDS)[0].weights_BHTS
    torch.testing.assert_close(weights_BHTS.sum(-1), torch.ones(B, H, T))


NOT_ATTENTION: dict[str, Attend] = {
    "over heads": lambda z, v: z.softmax(dim=1) @ v,
    "over queries": lambda z, v: z.softmax(dim=-2) @ v,
    "of features": lambda z, v: v.softmax(-1) @ (v.transpose(-1, -2) @ v),
    "of logsumexp": lambda z, v: (z - z.logsumexp(-1, keepdim=True)).exp() @ v,
    "of chunks": lambda z, v: F.pad(z[:, :, :6].unflatten(2, (2, 3)).softmax(-1) @ v[:, :, None], (0, 0, 0, 0, 0, 0))[
        :, :, 0, [0, 1, 2, 0, 1, 2, 0]
    ],
}


@pytest.mark.parametrize("kind", [*NOT_ATTENTION])
def test_a_softmax_over_anything_else_is_not_attention(kind: str) -> None:
    # Nor are the router's over as many experts as tokens, and the head's over as many words, of every test here.
    assert noticed(model(NOT_ATTENTION[kind]), IDS) == []


def test_weights_that_are_scaled_before_the_product_come_without_values() -> None:
    first, _ = noticed(model(lambda z, v: (z.softmax(-1) * 0.5) @ v), IDS)
    assert first.v_BGSK is None and first.weights_BHTS.shape == (B, H, T, T)


def test_values_that_are_of_no_sequence_are_left_out() -> None:
    for attend in (lambda z, v: z.softmax(-1) @ v[0], lambda z, v: z.softmax(-1) @ v[:1]):
        assert [call.v_BGSK for call in noticed(model(attend), IDS)] == [None, None]


def test_weights_that_are_hidden_after_the_softmax_are_zero() -> None:
    hidden = ~torch.ones(T, T, dtype=torch.bool).tril()
    first, _ = noticed(model(lambda z, v: z.softmax(-1).masked_fill(hidden, 0.0) @ v), IDS)
    assert first.v_BGSK is not None and torch.equal(first.weights_BHTS == 0, hidden.expand(B, H, T, T))


def test_cross_attention_is_noticed_by_the_length_of_its_context() -> None:
    toy, context_BSD = model(WAYS["method"]), torch.randn(B, 5, D)
    first, _ = noticed(toy, IDS, encoder_hidden_states=context_BSD)
    _, weights, v = by_hand(toy, 0, toy.embed(IDS), context_BSD)
    np.testing.assert_allclose(first.weights_BHTS.numpy(), weights, atol=1e-5)
    np.testing.assert_allclose(first.v_BGSK.numpy(), v, atol=1e-5)


@pytest.mark.parametrize("length", [1, 4])
def test_queries_that_continue_a_cache_are_noticed(length: int) -> None:
    cache = SimpleNamespace(x_BPD=torch.randn(B, 9, D), get_seq_length=lambda: 9)
    first, _ = noticed(model(WAYS["method"]), input_ids=IDS[:, :length], past_key_values=cache)
    assert first.weights_BHTS.shape == (B, H, length, 9 + length)


def test_embeddings_stand_for_tokens() -> None:
    toy = model(WAYS["folded, bmm"])
    (a, _), (b, _) = noticed(toy, IDS), noticed(toy, inputs_embeds=toy.embed(IDS))
    assert torch.equal(a.weights_BHTS, b.weights_BHTS)


def fused(**given: Any) -> Attend:
    return lambda z, v: F.scaled_dot_product_attention(v * 2, v, v + 1, **given)


def test_a_fused_call_is_given_as_it_is() -> None:
    bias = torch.randn(B, 1, T, T)
    first, _ = noticed(model(fused(attn_mask=bias, scale=0.3)), IDS)
    assert isinstance(first, Fused) and first.name == "layers.0.attention"
    assert torch.equal(first.q_BHTK, 2 * first.k_BGSK) and torch.equal(first.v_BGSK, first.k_BGSK + 1)
    assert torch.equal(first.mask, bias) and (first.is_causal, first.scale) == (False, 0.3)
    assert noticed(model(fused(is_causal=True)), IDS)[0].is_causal


def test_a_fused_call_of_groups_or_folded_heads_is_unfolded() -> None:
    def grouped(z: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(v, v[:, ::2], v[:, ::2], None, 0.0, False, enable_gqa=True)

    def flat(z: Tensor, v: Tensor) -> Tensor:
        hidden = torch.ones(B, H, T, T, dtype=torch.bool).tril()
        return unfolded(F.scaled_dot_product_attention(folded(v), folded(v), folded(v), folded(hidden)))

    a, b = noticed(model(grouped), IDS)[0], noticed(model(flat), IDS)[0]
    assert a.q_BHTK.shape == (B, H, T, K) and a.k_BGSK.shape == a.v_BGSK.shape == (B, G, T, K) and a.mask is None
    assert torch.equal(a.q_BHTK, b.q_BHTK) and b.v_BGSK.shape == (B, H, T, K) and b.mask.shape == (B, H, T, T)
    assert torch.equal(b.mask_B1TS[0, 0], torch.ones(T, T, dtype=torch.bool).tril()) and b.bias_BHTS is None


def test_a_mask_that_is_added_is_told_from_a_bias() -> None:
    hidden = torch.zeros(1, 1, T, T).masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -1e4)
    slope_H11 = torch.tensor([1.0, 0.5, 0.25, 0.125])[:, None, None]
    alibi = slope_H11 * torch.arange(T) + hidden
    plain, biased = (noticed(model(fused(attn_mask=mask)), IDS)[0] for mask in (hidden, alibi))
    for call in (plain, biased):
        assert torch.equal(call.mask_B1TS.expand(1, 1, T, T)[0, 0], torch.ones(T, T, dtype=torch.bool).tril())
    assert plain.bias_BHTS is None and noticed(model(fused()), IDS)[0].mask_B1TS is None
    assert torch.equal(biased.bias_BHTS[0, :, -1], (slope_H11 * torch.arange(T))[:, 0])
    assert biased.bias_BHTS.abs().max() < 10
    # A bias that hides a key from one head alone is kept.
    steep = noticed(model(fused(attn_mask=alibi * torch.tensor([3e3, 1.0, 1.0, 1.0])[:, None, None])), IDS)[0]
    lone = noticed(model(fused(attn_mask=torch.tensor([-1e5, 0.0, 0.0, 0.0])[:, None, None].expand(H, T, T))), IDS)[0]
    assert steep.mask_B1TS.shape == (1, 1, T, T) and lone.mask_B1TS.all() and (lone.bias_BHTS[:, 0] == -1e5).all()


def test_the_mask_of_a_softmax_is_what_any_head_has_in_reach() -> None:
    causal = torch.ones(T, T, dtype=torch.bool).tril()

    def attend(z: Tensor, v: Tensor) -> Tensor:
        # One head's bias is steeper than a mask.
        steep = (
            torch.arange(T) * torch.tensor([3e3, 1.0, 0.5, 0.25])[:, None, None]
            - 2e4 * (torch.arange(H) == 0)[:, None, None]
        )
        return (z + steep).masked_fill(~causal, -1e4).softmax(-1) @ v

    first, _ = noticed(model(attend), IDS)
    assert torch.equal(first.mask_B1TS, causal.expand(B, 1, T, T))


def test_zero_queries_and_the_logits_as_a_bias_are_the_same_attention() -> None:
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    first, _ = noticed(model(lambda z, v: z.masked_fill(~causal, torch.finfo(z.dtype).min).softmax(-1) @ v), IDS)
    stats = attention_stats(torch.zeros(B, T, H, 1), torch.zeros(B, T, H, 1), bias_BHTS=first.logits_BHTS)
    want = first.weights_BHTS.double().numpy()
    np.testing.assert_allclose(stats.first_mass_BHT.numpy(), want[..., 0], atol=1e-6)
    np.testing.assert_allclose(stats.importance_BHS.numpy(), want.sum(2) / np.arange(T, 0, -1), atol=1e-6)


def test_modules_to_skip_are_not_given() -> None:
    toy = model(WAYS["method"])
    seen = noticed(toy, IDS, skip={toy.layers[0]["attention"]}.__contains__)
    assert [call.name for call in seen] == ["layers.1.attention"]
    assert noticed(model(fused()), IDS, skip=lambda module: isinstance(module, Attention)) == []


def test_what_probes_compute_meanwhile_is_not_seen() -> None:
    toy, seen = model(WAYS["method"]), []

    def called(call: Softmaxed) -> None:
        seen.append(call)
        call.logits_BHTS.softmax(-1) @ call.v_BGSK

    def compute(*_: Any) -> None:
        torch.randn(B, H, T, T).softmax(-1) @ torch.randn(B, H, T, K)

    modules = (toy.layers[0]["attention"], toy)
    for module in modules:
        module.register_forward_hook(compute)
    with intercepted(toy, called):
        for module in modules:
            module.register_forward_hook(compute)
        toy(IDS)
        compute()
    assert [call.name for call in seen] == ["layers.0.attention", "layers.1.attention"]


def untouched(toy: nn.Module) -> bool:
    return not _get_current_function_mode_stack() and not any(
        m._forward_hooks or m._forward_pre_hooks for m in toy.modules()
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_the_model_leaves_nothing_behind(error: type[BaseException]) -> None:
    is_broken = True

    def attend(z: Tensor, v: Tensor) -> Tensor:
        weights = z.softmax(-1)
        if is_broken:
            raise error
        return weights @ v

    toy, seen = model(attend), []
    with pytest.raises(error), intercepted(toy, seen.append):
        toy(IDS)
    assert seen == [] and untouched(toy)
    with intercepted(toy, seen.append):
        with pytest.raises(error):
            toy(IDS)
        assert seen == []
        is_broken = False
        toy(IDS)
    assert len(seen) == 2 and untouched(toy)


def test_an_error_of_what_is_called_reaches_the_caller() -> None:
    toy = model(WAYS["method"])

    def called(_: Intercepted) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), intercepted(toy, called):
        toy(IDS)
    assert untouched(toy)


class Counting(TorchFunctionMode):
    """Somebody else's mode."""

    n = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


def test_two_watch_one_model_inside_somebody_elses_mode() -> None:
    toy, inner, outer = model(WAYS["method"]), [], []
    with Counting() as counting, intercepted(toy, outer.append):
        with intercepted(toy, inner.append):
            toy(IDS)
        toy(IDS)
    assert (len(outer), len(inner)) == (4, 2) and counting.n > 0 and untouched(toy)


def test_half_precision_is_given_as_it_is() -> None:
    first, _ = noticed(model(lambda z, v: F.softmax(z, -1, dtype=torch.float32).to(v.dtype) @ v).bfloat16(), IDS)
    assert (first.weights_BHTS.dtype, first.v_BGSK.dtype) == (torch.float32, torch.bfloat16)


def test_a_model_that_reads_no_tokens_has_nothing_noticed() -> None:
    class Images(Model):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(inputs_embeds=pixels)

    torch.manual_seed(0)
    assert noticed(Images(WAYS["method"]), torch.randn(B, T, D)) == []


def test_inputs_that_the_model_refuses_are_refused_by_it_and_nothing_stays() -> None:
    toy, seen = model(WAYS["method"]), []
    with intercepted(toy, seen.append):
        for wrong, error in (
            ({"input_ids": torch.tensor(3)}, IndexError),
            ({"input_ids": IDS[0]}, RuntimeError),
            ({"input_ids": IDS + T}, IndexError),
            ({"tokens": IDS}, TypeError),
            ({}, TypeError),
        ):
            with pytest.raises(error):
                toy(**wrong)
        toy(IDS[:0])
        assert seen == []
        toy(IDS)
    assert len(seen) == 2 and untouched(toy)


def first_is_needless(toy: nn.Module) -> Any:
    return lambda module, *_: module is toy.layers[0]["attention"]


def test_a_block_that_needs_none_runs_without_the_mode_and_the_next_with_it() -> None:
    modes: list[int] = []

    def attend(z: Tensor, v: Tensor) -> Tensor:
        modes.append(len(_get_current_function_mode_stack()))
        return z.softmax(-1) @ v

    toy, seen = model(attend), []
    plain = toy(IDS)
    with torch.no_grad(), intercepted(toy, seen.append, needless=first_is_needless(toy)):
        outputs = [toy(IDS), toy(IDS)]
    assert modes == [0, 0, 0, 1, 0, 1] and all(torch.equal(plain, output) for output in outputs)
    assert [call.name for call in seen] == ["layers.1.attention"] * 2 and untouched(toy)


def test_it_is_asked_of_blocks_with_their_arguments_and_not_of_what_runs_inside_or_between() -> None:
    toy, asked = model(WAYS["module"]), []
    context_BSD = torch.randn(B, 5, D)

    def needless(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        asked.append(module)
        assert len(args) == 3 and args[1] is context_BSD and not keywords
        return False

    with intercepted(toy, lambda _: None, needless=needless):
        toy(IDS, encoder_hidden_states=context_BSD)
    assert asked == [layer["attention"] for layer in toy.layers]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_inside_a_block_without_the_mode_leaves_nothing_behind(error: type[BaseException]) -> None:
    is_broken = True

    def attend(z: Tensor, v: Tensor) -> Tensor:
        if is_broken:
            raise error
        return z.softmax(-1) @ v

    toy, seen = model(attend), []
    with intercepted(toy, seen.append, needless=first_is_needless(toy)):
        with pytest.raises(error):
            toy(IDS)
        assert not _get_current_function_mode_stack()
        is_broken = False
        toy(IDS)
    assert [call.name for call in seen] == ["layers.1.attention"] and untouched(toy)
    is_broken = True
    with pytest.raises(error), intercepted(toy, seen.append, needless=first_is_needless(toy)):
        toy(IDS)
    assert untouched(toy)


def test_somebody_elses_mode_goes_on_in_a_block_that_needs_none() -> None:
    made: list[str] = []

    def attend(z: Tensor, v: Tensor) -> Tensor:
        made.append(torch.empty(0).device.type)
        return z.softmax(-1) @ v

    toy, seen = model(attend), []
    # A default device is a mode of torch's own.
    with torch.device("meta"), intercepted(toy, seen.append, needless=first_is_needless(toy)):
        toy(IDS)
    assert made == ["meta", "meta"] and [call.name for call in seen] == ["layers.1.attention"]


def test_a_mode_that_begins_inside_the_model_changes_nothing() -> None:
    toy, seen, inside = model(WAYS["method"]), [], Counting()
    with intercepted(toy, seen.append, needless=first_is_needless(toy)):
        toy.embed.register_forward_hook(lambda *_: (inside.__enter__(), None)[1])
        toy.head.register_forward_pre_hook(lambda *_: inside.__exit__(None, None, None))
        toy(IDS)
    assert [call.name for call in seen] == ["layers.1.attention"] and inside.n > 0
    assert not _get_current_function_mode_stack()


def test_of_two_that_watch_one_may_need_what_the_other_does_not() -> None:
    toy, inner, outer = model(WAYS["method"]), [], []
    with (
        intercepted(toy, outer.append, needless=first_is_needless(toy)),
        intercepted(toy, inner.append, needless=lambda *_: True),
    ):
        toy(IDS)
    assert [call.name for call in outer] == ["layers.1.attention"] and not inner and untouched(toy)
