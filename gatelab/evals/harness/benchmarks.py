"""Benchmarks whose files may lie in a folder: where the harness defines them, which files they read, and what a row must have.

Notable: names of fields are those of the public releases, so the harness's own prompts fit.
"""

from dataclasses import dataclass
from pathlib import PurePath

from . import checked
from .checked import Check, has_texts


@dataclass(frozen=True)
class Benchmark:
    """`definitions`: YAML files under the harness's tasks. `files`: a file of a split, as `name/{split}.jsonl`; a gzipped one may
    stand in its place. `check`: what is wrong with a row's fields. `column`: where one file holds several tasks, the field that
    names them as the harness does."""

    definitions: str
    files: str
    fields: tuple[str, ...]
    check: Check
    column: str | None = None

    def file(self, split: str) -> str:
        """The file of a split, in the folder."""
        return self.files.format(split=split)


_ARC = ("question", "choices", "answerKey")

BENCHMARKS = {
    "arc_challenge": Benchmark("arc/arc_challenge.yaml", "arc/arc_challenge_{split}.jsonl", _ARC, checked.arc),
    "arc_easy": Benchmark("arc/arc_easy.yaml", "arc/arc_easy_{split}.jsonl", _ARC, checked.arc),
    "blimp": Benchmark(
        "blimp/*.yaml", "blimp/blimp.jsonl", ("sentence_good", "sentence_bad", "UID"),
        has_texts("sentence_good", "sentence_bad", "UID"), "UID",
    ),
    "gsm8k": Benchmark(
        "gsm8k/gsm8k.yaml", "gsm8k/{split}.jsonl", ("question", "answer"), has_texts("question", "answer")
    ),
    "hellaswag": Benchmark(
        "hellaswag/hellaswag.yaml", "hellaswag/{split}.jsonl", ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        checked.hellaswag,
    ),
    "humaneval": Benchmark(
        "humaneval/humaneval.yaml", "humaneval/HumanEval.jsonl", ("task_id", "prompt", "test", "entry_point"),
        has_texts("prompt", "test", "entry_point"),
    ),
    "lambada_openai": Benchmark(
        "lambada/lambada_openai.yaml", "lambada_openai/{split}.jsonl", ("text",), checked.lambada
    ),
    "mbpp": Benchmark("mbpp/mbpp.yaml", "mbpp/{split}.jsonl", ("text", "code", "test_list"), checked.mbpp),
    "mmlu": Benchmark(
        "mmlu/default/*.yaml", "mmlu/{split}.jsonl", ("question", "subject", "choices", "answer"), checked.mmlu, "subject"
    ),
    "piqa": Benchmark("piqa/piqa.yaml", "piqa/{split}.jsonl", ("goal", "sol1", "sol2", "label"), checked.piqa),
}  # fmt: skip

# The harness writes the items of these itself, through the model's tokenizer, and needs no file.
GENERATED = tuple(
    f"ruler/{name}.yaml"
    for name in ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
)  # fmt: skip


def is_benchmark(name: str) -> bool:
    """Whether a name is one of the harness that takes no hub: a benchmark, a part of one whose file holds several, or one that it
    generates."""
    stems = [PurePath(path).stem for path in GENERATED]
    made = [stem if stem.startswith("niah") else f"ruler_{stem}" for stem in stems]
    parts = tuple(f"{whole}_" for whole, of in BENCHMARKS.items() if of.column)
    return name in BENCHMARKS or name in made or name.startswith(parts)
