"""Training data as rows, and what is asked and learned in each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal

from jinja2 import Template, TemplateError, UndefinedError, meta

from trainables.config import DataConfig
from trainables.data.chats import Example, examples_of_chat, without_nulls
from trainables.data.row_files import Row, UnusableRow, faults_of_most, first_of, read_rows
from trainables.data.row_templates import (
    ENVIRONMENT,
    NULL_IS_PRINTED,
    TEMPLATE_FAILS,
    WHOLE,
    names_of,
    text_of,
)
from trainables.errors import Fault, UserError, as_reason, hub_remedy
from trainables.records.reading import read_each
from trainables.storage.locations import RELATIVE, absence, expanded, is_local, resolve

Source = Literal["path", "validation_path"]
# A name in one pair of braces, as Python and others write it.
_BRACED = re.compile(r"\{([^{}]+)\}")
SOURCES: tuple[Source, ...] = ("path", "validation_path")
_BLANK = Fault("data.completion", "the completion is blank", "leave such rows out")
# What rows such as Alpaca's need, as YAML has it; `input` is blank in many, and some have none.
_INSTRUCTED = {
    "data.prompt": (
        r'write "{{ instruction }}{% if input is defined and input %}\n{{ input }}{% endif %}"'
    ),
    "data.completion": 'write " {{ output }}", in chats without the space',
}
# What is learned from a row, or why nothing can be.
Rendered = list[Example] | UnusableRow


def load_rows(data: DataConfig, source: Source = "path") -> list[Row]:
    """Read the rows of the local file or hub data set that the field `source` of the data names.

    Raises:
        UserError: a file is missing, empty or malformed (with its line).
    """
    field, location = f"data.{source}", str(getattr(data, source))
    rows = _read_local(location, field) if is_local(location) else _read_hub(location, data, field)
    if not rows:
        raise UserError([Fault(field, f"holds no rows: {location}")])
    rows = rows[: data.limit]
    if data.messages and (not is_local(location) or location.endswith(".parquet")):
        chats = {data.messages, "tools"}
        return [row | {name: without_nulls(row[name]) for name in chats & set(row)} for row in rows]
    return rows


def _read_local(location: str, field: str, other: str = ".jsonl") -> list[Row]:
    try:
        file = expanded(resolve(location))
    except ModuleNotFoundError as error:
        raise UserError([Fault(field, str(error))]) from error
    if rule := absence(file, "file"):
        raise UserError([Fault(field, f"{rule}: {file}", RELATIVE)])
    if not file.is_file():
        remedy = "give a .jsonl, .json, .csv, .tsv, .txt or .parquet"
        raise UserError([Fault(field, f"must be a file, is none: {file}", remedy)])
    return read_rows(file, field, other)


def _read_hub(name: str, data: DataConfig, field: str) -> list[Row]:
    import datasets
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError

    split = data.split
    if field == "data.validation_path":
        split = data.validation_split or split
    try:
        hub = datasets.load_dataset(name, data.subset, split=split)
    except (OSError, HTTPError, ValueError, RuntimeError, DatasetsError) as error:
        told = " ".join(f"{type(error).__name__}: {error} {error.__cause__ or ''}".split())
        rule, remedy = f"cannot load data set {name}: {as_reason(told)}", hub_remedy(error)
        if not isinstance(error, (OSError, ValueError, RuntimeError)):  # as of files unlike others
            remedy = remedy or "name a data.subset of like files, or a file of your own"
        raise UserError([Fault(field, rule, remedy)]) from error
    # No text is made of pictures and sounds, which each row would hold decoded.
    texts = hub.remove_columns([n for n, feature in hub.features.items() if _is_media(feature)])
    return [dict(row) for row in texts.select(range(len(texts))[: data.limit])]


def _is_media(feature: Any) -> bool:
    """Whether a column's type, or that of its lists, is one that `datasets` decodes from a file."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return hasattr(feature, "decode")


def read_general_text(location: str) -> list[str]:
    """The texts of a file that training data may be in: its field `text`, or lines of any other.

    Rows whose text is blank or null are left out.

    Raises:
        UserError: it is missing or malformed, a row has no such field, or all are left out.
    """
    field = "eval.general_text"
    rows = _read_local(location, field, other=".txt")
    for number, row in enumerate(rows, start=1):
        if "text" not in row:
            rule = f"each row must have a field `text`, row {number} has none"
            raise UserError([Fault(field, rule, location=location)])
    texts = [text for row in rows if row["text"] is not None and (text := str(row["text"])).strip()]
    if not texts:
        raise UserError([Fault(field, f"holds no texts: {location}")])
    return texts


