"""Misspelt names of tasks are told before anything runs, and without the harness."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainables.config import EvalSuite
from tune.config.task_names import faults_of_task_names


def told(suite: dict[str, object]) -> list[str]:
    return [str(fault) for fault in faults_of_task_names(EvalSuite.model_validate(suite))]


def test_names_that_neither_the_harness_nor_a_folder_has_are_all_told(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: my_task\n")
    suite = {
        "in_domain": ["my_tsak"],
        "retention": ["mmlu", {"task": "hellaswga", "name": "mine"}],
        "ood": ["arc_easy", "qqqq"],
        "task_dirs": [str(tmp_path)],
    }
    where = f"in {tmp_path} or the harness"
    assert told(suite) == [
        f"eval.in_domain: no task named my_tsak {where}; did you mean my_task?",
        f"eval.retention: no task named hellaswga {where}; did you mean hellaswag?",
        f"eval.ood: no task named qqqq {where}; see `lm-eval ls tasks` for the harness's own",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "task: my_task",
        "{task: my_task, dataset_path: json}",
        'dataset_path: json\n"task": "my_task"  # the best',
        "group: my_task\ntask: [a, b]",
        "task: my_task\ndoc_to_text: a: b",  # is no YAML, which the base's evaluation tells
    ],
)
def test_a_name_that_stands_in_a_file_is_left_to_the_harness(text: str, tmp_path: Path) -> None:
    (tmp_path / ".deep" / "er").mkdir(parents=True)
    (tmp_path / ".deep" / "er" / "own.yaml").write_text(text)
    assert told({"in_domain": ["my_task"], "task_dirs": [str(tmp_path)]}) == []
    (fault,) = told({"in_domain": ["my_tas"], "task_dirs": [str(tmp_path)]})
    assert fault.startswith("eval.in_domain: no task named my_tas in ")


def test_names_of_the_harness_with_signs_are_known() -> None:
    assert told({"retention": ["darijammlu_arabic_language_(general)", "gsm8k"]}) == []
