"""Checks the files that a sweep file gives to tasks, where a task's YAML says what it takes.

The harness decides, and the driver does not import it: what a task computes is left to it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, meta

from trainables.config import EvalSuite
from trainables.errors import Fault, UserError
from trainables.files.locations import absence, resolve
from trainables.inputs.right_answers import REMEDY, names_a_choice
from trainables.inputs.row_files import Row, opened, read_rows
from tune.config.task_files import task_named

# What the readers of `datasets` take, by their name as a task's `dataset_path`.
_SUFFIXES = {"json": (".jsonl", ".json"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}
_NO_FILES = "is absent, and the task's YAML names no files"
# Keys by which other data may be read than what the files hold.
_OWN_READING = ("class", "custom_dataset", "include")
_PRINTED = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_MARKUP = re.compile(r"\{([{%#]).*?[}%#]\}|\s", re.DOTALL)
_DARK = re.compile(r"\S")
_ENVIRONMENT = Environment(autoescape=True)  # though nothing is rendered
_ENVIRONMENT.filters["regex_replace"] = str  # which the harness has, too


def faults_of_task_rows(suite: EvalSuite) -> Iterator[Fault]:
    """Faults of the `data_files` of tasks that the suite's `task_dirs` define."""
    folders = [Path(resolve(folder)) for folder in suite.task_dirs]
    for role, task in suite.tasks():
        spec = task_named(task.task, folders)
        is_read_here = str(spec.get("dataset_path")) in _SUFFIXES
        options = spec.get("dataset_kwargs") or {}
        if is_read_here and spec.keys().isdisjoint(_OWN_READING) and set(options) <= {"data_files"}:
            of_yaml = "" if task.data_files else "dataset_kwargs."
            field = f"eval.{role}.{task.label}.{of_yaml}data_files"
            of_task = options.get("data_files", {})
            files = task.data_files or _plainly_named(of_task)
            if not files and of_task == {}:  # `datasets` takes what it finds where it runs
                asked = spec.get("test_split") or spec.get("validation_split") or "test"
                remedy = f"write {{task: {task.task}, data_files: {{{asked}: FILE}}}}"
                yield Fault(f"eval.{role}.{task.label}.data_files", _NO_FILES, remedy)
            yield from _faults_of_files(field, files, spec, suite.limit_of(task))


def _plainly_named(files: Any) -> dict[str, str]:
    """The files of a task's own YAML; none unless it has one local file for each split."""
    named = files if isinstance(files, dict) else {}
    is_plain = all(
        str(name).startswith("/") and not has_magic(str(name)) for name in named.values()
    )
    return named if is_plain else {}


def _faults_of_files(
    field: str, files: dict[str, str], spec: dict[str, Any], limit: int | None
) -> Iterator[Fault]:
    asked = spec.get("test_split") or spec.get("validation_split")
    if files and asked and asked not in files:
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
            rule_and_remedy = _absent(rows, spec) or _without_answer(rows[:limit], spec)
            if rule_and_remedy:
                yield Fault(f"{field}.{split}", *rule_and_remedy, location=file)


def _rows(field: str, file: Path, spec: dict[str, Any]) -> list[Row]:
    """The rows of a file; none of one that only the task's own reader knows.

    Raises:
        UserError: it is missing, of another format, malformed or empty.
    """
    if why := absence(file, "file"):
        raise UserError([Fault(field, f"{why}: {file}")])
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
        if reader == "json" and _is_json(file):
            return []
        raise
    if not rows:
        raise UserError([Fault(field, f"holds no rows: {file}")])
    return rows


def _is_json(file: Path) -> bool:
    """Whether it is an array, or objects one after the other: the reader ignores line ends.

    Only in an array may control characters, such as tabs, stand unescaped.
    """
    kinds, at = [], 0
    try:
        with opened(file) as stream:
            text = stream.read().decode("utf-8-sig").lstrip()
        decoder = json.JSONDecoder(strict=not text.startswith("["))
        while dark := _DARK.search(text, at):
            value, at = decoder.raw_decode(text, dark.start())
            kinds.append(type(value))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return False
    return kinds == [list] or set(kinds) == {dict}


def _absent(rows: Sequence[Row], spec: dict[str, Any]) -> tuple[str, str] | None:
    """Fields that a template prints, or that lists the choices, and no row has."""
    has = {name for row in rows for name in row}
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        value = spec.get(key)
        if not rows or not isinstance(value, str) or "{%" in value:
            continue
        names = _printed(value)
        if key == "doc_to_choice" and value.isidentifier():
            names = [value]
        if lacking := [name for name in names if name not in has]:
            rule = f"must have {', '.join(lacking)}, which {key} of task {spec['task']} names"
            return rule, f"its rows have {', '.join(sorted(has))}"
    return None


def _printed(template: str) -> list[str]:
    """Fields that it prints as they are; none of a template that only the harness knows to read."""
    try:
        fields = meta.find_undeclared_variables(_ENVIRONMENT.parse(template))
    except TemplateError:
        return []
    return [name for name in _PRINTED.findall(template) if name in fields]


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
