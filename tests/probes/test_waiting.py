"""What an observation asks of the host: layers that are alike are gathered as one, blocks that look up their attention run
without the mode, modules are walked once; and none of it changes what is measured, or what is named as not measured."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_side_by_side import TOGETHER, WINDOWED, model, rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gatelab.ops.attention_stats import Stretch, n_bytes_of
from gatelab.probes import probe as probe_module
from gatelab.probes.external import observe, waiting
from gatelab.probes.external.intercept import _Interception
from gatelab.probes.external.watch import UNLIKE, UNSEEN

NAMES = ["sinks", "anywhere", "shape"]
T = 20
IDS = torch.randint(0, 64, (3, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Stretch]:
    """The stretches that statistics were gathered from."""
    seen: list[Stretch] = []
    one_pass = probe_module.one_pass

    def noted(statistics: Any, stretch: Stretch) -> None:
        seen.append(stretch)
        one_pass(statistics, stretch)

    monkeypatch.setattr(probe_module, "one_pass", noted)
    return seen


def look(net: nn.Module, names: list[str] = NAMES, **inputs: Any) -> Any:
    with torch.no_grad(), observe(net, names) as recorder:
        net(**({"input_ids": IDS} | inputs))
    return recorder


def test_layers_that_are_alike_are_gathered_as_one(gathered: list[Stretch]) -> None:
    look(model(num_hidden_layers=7))
    assert [stretch.shape for stretch in gathered] == [(7 * 3, 4, T, T)]


def test_layers_with_a_window_are_gathered_apart_from_those_without(gathered: list[Stretch]) -> None:
    look(model(num_hidden_layers=5, **WINDOWED))
    assert [(len(stretch.q_BTHK), stretch.window) for stretch in gathered] == [(2 * 3, None), (3 * 3, 6)]


def test_sequences_of_other_lengths_are_gathered_apart(gathered: list[Stretch]) -> None:
    mask_BT = torch.ones_like(IDS)
    mask_BT[1, :7] = 0
    look(model(), attention_mask=mask_BT)
    assert [stretch.shape[::2] for stretch in gathered] == [(4, T), (4, T - 7), (4, T)]


def test_a_probe_that_takes_one_layer_at_a_time_has_each_gathered_by_itself(gathered: list[Stretch]) -> None:
    look(model(), [*NAMES, "massive"])
    assert [len(stretch.q_BTHK) for stretch in gathered] == [3] * 4


@pytest.mark.parametrize(("room", "layers"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (6, [6, 1])])
def test_what_waits_to_be_gathered_is_bounded(
    room: int, layers: list[int], gathered: list[Stretch], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model(num_hidden_layers=7)
    look(net)
    n_bytes = n_bytes_of(gathered.pop()) // 7
    assert n_bytes > 4 * 3 * T * 32
    monkeypatch.setattr(waiting, "MOST_BYTES", room * n_bytes + 1)
    look(net)
    assert [len(stretch.q_BTHK) // 3 for stretch in gathered] == layers


@pytest.mark.parametrize("changes", [{}, WINDOWED], ids=["alike", "two with a window"])
@pytest.mark.parametrize("most_bytes", [0, 200_000])
def test_numbers_are_those_of_layers_gathered_one_by_one(
    changes: dict[str, object], most_bytes: int, gathered: list[Stretch], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model(num_hidden_layers=5, **changes)
    together = rows(net, TOGETHER, input_ids=IDS)
    n, _ = len(gathered), gathered.clear()
    monkeypatch.setattr(waiting, "MOST_BYTES", most_bytes)
    apart = rows(net, TOGETHER, input_ids=IDS)
    assert len(gathered) > n and together.keys() == apart.keys() and len(apart) > 500
    assert list(together.values()) == pytest.approx([apart[name] for name in together], rel=1e-6, abs=1e-8)


def test_a_pass_that_failed_leaves_nothing_to_the_next() -> None:
    net = model()
    whole = rows(net, NAMES, input_ids=IDS)

    def fail(*_: Any) -> None:
        raise RuntimeError("half way")

    with torch.no_grad(), observe(net, NAMES) as recorder:
        handle = net.model.layers[2].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="half way"):
            net(IDS)
        handle.remove()
        net(IDS)
        net(IDS)
    assert whole == {str({k: v for k, v in r.as_dict().items() if k != "value"}): r.value for r in recorder.rows()}


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> int:
    with torch.no_grad(), Operations() as counted:
        work()
    return counted.n


def test_a_further_layer_takes_few_operations_more_than_the_model_has() -> None:
    nets = [model(num_hidden_layers=n) for n in (4, 12)]
    few, many = (operations(lambda net=net: look(net)) - operations(lambda net=net: net(IDS)) for net in nets)
    # Most of them are views.
    assert (many - few) / 8 < 12


def test_modules_are_walked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, walked = model(), Counter()
    walk = nn.Module.named_modules

    def counted(self: nn.Module, *args: Any, **keywords: Any) -> Any:
        walked[self] += 1
        return walk(self, *args, **keywords)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    with observe(net, NAMES):
        assert walked[net] == 1


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How many of torch's functions the mode was shown, by the outermost module that ran."""
    seen: Counter = Counter()
    noticed = _Interception.__torch_function__

    def counted(self: Any, *args: Any) -> Any:
        seen[self.names[self.stack[0]] if self.stack else None] += 1
        return noticed(self, *args)

    monkeypatch.setattr(_Interception, "__torch_function__", counted)
    return seen


