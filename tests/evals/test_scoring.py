"""Log-probabilities of continuations, against their definition, for our decoders and those of transformers."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from asked import both, checkpoint, counted, ids, log_p
from tiny import model as tiny_config

from gatelab.evals.harness import scoring
from gatelab.evals.harness.external import ExternalPasses
from gatelab.evals.harness.own import OwnPasses
from gatelab.evals.harness.passes import Passes
from gatelab.evals.harness.scoring import Scored, score
from gatelab.models import build_model

pytest.importorskip("transformers")

SIDES = ("transformers", "ours")


# Contexts of 30, 21 and 9 tokens with four continuations each, some of one token, two that differ in their last, two equal.
ASKED = [
    (ids(n, n), continuation)
    for n in (30, 21, 9)
    for continuation in (ids(6, n + 1), [*ids(6, n + 1)[:-1], 7], ids(1, n + 2), ids(3, n + 3), ids(3, n + 3))
] + [([5], ids(4, 3))]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Passes]]:
    _, passes = both(tmp_path_factory.mktemp("scoring"))
    yield passes


def close(a: list[Scored], b: list[Scored]) -> bool:
    return all(
        math.isclose(x.log_p, y.log_p, abs_tol=2e-5) and x.is_greedy == y.is_greedy for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("shares", [True, False])
def test_log_probabilities_are_what_the_definition_gives(
    side: str, batch_size: int, shares: bool, sides: dict[str, Passes]
) -> None:
    passes = sides[side]
    found = score(passes, ASKED, batch_size=batch_size, shares=shares)
    for (context, continuation), one in zip(ASKED, found, strict=True):
        expected, is_greedy = log_p(passes.model, context, continuation)
        assert math.isclose(one.log_p, expected, abs_tol=2e-5) and one.is_greedy == is_greedy and not one.is_tied


@pytest.mark.parametrize("side", SIDES)
def test_greedy_continuations_are_known_as_such(side: str, sides: dict[str, Passes]) -> None:
    passes, context, written = sides[side], ids(24, 0), []
    for _ in range(5):
        written.append(int(passes.logits(passes.whole([[*context, *written]])[0, -1:]).argmax()))
    other = [*written[:-1], (written[-1] + 1) % 300]
    asked = [(context, written), (context, other), (context, written[:2]), (context, written[:1])]
    for shares in (True, False):
        assert [s.is_greedy for s in score(passes, asked, batch_size=4, shares=shares)] == [True, False, True, True]


@pytest.mark.parametrize("side", SIDES)
def test_contexts_of_several_continuations_are_read_once(
    side: str, sides: dict[str, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = sides[side]
    read = counted(passes, monkeypatch)
    context = ids(30, 1)
    asked = [(context, ids(5, seed)) for seed in range(4)]
    score(passes, asked, batch_size=8)
    assert read == {"begin": 30, "go_on": 4 * 4, "whole": 0}
    score(passes, asked, batch_size=8, shares=False)
    assert read["whole"] == 4 * (30 + 4)


@pytest.mark.parametrize("side", SIDES)
def test_answers_of_one_token_take_one_row_of_their_context(
    side: str, sides: dict[str, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, rows = sides[side], []
    plain = passes.whole
    monkeypatch.setattr(passes, "whole", lambda given: rows.extend(given) or plain(given))
    score(passes, [(ids(30, 1), [token]) for token in (3, 4, 5, 6)], batch_size=8)
    assert len(rows) == 1 and len(rows[0]) == 30


def test_progress_counts_every_request_once(sides: dict[str, Passes]) -> None:
    told: list[int] = []
    score(sides["ours"], ASKED, batch_size=2, done=told.append)
    assert sum(told) == len(ASKED) and len(told) > 3


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": "sdpa-elementwise"},
        {"gate": "value-headwise"},
        {"window": 5},
        {"positions": "learned"},
        {"positions": "relative"},
        {"registers": 2},
        {"softmax": "key-bias"},
        {"softmax": "sink-logit"},
        {"gate": "scores-headwise-forget"},
        {"first_hidden_from": ((0,), (1,))},
    ],
    ids=str,
)
def test_shared_contexts_change_nothing_whatever_a_decoder_is_made_of(changes: dict) -> None:
    torch.manual_seed(0)
    passes = OwnPasses(build_model(tiny_config(vocab_size=300, max_seq_len=64, **changes)).eval())
    for parameter in passes.model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    shared, whole = (score(passes, ASKED, batch_size=3, shares=shares) for shares in (True, False))
    assert close(shared, whole)
    expected = [log_p(passes.model, *pair)[0] for pair in ASKED]
    assert all(math.isclose(s.log_p, e, abs_tol=5e-5) for s, e in zip(shared, expected, strict=True))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("GPT2LMHeadModel", {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 64}),
        ("Phi3ForCausalLM", {"pad_token_id": 0}),
        ("Gemma2ForCausalLM", {"head_dim": 4, "final_logit_softcapping": 3.0, "sliding_window": 5}),
        ("OPTForCausalLM", {"ffn_dim": 24, "word_embed_proj_dim": 16}),
        ("MixtralForCausalLM", {"num_local_experts": 4}),
    ],
)
def test_families_of_transformers_score_by_the_definition(architecture: str, changes: dict, tmp_path: Path) -> None:
    passes = ExternalPasses(checkpoint(tmp_path, architecture=architecture, **changes).model)
    found = score(passes, ASKED, batch_size=3)
    for (context, continuation), one in zip(ASKED, found, strict=True):
        # torch's grouped products, of experts, have no float64.
        dtype = torch.float32 if "num_local_experts" in changes else torch.float64
        expected, is_greedy = log_p(passes.model, context, continuation, dtype)
        assert math.isclose(one.log_p, expected, abs_tol=1e-4) and one.is_greedy == is_greedy
    # OPT calls a part of its stack.
    assert passes.heads_apart == (architecture != "OPTForCausalLM") and passes.shares


def test_a_model_whose_cache_begins_anew_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checkpoint(tmp_path)
    stack, forward = found.model.base_model, found.model.base_model.forward

    def forgetful(input_ids=None, use_cache=None, **_given):
        return forward(input_ids=input_ids, use_cache=False)

    monkeypatch.setattr(stack, "forward", forgetful)
    passes = ExternalPasses(found.model)
    assert not passes.shares and not passes.pads
    monkeypatch.undo()
    assert ExternalPasses(found.model).shares


class Fixed(Passes):
    """Logits that are given, whatever was read."""

    shares = False

    def __init__(self, logits_V: torch.Tensor):
        self.logits_V, self.n_ids, self.max_tokens, self.device = logits_V, len(logits_V), 64, torch.device("cpu")

    def whole(self, rows):
        return torch.zeros(len(rows), max(map(len, rows)), 1)

    def logits(self, x_ND):
        return self.logits_V.expand(len(x_ND), -1)

    begin = go_on = write = None


def test_a_tie_is_not_greedy_and_is_told() -> None:
    found = score(
        Fixed(torch.tensor([2.0, 2.0, 1.0])), [([1], [0]), ([1], [1, 1]), ([1], [2]), ([1], [0, 2])], batch_size=2
    )
    assert [(s.is_greedy, s.is_tied) for s in found] == [(False, True), (False, True), (False, False), (False, False)]
    assert math.isclose(found[0].log_p, 2 - math.log(2 * math.exp(2) + math.e), abs_tol=1e-6)


@pytest.mark.parametrize("where", [0, 2])
def test_not_a_number_is_neither_greedy_nor_finite(where: int) -> None:
    logits_V = torch.tensor([2.0, 1.0, 1.0])
    logits_V[where] = math.nan
    (one,) = score(Fixed(logits_V), [([1], [0])], batch_size=1)
    assert math.isnan(one.log_p) and not one.is_greedy and not one.is_tied and not one.is_finite


def test_logits_in_pieces_are_the_same(sides: dict[str, Passes], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(sides["ours"], ASKED, batch_size=4)
    monkeypatch.setattr(scoring, "_LOGITS", 3 * 300)
    assert close(score(sides["ours"], ASKED, batch_size=4), whole)
