"""Training data as rows, and what is asked and learned in each."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Literal

from jinja2 import Template, TemplateError, UndefinedError, meta

from trainables.config import DataConfig
from trainables.errors import Fault, UserError, hub_remedy, named
from trainables.files.locations import RELATIVE, absence, expanded, is_local, resolve
from trainables.inputs.chats import Example, examples_of_chat, without_nulls
from trainables.inputs.row_files import Row, data_file_in, first_of, read_rows
from trainables.inputs.row_templates import (
    ENVIRONMENT,
    PLAIN,
    TEMPLATE_FAILS,
    WHOLE,
    NoText,
    names_of,
    text_of,
)
from trainables.inputs.unusable import UnusableRow, faults_of_most

Source = Literal["path", "validation_path"]
_LONGEST_REASON = 400  # characters: with the types of all fields it may be of pages
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
        rule = f"must be a file, is {'a folder' if file.is_dir() else 'none'}"
        inside = data_file_in(file)
        remedy = "give a .jsonl, .json, .csv, .tsv, .txt or .parquet"
        remedy += f", such as {inside}" if inside else ""
        raise UserError([Fault(field, f"{rule}: {file}", remedy)])
    return read_rows(file, field, other)


def _read_hub(name: str, data: DataConfig, field: str) -> list[Row]:
    import datasets
    from huggingface_hub.errors import HTTPError

    split = data.split
    if field == "data.validation_path":
        split = data.validation_split or split
    try:
        hub = datasets.load_dataset(name, data.subset, split=split)
    except (OSError, HTTPError, ValueError, RuntimeError) as error:  # the last: one with a script
        rule = f"cannot load data set {name}: {error}"
        raise UserError([Fault(field, rule, hub_remedy(error))]) from error
    except datasets.exceptions.DatasetsError as error:  # as of files with unlike fields
        why = f"{named(error)}: {error.__cause__}" if error.__cause__ else named(error)
        why = textwrap.shorten(why, _LONGEST_REASON, placeholder=" ...")
        remedy = "name a data.subset of like files that is whole, or a file of your own"
        raise UserError([Fault(field, f"cannot load data set {name}: {why}", remedy)]) from error
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
    location = getattr(data, source)
    if faults := _faults_of_fields(data, rows, location):
        raise UserError(faults)
    rendered = list(_render(data, rows))
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


def _faults_of_fields(data: DataConfig, rows: Sequence[Row], location: str) -> list[Fault]:
    """Malformed templates, and fields that are absent, null or no text where one is needed."""
    if data.messages is not None:
        for index, row in enumerate(rows):
            if data.messages not in row:
                where = f"row {index + 1} of {location}"
                return [_fault_of_lacking("data.messages", [data.messages], where, row)]
    if data.text is not None:
        return first_of(list(_faults_of_texts(data.text, rows, location)))
    faults: list[Fault] = []
    blank = _blank_rows(data, rows)
    for name, text in _templates(data).items():
        faults += first_of(list(_faults_of_template(f"data.{name}", text, rows, location, blank)))
    return faults


def _blank_rows(data: DataConfig, rows: Sequence[Row]) -> Set[int]:
    """Indices of rows with a completion that nulls leave blank: nothing else need be in them."""
    try:
        template = ENVIRONMENT.from_string(_templates(data)["completion"])
    except (KeyError, TemplateError):  # there is none, or the faults tell of it
        return frozenset()
    return {index for index, row in enumerate(rows) if _is_blank_by_nulls(template, row)}


def _templates(data: DataConfig) -> dict[str, str]:
    """What is rendered on each row, by field."""
    of_row = {"prompt": data.prompt, "completion": data.completion}
    of_chat = {"system": data.system} if data.system is not None else {}
    return of_chat | (of_row if data.messages is None else {})


def _faults_of_template(
    field: str, text: str, rows: Sequence[Row], location: str, blank: Set[int]
) -> Iterator[Fault]:
    try:
        wanted = meta.find_undeclared_variables(ENVIRONMENT.parse(text))
        template = ENVIRONMENT.from_string(text)
    except TemplateError as error:
        how = _how_to_name(rows[0])
        yield Fault(field, f"is no valid template: {text!r} ({error})", how)
        return
    if (meant := _meant(text, rows[0])) and "{{" not in text and "{%" not in text:
        yield Fault(field, f"is one text for all rows: {text!r}", f"write {meant}")
        return
    is_first = True
    for index, row in enumerate(rows):
        named = names_of(row)
        is_like_first = all(isinstance(named.get(name), PLAIN) for name in wanted) and not is_first
        if is_like_first or index in blank:
            continue  # as good as the first, whatever the template does with such values
        was_first, is_first = is_first, False
        try:
            text_of(template, row)
        except TEMPLATE_FAILS as error:
            without = sorted(name for name in wanted if named.get(name) is None)
            if not without or not isinstance(error, UndefinedError):
                yield _failure(field, index, error)
                continue
            lacking = _lacking(template, row, without)
            yield _fault_of_lacking(field, lacking, f"row {index + 1} of {location}", row)
            if was_first and any(name not in row for name in lacking):
                return  # a name that no row has, most likely


def _faults_of_texts(field: str, rows: Sequence[Row], location: str) -> Iterator[Fault]:
    for index, row in enumerate(rows):
        where = f"row {index + 1} of {location}"
        if field not in row:
            yield _fault_of_lacking("data.text", [field], where, row)
            return
        if row[field] is None or isinstance(row[field], str):  # null is an empty text, as in CSV
            continue
        rule = f"must name a text, got a {type(row[field]).__name__} in {where}"
        if isinstance(row[field], list) and any(isinstance(turn, dict) for turn in row[field]):
            yield Fault("data.text", rule, f"name chats by data.messages: {field}")
            return
        yield Fault("data.text", rule, "leave such rows out")
    if not any(str(row.get(field) or "").strip() for row in rows):
        yield Fault("data.text", f"names {field}, blank in all rows of {location}")


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


def _lacking(template: Template, row: Row, without: Sequence[str]) -> list[str]:
    """Those of the fields without a value that the template needs."""
    filled = {name: row | {other: "" for other in without if other != name} for name in without}
    return [name for name in without if _needs_more_than(template, filled[name])] or list(without)


def _fault_of_lacking(field: str, lacking: Sequence[str], where: str, row: Row) -> Fault:
    absent = [name for name in lacking if name not in row]
    if absent:
        has = f"the row has {', '.join(map(str, row)) or 'no fields'}"
        how = "" if field in ("data.messages", "data.text") else _how_to_name(row)
        has = "; ".join(filter(None, (has, how, _how_to_learn(field, row))))
        return Fault(field, f"names {', '.join(absent)}, absent from {where}", has)
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


def _failure(field: str, index: int, error: Exception) -> Fault:
    remedy = error.remedy if isinstance(error, NoText) else ""
    return Fault(field, f"cannot be rendered on row {index + 1}: {error}", remedy)


def _needs_more_than(template: Template, row: Row) -> bool:
    try:
        text_of(template, row)
    except TEMPLATE_FAILS as error:  # `_render` says what else is wrong
        return isinstance(error, UndefinedError)
    return False


def _is_blank_by_nulls(template: Template, row: Row) -> bool:
    """Whether a template makes nothing but blanks of a row some of whose fields are null."""
    if None not in row.values():
        return False
    try:
        empty = {name: "" if value is None else value for name, value in row.items()}
        return not text_of(template, empty).strip()
    except TEMPLATE_FAILS:
        return False


def _render(data: DataConfig, rows: Sequence[Row]) -> Iterator[Rendered]:
    if data.text is not None:
        for row in rows:
            text = row[data.text] or ""
            yield [Example("", text)] if text.strip() else []
        return
    templates = {name: ENVIRONMENT.from_string(text) for name, text in _templates(data).items()}
    blank = _blank_rows(data, rows)
    for index, row in enumerate(rows):
        if index in blank:
            yield UnusableRow([_BLANK])
            continue
        texts = {}
        for name, template in templates.items():
            try:
                texts[name] = text_of(template, row)
            except TEMPLATE_FAILS as error:
                raise UserError([_failure(f"data.{name}", index, error)]) from error
        try:
            examples = _examples(data, row, texts)
        except UnusableRow as error:
            yield error
            continue
        system = texts.get("system")
        yield [example.begun_by(system) for example in examples] if system else examples


def _examples(data: DataConfig, row: Row, texts: Mapping[str, str]) -> list[Example]:
    """What is learned from a row, whose templates made these texts.

    Raises:
        UnusableRow: nothing can be.
    """
    if data.messages is not None:
        return examples_of_chat(row, data.messages, data.answers)
    if texts["completion"].strip():
        return [Example(texts["prompt"], texts["completion"])]
    raise UnusableRow([_BLANK])