def learned(data: DataConfig, rows: Sequence[Row], source: Source = "path") -> list[Rendered]:
    """What is learned from each row.

    A field that a template uses only if it is defined may be absent, and one of which it makes no
    text may be null. Null that is all of a completion, as an empty cell is, makes it blank.

    Raises:
        UserError: a template is malformed or cannot be rendered on a row; a chat or text is absent;
            or most rows cannot be learned, as completions are blank, or chats malformed or without
            an answer.
    """
    location = str(getattr(data, source))
    if data.text is None:
        rendered = _of_templates(data, rows, location)
    else:
        rendered = _of_texts(data.text, rows, location)
    unusable = [
        made.at(index, location)
        for index, made in enumerate(rendered)
        if isinstance(made, UnusableRow)
    ]
    if faults := faults_of_most(unusable, len(rows)):
        raise UserError(faults)
    return rendered


def count_samples(data: DataConfig, rendered: Iterable[Rendered]) -> int | None:
    """How many samples to train on the rows make; None if that depends on their tokens.

    Includes those that are too long, and those that the model's chat template will refuse. Which
    rows are held out is drawn, so where rows make unlike numbers of samples it is their mean.
    """
    if data.text is not None:
        return None
    of_rows = [len(made) for made in rendered if not isinstance(made, UnusableRow)]
    kept = len(of_rows) - data.held_out(len(of_rows))
    return round(sum(of_rows) * kept / len(of_rows)) if of_rows else 0


def _of_templates(data: DataConfig, rows: Sequence[Row], location: str) -> list[Rendered]:
    """What is learned from rows of chats, or of prompts and completions."""
    texts = _templates(data)
    compiled = read_each(partial(_compiled, name, text, rows[0]) for name, text in texts.items())
    templates = dict(zip(texts, compiled, strict=True))
    rendered: list[Rendered] = []
    faults: list[Fault] = []
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {location}"
        try:
            rendered.append(_examples(data, row, templates, where))
        except UnusableRow as error:
            rendered.append(error)
        except UserError as error:
            faults += error.faults
            if number == 1:
                break  # what fails on the first row does so on all, most likely
    if faults:
        raise UserError(first_of(faults))
    return rendered


def _templates(data: DataConfig) -> dict[str, str]:
    """What is rendered on each row, by field."""
    of_row = {"prompt": data.prompt, "completion": data.completion}
    of_chat = {"system": data.system} if data.system is not None else {}
    return of_chat | (of_row if data.messages is None else {})


def _compiled(name: str, text: str, row: Row) -> Template:
    """A template over rows such as this one.

    Raises:
        UserError: it is malformed, or but a text in which names of fields stand.
    """
    try:
        template = ENVIRONMENT.from_string(text)
    except TemplateError as error:
        rule = f"is no valid template: {text!r} ({error})"
        raise UserError([Fault(f"data.{name}", rule, _how_to_name(row))]) from error
    if (meant := _meant(text, row)) and "{{" not in text and "{%" not in text:
        rule = f"is one text for all rows: {text!r}"
        raise UserError([Fault(f"data.{name}", rule, f"write {meant}")])
    return template


def _of_texts(field: str, rows: Sequence[Row], location: str) -> list[Rendered]:
    """What is learned from rows of texts; null is an empty one, as in CSV."""
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {location}"
        if field not in row:
            raise UserError([_fault_of_lacking("data.text", [field], where, row)])
        if row[field] is not None and not isinstance(row[field], str):
            rule = f"must name a text, got a {type(row[field]).__name__} in {where}"
            remedy = "leave such rows out, or if they are chats name them by data.messages"
            raise UserError([Fault("data.text", rule, remedy)])
    texts = [row[field] or "" for row in rows]
    if not any(map(str.strip, texts)):
        raise UserError([Fault("data.text", f"names {field}, blank in all rows of {location}")])
    return [[Example("", text)] if text.strip() else [] for text in texts]


def as_replay(faults: Sequence[Fault]) -> list[Fault]:
    """Faults of `Replay.as_data`, under the fields where the sweep file has it."""
    return [
        replace(
            fault,
            field=fault.field.replace("data.", "data.replay.", 1),
            remedy=fault.remedy.replace("data.messages", "data.replay.messages"),
        )
        for fault in faults
    ]