def test_blocks_like_one_that_looked_up_its_attention_run_without_the_mode(looked_at: Counter) -> None:
    look(model(num_hidden_layers=6))
    assert [*looked_at] == ["model.layers.0"] and looked_at["model.layers.0"] > 20


def test_of_a_family_with_a_softmax_of_its_own_every_block_is_looked_at(looked_at: Counter) -> None:
    import families

    recorder = look(families.build("bloom"), input_ids=families.tokens())
    assert {r.layer for r in recorder.rows() if r.layer is not None} == {0, 1}
    assert {name for name in looked_at if name} == {"h.0", "h.1"}


def hooked(net: nn.Module) -> set[str]:
    """Modules with hooks that run before them."""
    return {name for name, module in net.named_modules() if module._forward_pre_hooks}


def test_what_is_in_a_block_has_hooks_once_it_is_looked_at() -> None:
    net = model()
    blocks, inner = {f"model.layers.{i}" for i in range(4)}, {"self_attn", "mlp", "input_layernorm"}
    with torch.no_grad(), observe(net, ["sinks"]):
        assert hooked(net) == {"", *blocks}
        net(IDS)
        assert hooked(net) > {"", *blocks, *(f"model.layers.0.{name}" for name in inner)}
        assert not any(name.startswith("model.layers.1.") for name in hooked(net))
    assert not hooked(net)


def own_softmax(hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
    scores_BTT = hidden_states @ hidden_states.mT
    hidden = torch.ones_like(scores_BTT, dtype=torch.bool).triu(1)
    weights_BHTS = scores_BTT.masked_fill(hidden, -torch.inf)[:, None].expand(-1, 2, -1, -1).softmax(dim=-1)
    v_BHSK = hidden_states.unflatten(2, (2, -1)).transpose(1, 2)
    return (weights_BHTS @ v_BHSK).transpose(1, 2).flatten(2), None


def test_a_block_that_looks_up_nothing_though_its_likes_did_is_named_and_looked_at_from_then_on() -> None:
    net = model()
    net.model.layers[2].self_attn.forward = own_softmax
    with torch.no_grad(), observe(net, ["sinks"]) as recorder:
        net(IDS)
        assert [(u.module, u.why) for u in recorder.unobserved] == [
            ("model.layers.2.self_attn", UNSEEN),
            ("model.layers.2", UNLIKE),
        ]
        net(IDS)
        assert [u.why for u in recorder.unobserved] == [UNLIKE]  # in the first pass
    assert {r.layer for r in recorder.rows()} == {None, 0, 1, 2, 3}


def test_a_block_that_looks_up_nothing_any_more_is_named() -> None:
    net = model()
    with torch.no_grad(), observe(net, ["sinks"]) as recorder:
        net(IDS)
        assert not recorder.unobserved
        net.model.layers[1].self_attn.forward = own_softmax
        net(IDS)
        assert [(u.module, u.why) for u in recorder.unobserved] == [("model.layers.1", UNLIKE)]


def test_a_block_that_is_given_more_than_its_likes_is_looked_at(looked_at: Counter) -> None:
    net = model()

    def crossing(block: nn.Module) -> Callable[..., Tensor]:
        forward = block.forward

        def both(hidden_states: Tensor, context: Tensor | None = None, **given: Any) -> Tensor:
            hidden_states = forward(hidden_states, **given)
            return hidden_states if context is None else hidden_states + own_softmax(hidden_states)[0]

        return both

    for block in net.model.layers:
        block.forward = crossing(block)
    names = {f"model.layers.{i}" for i in range(4)}
    with torch.no_grad(), observe(net, ["sinks"]):
        net(IDS)
        assert names & looked_at.keys() == {"model.layers.0"}
        looked_at.clear()
        net(IDS, context=torch.zeros(3, T, 32))
        assert names <= looked_at.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, WINDOWED], ids=["alike", "two with a window"])
def test_on_a_gpu_too_numbers_are_those_of_layers_gathered_one_by_one(
    changes: dict[str, object], gathered: list[Stretch], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model(num_hidden_layers=5, max_position_embeddings=512, **changes).cuda().bfloat16()
    ids_BT = torch.randint(0, 64, (2, 300), generator=torch.Generator().manual_seed(2)).cuda()
    together = rows(net, TOGETHER, input_ids=ids_BT)
    n, _ = len(gathered), gathered.clear()
    monkeypatch.setattr(waiting, "MOST_BYTES", 0)
    apart = rows(net, TOGETHER, input_ids=ids_BT)
    assert len(gathered) == 10 > n and together.keys() == apart.keys() and len(apart) > 500
    assert list(together.values()) == pytest.approx([apart[name] for name in together], rel=1e-4, abs=1e-6)
