"""Checks the files that a sweep file gives to tasks, where a task's YAML says what it takes.

The harness decides, and the driver does not import it: what a task computes is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainables.config import EvalSuite
from trainables.data.right_answers import REMEDY, names_a_choice
from trainables.data.row_files import Row, read_rows
from trainables.errors import Fault, UserError
from trainables.storage.locations import resolve
from tune.config.sweep_errors import shown
from tune.config.task_files import asked_split, task_named

# What the readers of `datasets` take, by their name as a task's `dataset_path`.
_SUFFIXES = {"json": (".jsonl", ".json"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}
_NO_FILES = "is absent, and the task's YAML names no files"
# Keys by which other data may be read than what the files hold.
_OWN_READING = ("class", "custom_dataset", "include")
_PRINTED = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_LISTED = 'write them as a list of texts, such as ["yes", "no"]'
_OTHER_JINJA = ("{%", "{#", "'{{", '"{{')  # which only the harness knows to read
_MARKUP = re.compile(r"\{([{%#]).*?[}%#]\}|\s", re.DOTALL)


def faults_of_task_rows(suite: EvalSuite) -> Iterator[Fault]:
    """Faults of the `data_files`, which exist, of tasks that the suite's `task_dirs` define."""
    folders = [Path(resolve(folder)) for folder in suite.task_dirs]
    for role, task in suite.tasks():
        spec = task_named(task.task, folders)
        is_read_here = str(spec.get("dataset_path")) in _SUFFIXES
        options = spec.get("dataset_kwargs") or {}
        if is_read_here and spec.keys().isdisjoint(_OWN_READING) and set(options) <= {"data_files"}:
            field = f"eval.{role}.{task.label}.data_files"
            asked = asked_split(spec)
            if files := task.data_files:
                yield from _faults_of_files(field, files, asked, spec, suite.limit_of(task))
            elif not options.get("data_files"):  # `datasets` takes what it finds where it runs
                remedy = f"write {{task: {task.task}, data_files: {{{asked or 'test'}: FILE}}}}"
                yield Fault(field, _NO_FILES, remedy)


def _faults_of_files(
    field: str, files: dict[str, str], asked: str | None, spec: dict[str, Any], limit: int | None
) -> Iterator[Fault]:
    """`asked`: the split that the task's questions are of, if it names one."""
    if asked and asked not in files:
        rule = (
            f"must name the split {asked}, which task {spec['task']} asks, got {', '.join(files)}"
        )
        yield Fault(field, rule)
    for split, file in files.items():
        try:
            rows = _rows(f"{field}.{split}", Path(resolve(file)), spec)
        except UserError as error:
            yield from error.faults
            continue
        if split == asked and "process_docs" not in spec:
            asks = rows[:limit]
            rule_and_remedy = (
                _absent(rows, spec) or _unlisted(asks, spec) or _without_answer(asks, spec)
            )
            if rule_and_remedy:
                yield Fault(f"{field}.{split}", *rule_and_remedy, location=file)


def _rows(field: str, file: Path, spec: dict[str, Any]) -> list[Row]:
    """The rows of a file; none of one that only the task's own reader knows.

    Raises:
        UserError: it is of another format, malformed or empty.
    """
    reader = spec["dataset_path"]
    suffix = Path(file.name.removesuffix(".gz")).suffix
    if suffix not in _SUFFIXES[reader]:
        if not any(suffix in others for others in _SUFFIXES.values()):
            return []
        takes = " or ".join(_SUFFIXES[reader])
        rule = f"must be a {takes}, as task {spec['task']} has dataset_path {reader}, got {file}"
        raise UserError([Fault(field, rule)])
    if reader == "csv" or file.is_dir():  # pandas takes tables that are refused as training data
        return []
    try:
        rows = read_rows(file, field)
    except UserError:
        if suffix == ".json":  # the task's reader also takes objects that are on any lines
            return []
        raise
    if not rows:
        raise UserError([Fault(field, f"holds no rows: {file}")])
    return rows


def _absent(rows: Sequence[Row], spec: dict[str, Any]) -> tuple[str, str] | None:
    """Fields that a template prints, or that lists the choices, and no row has."""
    has = {name for row in rows for name in row}
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        value = spec.get(key)
        if not rows or not isinstance(value, str) or any(mark in value for mark in _OTHER_JINJA):
            continue
        names = _PRINTED.findall(value)
        if key == "doc_to_choice" and value.isidentifier():
            names = [value]
        if lacking := [name for name in names if name not in has]:
            rule = f"must have {', '.join(lacking)}, which {key} of task {spec['task']} names"
            return rule, f"its rows have {', '.join(sorted(has))}"
    return None


def _unlisted(rows: Sequence[Row], spec: dict[str, Any]) -> tuple[str, str] | None:
    """Choices in one text, or in an object: the harness would ask for its characters, or keys."""
    field = str(spec.get("doc_to_choice"))
    if spec.get("output_type") != "multiple_choice" or not field.isidentifier():
        return None
    for number, row in enumerate(rows, start=1):
        if isinstance(value := row.get(field), (str, dict)):
            return f"must have lists as {field}, got {shown(value)} in row {number}", _LISTED
    return None


def _without_answer(rows: Sequence[Row], spec: dict[str, Any]) -> tuple[str, str] | None:
    """Right answers that are no choice: of most rows, or of one by an index that is too large."""
    if spec.get("output_type") != "multiple_choice" or "process_results" in spec:
        return None
    target, choices = str(spec.get("doc_to_target")), str(spec.get("doc_to_choice"))
    if not (target.isidentifier() and _asks_one_text(rows, spec)):
        return None
    is_field = any(target in row for row in rows)
    listed = [
        (number, row.get(target) if is_field else target, row[choices])
        for number, row in enumerate(rows, start=1)
        if isinstance(row.get(choices), list)
    ]
    without = [(n, answer, of) for n, answer, of in listed if not names_a_choice(answer, of)]
    beyond = [each for each in without if isinstance(each[1], int) and each[1] >= 0]
    if not beyond and 2 * len(without) <= len(listed):
        return None
    number, answer, _ = (beyond or without)[0]
    share = f"the right answer of {len(without)} of {len(listed)} rows is none of their choices"
    return f"{share}, such as {answer!r} of row {number}", REMEDY


def _asks_one_text(rows: Sequence[Row], spec: dict[str, Any]) -> bool:
    """Whether the choices answer one question, and are not themselves the questions."""
    text = spec.get("doc_to_text")
    if not rows or type(text) is not str:  # a function may return which choice it is
        return False
    if text in rows[0]:
        return isinstance(rows[0][text], str)
    return not (_MARKUP.sub("", text) or "0").isdigit()
