"""What is said before Ray starts of the files that a sweep file gives to tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import GAIN, sweep_config

from trainables.config import EvalSuite
from trainables.errors import UserError
from tune.config.preflight import check_files
from tune.config.task_rows import faults_of_task_rows

ROW = {"question": "max 3 8 =", "choices": ["3", "8"], "answer": 1}
BUNDLED = "package://tune/sweeps/tasks"


def lines(*rows: Any) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def answers(*values: Any) -> str:
    return lines(*(ROW | {"answer": value} for value in values))


def told(
    file: Path,
    text: str | bytes,
    *folders: str,
    task: str = "question_answering",
    split: str = "test",
    limit: int | None = None,
) -> list[str]:
    """The faults of a file under the bundled task, or one of the folders'."""
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    asked = {"task": task, "name": "mine", "data_files": {split: str(file)}}
    suite = {"in_domain": [asked], "task_dirs": folders or (BUNDLED,), "limit": limit}
    faults = list(faults_of_task_rows(EvalSuite.model_validate(suite)))
    assert all(fault.field.startswith("eval.in_domain.mine.data_files") for fault in faults)
    return [str(fault) for fault in faults]


@pytest.mark.parametrize(
    ("text", "task", "problem"),
    [
        ("", "question_answering", "holds no rows: "),
        ("{bad", "question_answering", "each line must be a JSON object, got '{bad'"),
        (
            lines({"q": 1, "choices": ["a"], "answer": 0}),
            "question_answering",
            "must have question, which doc_to_text of task question_answering names; its rows have",
        ),
        (lines({"question": "max"}), "question_answering", "must have choices, which doc_to_choi"),
        (lines({"question": "max"}), "answer_generation", "must have answer, which doc_to_targ"),
        (
            lines(ROW, ROW | {"choices": "3,8"}),
            "question_answering",
            "must have lists as choices, got '3,8' in row 2; write them as a list of texts",
        ),
        (
            lines(ROW | {"choices": {"text": ["3", "8"], "label": ["A", "B"]}, "answer": "B"}),
            "question_answering",
            "must have lists as choices, got {text: ['3', '8'], label: ['A', 'B']} in row 1; write",
        ),
        (answers("B", "A"), "question_answering", "2 of 2 rows is none of their choices, such as"),
        (answers("1", "0"), "question_answering", "such as '1' of row 1; give the right choice's"),
        (answers(-1, -1, 0), "question_answering", "answer of 2 of 3 rows is none of their choi"),
        (answers(0, 1, 0, 2), "question_answering", "1 of 4 rows is none of their choices, such"),
        (lines({"question": "m", "choices": ["a"]}), "question_answering", "such as 'answer' of"),
    ],
)
def test_rows_that_a_task_cannot_ask_are_told_of(
    text: str, task: str, problem: str, tmp_path: Path
) -> None:
    (fault,) = told(tmp_path / "rows.jsonl", text, task=task)
    assert problem in fault
    assert "rows.jsonl" in fault


@pytest.mark.parametrize(
    "text",
    [
        answers(0, 1),
        answers("3", "8"),
        answers([0], [1, 0]),
        answers("3", "8", "dearth, wind, & fire"),  # as in BIG-bench Hard, which is told of later
        answers(0, 1, -1),
        json.dumps([ROW, ROW]),
        lines(ROW, {"question": "no choices"}),  # the harness may not be asked for it
    ],
)
def test_rows_that_it_can_ask_are_not(text: str, tmp_path: Path) -> None:
    assert told(tmp_path / "rows.json", text) == []


@pytest.mark.parametrize(
    "text", [json.dumps(["max"]), json.dumps(ROW, indent=1), f"{json.dumps(ROW)} {json.dumps(ROW)}"]
)
def test_json_on_any_lines_is_left_to_its_reader(text: str, tmp_path: Path) -> None:
    assert told(tmp_path / "rows.json", text) == []


def test_rows_beyond_the_limit_are_not_asked(tmp_path: Path) -> None:
    text = answers(0, 1, 9)
    assert told(tmp_path / "rows.jsonl", text, limit=2) == []
    assert told(tmp_path / "rows.jsonl", text, limit=3) != []


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.parquet", "rows.csv.gz"])
def test_files_of_another_format_are_told_of(name: str, tmp_path: Path) -> None:
    (fault,) = told(tmp_path / name, "question,answer")
    assert fault.startswith(
        "eval.in_domain.mine.data_files.test: must be a .jsonl or .json, as task "
        "question_answering has dataset_path json, got "
    )


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.json.zst"])
def test_files_whose_format_only_the_reader_knows_are_left_to_it(name: str, tmp_path: Path) -> None:
    assert told(tmp_path / name, "?") == []


