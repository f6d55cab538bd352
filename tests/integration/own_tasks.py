"""A user's own tasks, and what lm-evaluation-harness itself says of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from trainables.config import EvalSuite

if TYPE_CHECKING:
    from pathlib import Path

    from trainables.evaluation.evaluator import Evaluation

EMBEDDED = "package://trainables/embedded/eval_tasks"
BUNDLED = "package://tune/sweeps/tasks"
LIMIT = 20
WRITTEN = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 1},
    "metric_list": [{"metric": "exact_match"}],
}


def suite(**fields: Any) -> EvalSuite:
    return EvalSuite(**({"task_dirs": (EMBEDDED,), "limit": LIMIT, "batch_size": 16} | fields))


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_items(file: Path, offset: int, count: int = 12) -> None:
    """Questions for the largest of two or three numbers."""
    rows = []
    for n in range(count):
        numbers = [(offset + n) % 20, (offset + 3 * n + 7) % 20, (offset + 5 * n + 1) % 20]
        choices = [*dict.fromkeys(map(str, numbers))]
        answer = choices.index(str(max(numbers)))
        question = f"max {' '.join(choices)} ="
        rows.append({"question": question, "choices": choices, "answer": answer})
    write_rows(file, rows)


def write_task(folder: Path, name: str, test: Path | None = None, **fields: Any) -> None:
    """A task on the rows of `test.jsonl`, unless another file is named."""
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(test or folder / "test.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | fields))


def write_coded_task(folder: Path, name: str, code: str, uses: str, **fields: Any) -> None:
    """A task with code in NAME.py, used as in `process_docs: !function NAME.kept`."""
    (folder / f"{name}.py").write_text(code)
    write_task(folder, name, **fields)
    file = folder / f"{name}.yaml"
    file.write_text(f"{file.read_text()}{uses}\n")


def write_scored_task(folder: Path, name: str, results: str, **fields: Any) -> None:
    """A task that scores its documents by an expression."""
    code = f"import torch\n\ndef results(doc, answers):\n    return {results}\n"
    write_coded_task(folder, name, code, f"process_results: !function {name}.results", **fields)


def write_group(folder: Path, name: str, **fields: Any) -> None:
    """A group of `few` and a task of fewer rows."""
    write_items(folder / "other.jsonl", offset=9, count=6)
    write_task(folder, "other", folder / "other.jsonl")
    group = {"group": name, "task": ["few", "other"]} | fields
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(group))


def harness(model: Any, tokenizer: Any, tasks: list[str], folder: Any, **options: Any) -> Any:
    """What the harness's documented entry point returns."""
    return simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, softmax_dtype="float32"),
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        **({"limit": LIMIT} | options),
    )


def assert_equal(
    found: Evaluation, label: str, expected: Any, name: str = "", metric: str = "acc"
) -> None:
    """Check score, standard error and each item of a task against the harness's."""
    name = name or label
    wanted, score = expected["results"][name], found.scores[label]
    assert (score.value, score.stderr) == (
        wanted[f"{metric},none"],
        wanted[f"{metric}_stderr,none"],
    )
    items = [(i.doc_hash, i.prompt, i.score) for i in found.items if i.task == label]
    assert items == [
        (s["doc_hash"], s["arguments"][0][0], float(s[metric])) for s in expected["samples"][name]
    ]
    assert score.items == len(items)
