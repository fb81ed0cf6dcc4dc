"""Names of the harness's tasks are looked for in its text before it is imported: what is refused there is nowhere in its index."""

import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")

from gatelab.config import ConfigError
from gatelab.evals.harness.benchmarks import BENCHMARKS
from gatelab.evals.harness.spelling import check_spelling


@pytest.mark.parametrize("name", [*BENCHMARKS, "mmlu_anatomy", "blimp_adjunct_island", "niah_single_1"])
def test_a_name_of_a_definition_passes(name: str) -> None:
    check_spelling([name])


def test_a_name_that_only_a_list_of_tags_has_passes() -> None:
    check_spelling(["super-glue-lm-eval-v1"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hellasweg", "--tasks hellasweg: is not in the harness; did you mean 'hellaswag'?"),
        ("arc_esy", "did you mean 'arc_easy'?"),
        ("citations/one", "--tasks citations/one: is not in the harness"),
        ("hellaswag.yaml", "--tasks hellaswag.yaml: is a file; name the folder that holds it with --data-dir"),
        ("mine.jsonl", "--tasks mine.jsonl: is a file of items"),
        ("hella*", "--tasks hella\\*: is not in the harness"),
    ],
)
def test_another_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", "\\?")):
        check_spelling(["arc_easy", name])


def test_every_wrong_name_is_told() -> None:
    with pytest.raises(ConfigError) as refused:
        check_spelling(["hellasweg", "arc_easy", "arc_esy"])
    assert "hellasweg" in str(refused.value) and "--tasks arc_esy" in str(refused.value)
    assert "--tasks arc_easy:" not in str(refused.value)


def test_nothing_heavy_is_imported_for_it() -> None:
    code = (
        "import sys; from gatelab.evals.harness.spelling import check_spelling; check_spelling(['arc_easy']);"
        "print([m for m in ('lm_eval', 'torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
