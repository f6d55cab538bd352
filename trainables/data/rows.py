"""Training data as rows, and the examples that each row gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal

from jinja2 import Template, TemplateError, UndefinedError

from trainables.config import DataConfig
from trainables.data.chats import Example, chat_examples, without_nulls
from trainables.data.row_files import Row, UnusableRow, first_few, mostly_unusable, read_rows
from trainables.data.row_templates import (
    NULL_IS_PRINTED,
    TEMPLATE_FAILS,
    WHOLE,
    TemplateTooLarge,
    compile_template,
    render,
    variables,
    variables_in,
)
from trainables.errors import Fault, UserError, as_reason, hub_remedy
from trainables.records.reading import read_each
from trainables.storage.locations import RELATIVE, absence, expanded, is_local, resolve

Source = Literal["path", "validation_path"]
SOURCES: tuple[Source, ...] = ("path", "validation_path")
# A name in one pair of braces, as Python and others write it.
_BRACED = re.compile(r"\{([^{}]+)\}")
_BLANK = Fault("data.completion", "the completion is blank", "leave such rows out")
Rendered = list[Example] | UnusableRow
"""What is learned from a row, or why nothing can be."""


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
        reason = " ".join(f"{type(error).__name__}: {error} {error.__cause__ or ''}".split())
        rule, remedy = f"cannot load data set {name}: {as_reason(reason)}", hub_remedy(error)
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


def row_examples(data: DataConfig, rows: Sequence[Row], source: Source = "path") -> list[Rendered]:
    """What is learned from each row.

    A field that a template uses only if it is defined may be absent, and one that it does not print
    may be null. A completion that is null, as an empty cell is, counts as blank.

    Raises:
        UserError: a template is malformed or cannot be rendered on a row; a chat or text is absent;
            or most rows cannot be learned, as completions are blank, or chats malformed or without
            an answer.
    """
    location = str(getattr(data, source))
    if data.text is None:
        rendered = _template_examples(data, rows, location)
    else:
        rendered = _text_examples(data.text, rows, location)
    unusable = [
        made.at(index, location)
        for index, made in enumerate(rendered)
        if isinstance(made, UnusableRow)
    ]
    if faults := mostly_unusable(unusable, len(rows)):
        raise UserError(faults)
    return rendered


def count_samples(data: DataConfig, rendered: Iterable[Rendered]) -> int | None:
    """How many samples to train on the rows make; None if that depends on their tokens.

    Includes those that are too long, and those that the model's chat template will refuse. Which
    rows are held out is drawn, so where rows make unlike numbers of samples it is their mean.
    """
    if data.text is not None:
        return None
    counts = [len(made) for made in rendered if not isinstance(made, UnusableRow)]
    kept = len(counts) - data.held_out(len(counts))
    return round(sum(counts) * kept / len(counts)) if counts else 0


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


def _text_examples(field: str, rows: Sequence[Row], location: str) -> list[Rendered]:
    """What is learned from rows of texts; null is an empty one, as in CSV."""
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of {location}"
        if field not in row:
            raise UserError([_absent_fault("data.text", [field], where, row)])
        if row[field] is not None and not isinstance(row[field], str):
            rule = f"must name a text, got a {type(row[field]).__name__} in {where}"
            remedy = "leave such rows out, or if they are chats name them by data.messages"
            raise UserError([Fault("data.text", rule, remedy)])
    texts = [row[field] or "" for row in rows]
    if not any(map(str.strip, texts)):
        raise UserError([Fault("data.text", f"names {field}, blank in all rows of {location}")])
    return [[Example("", text)] if text.strip() else [] for text in texts]


def _template_examples(data: DataConfig, rows: Sequence[Row], location: str) -> list[Rendered]:
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
                break  # what fails on the first row most likely fails on all
    if faults:
        raise UserError(first_few(faults))
    return rendered


def _templates(data: DataConfig) -> dict[str, str]:
    """What is rendered on each row, by field."""
    texts = {} if data.system is None else {"system": data.system}
    if data.messages is None:
        texts |= {"prompt": data.prompt, "completion": data.completion}
    return texts


def _compiled(name: str, text: str, row: Row) -> Template:
    """A template over rows such as this one.

    Raises:
        UserError: it is malformed, or a plain text that holds names of fields.
    """
    try:
        template = compile_template(text)
    except TemplateError as error:
        rule = f"is no valid template: {text!r} ({error})"
        raise UserError([Fault(f"data.{name}", rule, _how_to_name(row))]) from error
    if (meant := _meant(text, row)) and "{{" not in text and "{%" not in text:
        rule = f"is one text for all rows: {text!r}"
        raise UserError([Fault(f"data.{name}", rule, f"write {meant}")])
    return template


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
        raise UserError([_absent_fault("data.messages", [data.messages], where, row)])
    examples = chat_examples(row, data.messages, data.answers)
    return [example.begun_by(texts.get("system")) for example in examples]


def _is_blank_by_nulls(template: Template, row: Row) -> bool:
    """Whether a template makes nothing but blanks of a row some of whose fields are null."""
    if None not in row.values():
        return False
    try:
        empty = {name: "" if value is None else value for name, value in row.items()}
        return not render(template, empty).strip()
    except TEMPLATE_FAILS:
        return False


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
            texts[name] = render(template, row)
        except TEMPLATE_FAILS as error:
            used = _used_variables(_templates(data)[name])
            faults.append(_rendering_fault(f"data.{name}", error, used, row, where))
    if faults:
        raise UserError(faults)
    return texts


_used_variables = lru_cache(variables_in)  # many rows may lack what a template names


def _rendering_fault(field: str, error: Exception, used: Set[str], row: Row, where: str) -> Fault:
    """The fault of a template that uses these variables and fails on a row."""
    is_null, values = NULL_IS_PRINTED in str(error), variables(row)
    without = [name for name in sorted(used) if values.get(name) is None]
    lacking = [name for name in without if (name in row) == is_null]
    if lacking and isinstance(error, UndefinedError):
        return _absent_fault(field, lacking, where, row)
    remedy = "write fewer or shorter loops and texts" if isinstance(error, TemplateTooLarge) else ""
    return Fault(field, f"cannot be rendered on {where}: {error}", remedy)


def _absent_fault(field: str, lacking: Sequence[str], where: str, row: Row) -> Fault:
    if lacking[0] in row:
        rule, remedy = f"prints {', '.join(lacking)}, null in {where}", "leave such rows out"
        if field != "data.completion":  # which cannot be learned if it is blank
            remedy += f", or write {{% if {lacking[0]} %}} ... {{% endif %}} around it"
        return Fault(field, rule, remedy)
    hints = [f"the row has {', '.join(map(str, row)) or 'no fields'}"]
    if field not in ("data.messages", "data.text"):
        hints += [_how_to_name(row), _how_to_name_chats(row)]
    rule = f"names {', '.join(lacking)}, absent from {where}"
    return Fault(field, rule, "; ".join(filter(None, hints)))


def _how_to_name(row: Row) -> str:
    """How a template names a field whose name is no identifier; empty if there is none."""
    odd = next((name for name in map(str, row) if not name.isidentifier()), None)
    return "" if odd is None else f"write {_expression(odd)} for the field {odd}"


def _how_to_name_chats(row: Row) -> str:
    for name, value in row.items():
        turns = value if isinstance(value, list) else []
        if turns and all(isinstance(turn, dict) and {"role", "from"} & {*turn} for turn in turns):
            return f"name chats by data.messages: {name}"
    return ""


def _expression(name: str) -> str:
    """A field, as a template names it."""
    return name if name.isidentifier() else f"{WHOLE}[{name!r}]"


def _meant(text: str, row: Row) -> str:
    """What a text that is a field's name, or has some in braces, is meant to print; else empty."""
    if text.strip() in row:
        return f"{{{{ {_expression(text.strip())} }}}}"
    written = [f"{{{{ {_expression(name)} }}}}" for name in _BRACED.findall(text) if name in row]
    return " and ".join(dict.fromkeys(written))
