"""What several rows begin with is read once: which beginnings save most, and that scores and texts are as without them."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from asked import Ids, both, checkpoint, counted, ids, log_p
from tiny import model as tiny_config

from gatelab.config.rope import YaRN
from gatelab.evals.harness import beginnings
from gatelab.evals.harness.beginnings import Family, at_once, batches, families
from gatelab.evals.harness.external import ExternalPasses
from gatelab.evals.harness.own import OwnPasses
from gatelab.evals.harness.passes import Passes, read_in_a_pass
from gatelab.evals.harness.scoring import score
from gatelab.models import build_model
from gatelab.models.generate import Sampling

pytest.importorskip("transformers")

SIDES = ("transformers", "ours")
GREEDY = Sampling(temperature=0.0)


# Two subjects with worked examples of 20 and 17 tokens, five questions each of 3 to 9 tokens, four answers of one token or of
# several; and a question without examples.
EXAMPLES = (ids(20, 0), ids(17, 1))
QUESTIONS = [[*examples, *ids(3 + n + n % 3, 7 * n + k)] for k, examples in enumerate(EXAMPLES) for n in range(5)]
ONE = [(question, [token]) for question in QUESTIONS for token in (3, 4, 5, 6)]
MANY = [(question, ids(n, n)) for question in QUESTIONS for n in (1, 2, 4, 5, 6)]
LONG = [
    ([*question, *ids(30, 5)], answer) for question, answer in MANY
]  # a question that is worth being read once, too
ALONE = [(ids(12, 99), ids(2, 3))]
ASKED = {"one token": ONE + ALONE, "several": MANY + ALONE, "long questions": LONG + ALONE}


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Passes]]:
    yield both(tmp_path_factory.mktemp("beginnings"))[1]


def saved(found: list[Family], n_reads: dict[tuple[int, ...], int], worth: int) -> int:
    return sum((sum(n_reads[m] for m in f.members) - 1) * f.n_shared - worth for f in found if f.n_shared)


def most_saved(begin: tuple[int, ...], n_reads: dict[tuple[int, ...], int], worth: int) -> int:
    """The most that one beginning for all rows that have it saves, or others that go on from it, each tried."""
    like = {row: n for row, n in n_reads.items() if len(row) > len(begin) and row[: len(begin)] == begin}
    if not like:
        return 0
    # A row that ends with the next token may be read several times.
    itself = sum(max(0, (n - 1) * len(begin) - worth) for row, n in like.items() if len(row) == len(begin) + 1)
    apart = itself + sum(most_saved((*begin, t), like, worth) for t in (1, 2))
    return max((sum(like.values()) - 1) * len(begin) - worth, apart)


def test_beginnings_save_the_most_among_those_that_all_rows_of_a_kind_share() -> None:
    draw = random.Random(0)
    for _ in range(200):
        rows = {tuple(draw.choices((1, 2), (3, 1), k=draw.randint(1, 9))) for _ in range(8)}
        n_reads = {row: draw.randint(1, 2) for row in rows}
        for worth in (0, 3):
            found = families(n_reads, worth=worth)
            assert saved(found, n_reads, worth) == most_saved((), n_reads, worth)
            assert sorted(m for f in found for m in f.members) == sorted(rows)
            for f in found:
                assert len({m[: f.n_shared] for m in f.members}) == 1 and all(len(m) > f.n_shared for m in f.members)


def test_a_chain_of_ever_longer_beginnings_is_no_deep_recursion() -> None:
    rows = {tuple([1] * n + [2]): 1 for n in range(1, 1500)}
    (family, *_) = families(rows)
    assert family.n_shared > 500


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_the_definition(
    side: str, kind: str, batch_size: int, sides: dict[str, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, begun = sides[side], []
    plain = passes.begin
    monkeypatch.setattr(passes, "begin", lambda contexts: begun.extend(map(list, contexts)) or plain(contexts))
    found = score(passes, ASKED[kind], batch_size=batch_size)
    assert all(examples in begun for examples in EXAMPLES), "each subject's examples are read once"
    assert len(begun) == len({tuple(b) for b in begun})
    for (context, continuation), one in zip(ASKED[kind], found, strict=True):
        expected, is_greedy = log_p(passes.model, context, continuation)
        assert math.isclose(one.log_p, expected, abs_tol=3e-5) and one.is_greedy == is_greedy


@pytest.mark.parametrize("side", SIDES)
def test_a_beginning_is_read_once_and_questions_alone_after_it(
    side: str, sides: dict[str, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = sides[side]
    read = counted(passes, monkeypatch)
    score(passes, ONE, batch_size=4)
    n_behind = sum(map(len, QUESTIONS)) - 5 * (20 + 17)
    assert read == {"begin": 37, "go_on": n_behind, "whole": 0}
    score(passes, ONE, batch_size=4, shares=False)
    assert read["whole"] == sum(map(len, QUESTIONS))


@pytest.mark.parametrize("side", SIDES)
def test_the_order_of_requests_changes_no_bit_of_a_score(side: str, sides: dict[str, Passes]) -> None:
    for asked in ASKED.values():
        straight = score(sides[side], asked, batch_size=3)
        order = random.Random(1).sample(range(len(asked)), len(asked))
        mixed = score(sides[side], [asked[i] for i in order], batch_size=3)
        assert [straight[i] for i in order] == mixed


def test_rows_whose_keys_are_held_together_are_as_many_as_memory_allows(
    sides: dict[str, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two layers of keys and values of two heads of 4 channels, in float32.
    assert {p.token_bytes for p in sides.values()} == {2 * 2 * 2 * 4 * 4}
    passes, rows = sides["ours"], []
    monkeypatch.setattr(beginnings, "HELD", 2 * 30 * passes.token_bytes)
    assert [at_once(passes, n, 8) for n in (5, 30, 31, 900)] == [8, 2, 1, 1]
    plain = passes.go_on
    monkeypatch.setattr(passes, "go_on", lambda m, c, r: rows.append(len(r)) or plain(m, c, r))
    expected = score(passes, MANY, batch_size=8, shares=False)
    found = score(passes, MANY, batch_size=8)
    assert max(rows) == 2 and [s.log_p for s in found] == pytest.approx([s.log_p for s in expected], abs=3e-5)


def texts(passes: Passes, prompts: list[Ids], n_new: int = 6, batch_size: int = 4) -> tuple[list[Ids], int]:
    """What is written after each prompt, and how many of them went on from a beginning."""
    out, n_behind = {}, 0
    for batch in batches(passes, prompts, batch_size=batch_size, n_new=n_new):
        mine = [prompts[i] for i in batch.numbers]
        found = passes.write(mine, n_new, GREEDY, frozenset(), lambda _: False, beginning=batch.beginning)
        assert all(w.is_finite for w in found)
        out |= dict(zip(batch.numbers, [w.ids for w in found], strict=True))
        n_behind += len(mine) if batch.beginning is not None else 0
    return [out[i] for i in range(len(prompts))], n_behind


@torch.no_grad()
def written(passes: Passes, prompt: Ids, n_new: int = 6) -> Ids:
    """By definition: the whole text read anew for each token."""
    row = list(prompt)
    for _ in range(n_new):
        row.append(int(passes.logits(passes.whole([row])[0, -1:]).argmax()))
    return row[len(prompt) :]


PROMPTS = [*QUESTIONS, ids(9, 50), QUESTIONS[1]]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_texts_are_those_of_the_definition(
    side: str, batch_size: int, sides: dict[str, Passes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides[side], "step", 8)
    found, n_behind = texts(sides[side], PROMPTS, batch_size=batch_size)
    assert found == [written(sides[side], prompt) for prompt in PROMPTS]
    # Of the first subject six prompts save 100 tokens, of the second five 68; six steps and a pass count as 80.
    assert n_behind == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": "sdpa-elementwise"},
        {"rope_scaling": YaRN(factor=2.5, original_seq_len=16)},
        {"rope_fraction": 0.5},
        {"window": 5},
        {"positions": "none"},
        {"positions": "learned"},
        {"positions": "relative"},
        {"registers": 2},
        {"softmax": "key-bias"},
        {"gate": "scores-headwise-forget"},
        {"first_hidden_from": ((0,), (1,))},
    ],
    ids=str,
)
def test_decoders_of_ours_write_and_score_alike_from_a_beginning(changes: dict) -> None:
    torch.manual_seed(0)
    passes = OwnPasses(build_model(tiny_config(vocab_size=300, max_seq_len=64, **changes)).eval())
    passes.step = 0
    for parameter in passes.model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    found, n_behind = texts(passes, PROMPTS)
    assert n_behind == 11 and found == [written(passes, prompt) for prompt in PROMPTS]
    for (context, continuation), one in zip(MANY, score(passes, MANY, batch_size=3), strict=True):
        assert math.isclose(one.log_p, log_p(passes.model, context, continuation)[0], abs_tol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes", "pads_behind"),
    [
        ("LlamaForCausalLM", {}, True),
        ("GPT2LMHeadModel", {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 64}, True),
        ("OPTForCausalLM", {"ffn_dim": 24, "word_embed_proj_dim": 16}, True),
        ("Gemma2ForCausalLM", {"head_dim": 4, "final_logit_softcapping": 3.0, "sliding_window": 5}, False),
    ],
)
def test_families_of_transformers_write_alike_from_a_beginning(
    architecture: str, changes: dict, pads_behind: bool, tmp_path: Path
) -> None:
    passes = ExternalPasses(checkpoint(tmp_path, architecture=architecture, **changes).model)
    passes.step = 0
    assert passes.resumes and passes.pads_behind is pads_behind
    found, n_behind = texts(passes, PROMPTS)
    assert n_behind == 11 and found == [written(passes, prompt) for prompt in PROMPTS]


def test_a_family_that_writes_otherwise_from_a_beginning_reads_prompts_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checkpoint(tmp_path)
    plain = found.model.generate

    def forgetful(input_ids, past_key_values=None, **given):
        if past_key_values is not None:
            input_ids = input_ids.clone()
            input_ids[:, : past_key_values.get_seq_length()] = 7
        return plain(input_ids=input_ids, **given)

    monkeypatch.setattr(found.model, "generate", forgetful)
    passes = ExternalPasses(found.model)
    assert passes.shares and not passes.resumes
    passes.step = 0
    assert texts(passes, PROMPTS) == ([written(passes, prompt) for prompt in PROMPTS], 0)


def test_a_gpu_reads_anew_what_takes_it_less_than_another_pass() -> None:
    model = build_model(tiny_config(vocab_size=300, max_seq_len=64)).eval()
    passes = OwnPasses(model)
    n = sum(p.numel() for p in model.parameters())
    assert (passes.worth, passes.step) == (32, 48)
    in_a_pass = read_in_a_pass(model)
    assert in_a_pass == int(model.config.n_layers * 8e-4 * 4e13 / (2 * n))
    # Four answers to ten contexts: read once where that saves 32 tokens of each, and anew where a pass is worth thousands.
    asked = [(list(range(1, 14 + i)), [i, j, 3]) for i in range(10) for j in range(4)]
    at_once, passes.worth = score(passes, asked, batch_size=8), 2 * in_a_pass
    reads = []
    passes.begin = lambda contexts: reads.append(contexts)
    anew = score(passes, asked, batch_size=8)
    assert not reads and [s.log_p for s in anew] == pytest.approx([s.log_p for s in at_once], abs=1e-5)
    # Half precision reads more meanwhile.
    assert read_in_a_pass(model.to(torch.bfloat16)) == pytest.approx(6.25 * in_a_pass, abs=7)
