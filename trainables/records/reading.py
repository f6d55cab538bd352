"""Reads records and explains those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainables.errors import Fault, UserError, collecting

Record = TypeVar("Record", bound=BaseModel)
T = TypeVar("T")
_LONGEST_VALUE = 60
_UPDATE = "a newer version may have written it: update forgetting-sweeps, or restore it from a copy"


def read_record(
    kind: type[Record], content: bytes, file: str, remedy: str, line: int | None = None
) -> Record:
    """Parse a record read from disk.

    Args:
        kind: type of the record.
        content: its JSON.
        file: where it was read from, for the message.
        remedy: what to do if it is damaged.
        line: its line in the file, if the file holds several records.

    Raises:
        UserError: a newer version wrote it, or someone changed it by hand.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        if any(map(_is_by_newer_version, details)):
            remedy = _UPDATE
        place = f"{file}:{line}" if line else file
        raise UserError([_fault(detail, place, remedy) for detail in details]) from None


def read_each(readers: Iterable[Callable[[], T]]) -> list[T]:
    """The result of each reader, in order; the `UserError` has the faults of all."""
    found: list[T] = []
    faults: list[Fault] = []
    for read in readers:
        with collecting(faults):
            found.append(read())
    if faults:
        raise UserError(faults)
    return found


def _is_by_newer_version(detail: ErrorDetails) -> bool:
    return detail["type"] == "extra_forbidden" or detail["loc"] == ("schema_version",)


def _fault(detail: ErrorDetails, place: str, remedy: str) -> Fault:
    kind = detail["type"]
    if kind == "json_invalid":
        return Fault(place, f"is not JSON: {detail['ctx']['error']}", remedy)
    if kind == "missing":
        rule = "is missing"
    elif kind == "extra_forbidden":
        rule = "is no key of this record"
    else:
        rule = f"{_rule(detail)}, got {_shown(detail['input'])}"
    field = ".".join(map(str, detail["loc"]))
    return Fault(place, f"{field} {rule}" if field else rule, remedy)


def _rule(detail: ErrorDetails) -> str:
    message = detail["msg"].replace("Input should", "must").removeprefix("Value error, ")
    return message.replace("valid dictionary", "JSON object").replace("'", "")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