def _fault_of_rendering(
    field: str, error: Exception, wanted: Set[str], row: Row, where: str
) -> Fault:
    """The fault of a template that names the wanted fields and fails on a row."""
    is_null, named_here = NULL_IS_PRINTED in str(error), names_of(row)
    without = [name for name in sorted(wanted) if named_here.get(name) is None]
    lacking = [name for name in without if (name in row) == is_null]
    if lacking and isinstance(error, UndefinedError):
        return _fault_of_lacking(field, lacking, where, row)
    return Fault(field, f"cannot be rendered on {where}: {error}")


def _fault_of_lacking(field: str, lacking: Sequence[str], where: str, row: Row) -> Fault:
    if lacking[0] not in row:
        has = f"the row has {', '.join(map(str, row)) or 'no fields'}"
        how = "" if field in ("data.messages", "data.text") else _how_to_name(row)
        has = "; ".join(filter(None, (has, how, _how_to_learn(field, row))))
        return Fault(field, f"names {', '.join(lacking)}, absent from {where}", has)
    rule, remedy = f"prints {', '.join(lacking)}, null in {where}", "leave such rows out"
    if field != "data.completion":  # which cannot be learned if it is blank
        remedy += f", or write {{% if {lacking[0]} %}} ... {{% endif %}} around it"
    return Fault(field, rule, remedy)


def _how_to_name(row: Row) -> str:
    """How a template has a field whose name Jinja does not take for one; empty if there is none."""
    odd = next((name for name in map(str, row) if not name.isidentifier()), None)
    return "" if odd is None else f"write {_expression(odd)} for the field {odd}"


def _how_to_learn(field: str, row: Row) -> str:
    """What prompt and completion of rows of chats or instructions take; empty for others."""
    if field not in _INSTRUCTED:
        return ""
    for name, value in row.items():
        turns = value if isinstance(value, list) else []
        if turns and all(isinstance(turn, dict) and {"role", "from"} & {*turn} for turn in turns):
            return f"name chats by data.messages: {name}"
    return _INSTRUCTED[field] if {"instruction", "output"} <= {*row} else ""


def _expression(name: str) -> str:
    """A field, as a template names it."""
    return name if name.isidentifier() else f"{WHOLE}[{name!r}]"


def _meant(text: str, row: Row) -> str:
    """What a text that is a field's name, or has some in braces, is meant to print; else empty."""
    if text.strip() in row:
        return f"{{{{ {_expression(text.strip())} }}}}"
    written = [f"{{{{ {_expression(name)} }}}}" for name in _BRACED.findall(text) if name in row]
    return " and ".join(dict.fromkeys(written))


def _is_blank_by_nulls(template: Template, row: Row) -> bool:
    """Whether a template makes nothing but blanks of a row some of whose fields are null."""
    if None not in row.values():
        return False
    try:
        empty = {name: "" if value is None else value for name, value in row.items()}
        return not text_of(template, empty).strip()
    except TEMPLATE_FAILS:
        return False


def _examples(
    data: DataConfig, row: Row, templates: Mapping[str, Template], where: str
) -> list[Example]:
    """What is learned from a row.

    Raises:
        UnusableRow: nothing can be.
        UserError: it has no chat, or templates cannot be rendered on it.
    """
    if data.messages is None and _is_blank_by_nulls(templates["completion"], row):
        raise UnusableRow([_BLANK])  # nothing else need be in it
    texts = _rendered(data, row, templates, where)
    if data.messages is None:
        if not texts["completion"].strip():
            raise UnusableRow([_BLANK])
        return [Example(texts["prompt"], texts["completion"]).begun_by(texts.get("system"))]
    if data.messages not in row:
        raise UserError([_fault_of_lacking("data.messages", [data.messages], where, row)])
    examples = examples_of_chat(row, data.messages, data.answers)
    return [example.begun_by(texts.get("system")) for example in examples]


@lru_cache  # many rows may lack what a template names
def _names_in(template: str) -> Set[str]:
    return meta.find_undeclared_variables(ENVIRONMENT.parse(template))


def _rendered(
    data: DataConfig, row: Row, templates: Mapping[str, Template], where: str
) -> dict[str, str]:
    """What the templates make of a row.

    Raises:
        UserError: they cannot be rendered on it.
    """
    texts: dict[str, str] = {}
    faults: list[Fault] = []
    for name, template in templates.items():
        try:
            texts[name] = text_of(template, row)
        except TEMPLATE_FAILS as error:
            wanted = _names_in(_templates(data)[name])
            faults.append(_fault_of_rendering(f"data.{name}", error, wanted, row, where))
    if faults:
        raise UserError(faults)
    return texts
