"""Tasks are loaded before any model runs, and what is wrong with them is said then."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import datasets
import pytest
from faults import faults
from own_tasks import (
    BUNDLED,
    EMBEDDED,
    WRITTEN,
    suite,
    write_coded_task,
    write_group,
    write_task,
)

from trainables.evaluation.evaluator import Evaluator
from trainables.evaluation.task_loading import load_tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROW = {"question": "max 3 8 =", "choices": ["3", "8"], "answer": 1}


def test_all_faulty_tasks_are_reported_at_once_with_the_nearest_name(folder: Path) -> None:
    write_task(folder, "broken", folder / "absent.jsonl")
    asked = suite(
        task_dirs=(EMBEDDED, str(folder)),
        in_domain=["target_rellay"],
        retention=["list_max", "sort_numbrs"],
        ood=["broken"],
    )
    first, second, broken = faults(load_tasks, asked)
    assert (first.field, first.remedy) == ("eval.in_domain", "did you mean target_relay?")
    assert first.rule.startswith("no task named target_rellay in ")
    assert (second.field, second.remedy) == ("eval.retention", "did you mean sort_numbers?")
    assert "broken cannot be loaded: FileNotFoundError: " in broken.rule
    assert "absent.jsonl" in broken.rule
    assert (broken.field, broken.location) == ("eval.ood", str(folder / "broken.yaml"))
    (nowhere,) = faults(load_tasks, suite(task_dirs=["nowhere"], in_domain=["few"]))
    assert nowhere.field == "eval.task_dirs"
    assert "no such folder: " in nowhere.rule


def test_a_malformed_file_is_named_with_the_line(folder: Path) -> None:
    write_task(folder, "own")
    (folder / "others.yaml").write_text("task: another: y\n")  # names another task
    file = folder / "own.yaml"
    line = len(file.read_text().splitlines()) + 1
    file.write_text(f"{file.read_text()}doc_to_text: a: b\n")
    (fault,) = faults(load_tasks, suite(task_dirs=(EMBEDDED, str(folder)), in_domain=["own"]))
    assert "a file that names it cannot be read: ScannerError: mapping values are" in fault.rule
    assert fault.location == f"{file}:{line}"


@pytest.mark.parametrize(
    ("row", "split", "facts"),
    [
        (None, "test", ["its data hold no rows"]),
        (ROW, "validation", ["data_files", "the split test", "got validation"]),
        ("question,answer", "test", ["JSON parse error"]),
        ({"choices": ["3"], "answer": 0}, "test", ["doc_to_text", "'question'", "choices, answer"]),
        ({"question": "max"}, "test", ["doc_to_choice", "'choices'", "rows of question"]),
        (ROW | {"choices": "3, 8"}, "test", ["doc_to_choice", '["yes", "no"]', "got '3, 8'"]),
    ],
    ids=["empty", "split", "not JSON", "no question", "no choices", "choices in a text"],
)
def test_rows_that_do_not_fit_a_task_are_named(
    row: Any, split: str, facts: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("" if row is None else row if isinstance(row, str) else json.dumps(row))
    asked = {"task": "question_answering", "name": "mine", "data_files": {split: str(file)}}
    (fault,) = faults(load_tasks, suite(task_dirs=(BUNDLED,), in_domain=[asked]))
    assert "task mine (question_answering) cannot be loaded: " in fault.rule
    assert [fact for fact in facts if fact not in fault.rule] == []
    assert (fault.field, fault.location) == ("eval.in_domain", f"{split}: {file}")


@pytest.mark.parametrize(
    ("fields", "asked", "facts"),
    [
        ({"dataset_kwargs": None}, {}, ["no data_files", "{task: own, data_files: {test: FILE}}"]),
        ({"doc_to_choice": None}, {}, ["doc_to_choice must give a list", "got None"]),
        ({"metric_list": [{"metric": "acc_nrm"}]}, {}, ["does not know its metric acc_nrm"]),
        ({"unsafe_code": True}, {}, ["it runs code that the model has written"]),
        ({"num_fewshot": 0}, {"num_fewshot": 2}, ["never given examples", "got num_fewshot 2"]),
        ({"tag": "all"}, {"task": "all"}, ["tag without a score", "name its tasks: own"]),
        ({"tag": "all"}, {"task": "all", "name": "other"}, ["only a single task", "a tag"]),
        ({}, {"task": "both"}, ["no aggregate_metric_list"]),
        ({}, {"task": "both", "name": "mine"}, ["only a single task", "a group"]),
        ({}, {"task": "lacking"}, ["tasks that do not exist: othr; did you mean other?"]),
    ],
)
def test_tasks_that_cannot_be_asked_as_the_suite_says_are_refused(
    fields: dict[str, Any],
    asked: dict[str, Any],
    facts: list[str],
    folder: Path,
    asking: Callable[..., Evaluator],
) -> None:
    write_task(folder, "own", **fields)
    write_group(folder, "both")
    write_group(folder, "lacking", task=["few", {"task": "othr", "num_fewshot": 0}])
    (fault,) = faults(asking, {"task": "own"} | asked)
    assert " cannot be loaded: " in fault.rule
    assert [fact for fact in facts if fact not in fault.rule] == []


def test_process_docs_that_leave_nothing_are_named(
    folder: Path, asking: Callable[..., Evaluator]
) -> None:
    code = "def kept(docs):\n    return docs.select([])\n"
    write_coded_task(folder, "own", code, "process_docs: !function own.kept")
    (fault,) = faults(asking, "own")
    assert "hold no rows, or its process_docs leaves none" in fault.rule


def test_a_group_may_name_tasks_of_the_harness(folder: Path) -> None:
    write_group(folder, "both", task=["few", "sciq", "no_such"])
    (fault,) = faults(load_tasks, suite(task_dirs=(str(folder),), in_domain=["both"]))
    assert "tasks that do not exist: no_such" in fault.rule  # and sciq does
    inline = {"task": "inline", "dataset_path": "json", **WRITTEN, "doc_to_text": "question"}
    inline |= {"dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}}}
    inline |= {"test_split": "test"}
    aggregate = [{"metric": "acc"}]
    write_group(folder, "both", task=["few", inline], aggregate_metric_list=aggregate)
    (loaded,) = load_tasks(suite(task_dirs=(str(folder),), in_domain=["both"]))
    assert set(loaded.tasks["tasks"]) == {"few", "both::inline"}


def test_a_task_that_draws_while_it_is_loaded_asks_the_same_in_every_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asking: Callable[..., Evaluator]
) -> None:
    """As GPQA does, and as the harness has it: it seeds before it loads."""
    code = (
        "import random\n\n\ndef process(docs):\n"
        "    return docs.map(lambda doc: {'choices': random.sample(doc['choices'], 2)})\n"
    )
    write_coded_task(folder, "shuffled", code, "process_docs: !function shuffled.process")
    questions = []
    for seed in (1, 2):  # on nodes where none of its data are cached yet
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / str(seed))
        random.seed(seed)
        state = random.getstate()
        (loaded,) = load_tasks(suite(task_dirs=(str(folder),), in_domain=["shuffled"]))
        assert random.getstate() == state
        questions.append([d for _, d in loaded.tasks["tasks"]["shuffled"].doc_iterator()])
    assert questions[0] == questions[1]


@pytest.mark.parametrize(("file", "shots"), [("test.jsonl", 0), ("train.jsonl", 2)])
def test_a_trial_is_asked_the_rows_that_the_base_was_asked(
    folder: Path, file: str, shots: int, asking: Callable[..., Evaluator]
) -> None:
    """Rows are compared by content: a base evaluated before an edit is another."""
    asked = {"task": "few", "num_fewshot": shots}
    before, again = (asking(asked).describe() for _ in range(2))
    base_rows = asking(asked).rows
    rows = (folder / file).read_text().splitlines()
    changed = json.loads(rows[0])
    changed["answer"] = 1 - changed["answer"]
    (folder / file).write_text("\n".join([json.dumps(changed), *rows[1:]]))
    assert before == again != asking(asked).describe()
    (fault,) = faults(asking(asked).check_rows, base_rows)
    assert "the rows of task few have changed since the base" in fault.rule


def test_an_edit_of_a_task_s_code_evaluates_the_base_anew(
    folder: Path, asking: Callable[..., Evaluator]
) -> None:
    def description(text: str, uses: str) -> str:
        code = (
            "from functools import partial\nfrom lm_eval.api.task import ConfigurableTask\n\n\n"
            f"def some(docs, number):\n    return docs.select({text})\n\n\n"
            "few = partial(some, number=3)\n\n\nclass Own(ConfigurableTask):\n"
            "    def __init__(self, config=None):\n"
            "        config.pop('class')\n        super().__init__(config=config)\n"
        )
        write_coded_task(folder, "own", code, uses)
        return json.dumps(asking("own").describe())

    for uses in ("process_docs: !function own.few", "class: !function own.Own"):
        first, edited, again = (
            description(text, uses)
            for text in ("range(number)", "list(range(number))", "range(number)")
        )
        assert " at 0x" not in first  # the harness gives the address of a partial function
        assert first == again != edited


def test_how_a_group_weighs_its_tasks_is_part_of_what_a_base_is_cached_by(
    folder: Path, asking: Callable[..., Evaluator]
) -> None:
    described = []
    for weight_by_size in (True, False):
        aggregate = [{"metric": "acc", "aggregation": "mean", "weight_by_size": weight_by_size}]
        write_group(folder, "both", aggregate_metric_list=aggregate)
        described.append(asking("both").describe())
    assert described[0] != described[1]