def test_compressed_rows_are_read(tmp_path: Path) -> None:
    (fault,) = told(tmp_path / "rows.jsonl.gz", "no gzip")
    assert "cannot be read" in fault


def test_the_split_that_is_asked_must_be_named(tmp_path: Path) -> None:
    (fault,) = told(tmp_path / "rows.jsonl", answers(0), split="validation")
    assert fault == (
        "eval.in_domain.mine.data_files: must name the split test, which task question_answering "
        "asks, got validation"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"process_docs": "!function own.docs"},
        {"dataset_path": "some/set"},
        {"dataset_kwargs": {"field": "rows"}},
        {"include": "other"},
        {"class": "!function own.Task"},
        {"task": "another"},
        *(
            {"doc_to_text": text, "doc_to_choice": "question", "doc_to_target": "more"}
            for text in (
                "answer",
                "{{answer}}\n",
                "{% if answer == 1 %}1{% else %}0{% endif %}",
                "!function own.which",
            )
        ),
        {
            "doc_to_text": "Which, {{rest}}?",
            "doc_to_choice": "question",
            "doc_to_target": "more",
            "process_results": "!function own.results",
        },
        {"doc_to_text": "Which, {{rest}}?", "doc_to_choice": "{{question}}"},
        {"doc_to_text": "{# as {{ q }} #}{{ rest }}", "doc_to_choice": ["a", "b"]},
        {"doc_to_text": "{{ rest }}{{ '{{q}}' }}", "doc_to_choice": ["a", "b"]},
        {"doc_to_text": "{% if q is defined %}{{ q }}{% endif %}", "doc_to_choice": ["a", "b"]},
    ],
)
def test_what_a_task_computes_is_left_to_the_harness(
    change: dict[str, Any], tmp_path: Path
) -> None:
    """As in Winogrande, whose choices are questions and whose target follows each of them."""
    spec = {
        "task": "own",
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
    }
    text = lines({"answer": 0, "question": ["a", "b"], "rest": 1})
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec | {"doc_to_text": "{{q}}"}))
    assert told(tmp_path / "rows.jsonl", text, str(tmp_path), task="own") != []
    text_of_task = re.sub("'(!function .*)'", r"\1", yaml.safe_dump(spec | change))
    (tmp_path / "own.yaml").write_text(text_of_task)
    assert told(tmp_path / "rows.jsonl", text, str(tmp_path), task="own") == []


def test_a_task_that_two_folders_define_is_left_to_the_harness(tmp_path: Path) -> None:
    assert told(tmp_path / "rows.jsonl", "", BUNDLED) != []
    (tmp_path / "own.yaml").write_text("task: question_answering\ndataset_path: some/set")
    assert told(tmp_path / "rows.jsonl", "", str(tmp_path), BUNDLED) == []


def test_a_task_without_files_is_told_to_name_some(tmp_path: Path) -> None:
    """Else `datasets` takes whatever lies where the task is loaded."""
    spec = {"task": "own", "dataset_path": "json", "validation_split": "validation"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec))
    suite = {"ood": ["own"], "task_dirs": [str(tmp_path)]}
    (fault,) = faults_of_task_rows(EvalSuite.model_validate(suite))
    assert fault.field == "eval.ood.own.data_files"
    assert fault.remedy == "write {task: own, data_files: {validation: FILE}}"
    named = {"dataset_kwargs": {"data_files": {"validation": "/rows.jsonl"}}}
    for change in (named, {"dataset_path": "someone/set"}):
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(spec | change))
        assert list(faults_of_task_rows(EvalSuite.model_validate(suite))) == []


def test_they_are_told_of_with_the_other_faults_of_files(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(answers("B"))
    files = {"test": str(tmp_path / "questions.jsonl")}
    asked = {"task": "question_answering", "name": "mine", "data_files": files}
    config = sweep_config(
        data={"path": str(tmp_path / "absent.jsonl")},
        eval={"in_domain": [asked], "task_dirs": [BUNDLED]},
        objectives=[{"metric": GAIN, "mode": "max"}],
    )
    with pytest.raises(UserError) as caught:
        check_files(config, tmp_path)
    fields = [fault.field for fault in caught.value.faults]
    assert fields == ["data.path", "eval.in_domain.mine.data_files.test"]
