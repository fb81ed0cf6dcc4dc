"""Benchmarks whose files may lie in a folder: where the harness defines them, which files they read, and what a row must have.

Notable: names of fields are those of the public releases, so the harness's own prompts fit.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """`definitions`: YAML files under the harness's tasks. `files`: a file of a split, as `name/{split}.jsonl`; a gzipped one may
    stand in its place. `column`: where one file holds several tasks, the field that names them as the harness does."""

    definitions: str
    files: str
    fields: tuple[str, ...]
    column: str | None = None

    def file(self, split: str) -> str:
        """The file of a split, in the folder."""
        return self.files.format(split=split)


_ARC = ("question", "choices", "answerKey")

BENCHMARKS = {
    "arc_challenge": Benchmark("arc/arc_challenge.yaml", "arc/arc_challenge_{split}.jsonl", _ARC),
    "arc_easy": Benchmark("arc/arc_easy.yaml", "arc/arc_easy_{split}.jsonl", _ARC),
    "blimp": Benchmark("blimp/*.yaml", "blimp/blimp.jsonl", ("sentence_good", "sentence_bad", "UID"), "UID"),
    "gsm8k": Benchmark("gsm8k/gsm8k.yaml", "gsm8k/{split}.jsonl", ("question", "answer")),
    "hellaswag": Benchmark(
        "hellaswag/hellaswag.yaml", "hellaswag/{split}.jsonl", ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    ),
    "humaneval": Benchmark(
        "humaneval/humaneval.yaml", "humaneval/HumanEval.jsonl", ("task_id", "prompt", "test", "entry_point")
    ),
    "lambada_openai": Benchmark("lambada/lambada_openai.yaml", "lambada_openai/{split}.jsonl", ("text",)),
    "mbpp": Benchmark("mbpp/mbpp.yaml", "mbpp/{split}.jsonl", ("text", "code", "test_list")),
    "mmlu": Benchmark(
        "mmlu/default/*.yaml", "mmlu/{split}.jsonl", ("question", "subject", "choices", "answer"), "subject"
    ),
    "piqa": Benchmark("piqa/piqa.yaml", "piqa/{split}.jsonl", ("goal", "sol1", "sol2", "label")),
}

# The harness writes the items of these itself, through the model's tokenizer, and needs no file.
GENERATED = tuple(
    f"ruler/{name}.yaml"
    for name in ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
)  # fmt: skip
