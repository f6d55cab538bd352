"""Reads records and explains those that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainables.errors import Fault, UserError, collecting

Record = TypeVar("Record", bound=BaseModel)
T = TypeVar("T")
_LONGEST_VALUE = 60
_VERSION = ("schema_version",)
_UPDATE = "another version of forgetting-sweeps wrote it: use that one, or start a new sweep"


def read_record(
    kind: type[Record], content: bytes, file: str, remedy: str, line: int | None = None
) -> Record:
    """Parse a record read from disk.

    `line`: its line in the file, if the file holds several records.

    Raises:
        UserError: another version wrote it, or someone changed it by hand.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        details = error.errors(include_url=False)
        versions = [detail for detail in details if detail["loc"] == _VERSION]
        details = versions or details  # the rest follows from it
        if versions or any(detail["type"] == "extra_forbidden" for detail in details):
            remedy = _UPDATE
        place = f"{file}:{line}" if line else file
        raise UserError([_fault(detail, place, remedy) for detail in details]) from None


def read_each(readers: Iterable[Callable[[], T]]) -> list[T]:
    """The result of each reader, in order; a `UserError` has the faults of all."""
    found: list[T] = []
    faults: list[Fault] = []
    for read in readers:
        with collecting(faults):
            found.append(read())
    if faults:
        raise UserError(faults)
    return found


def _fault(detail: ErrorDetails, place: str, remedy: str) -> Fault:
    kind, message = detail["type"], detail["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return Fault(place, f"is not JSON: {detail['ctx']['error']}", remedy)
    value = json.dumps(detail["input"], default=str)
    shown = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."
    rules = {"missing": "is missing", "extra_forbidden": "is no key of this record"}
    rule = rules.get(kind) or f"{message.replace('Input should', 'must')}, got {shown}"
    return Fault(place, " ".join([".".join(map(str, detail["loc"])), rule]).lstrip(), remedy)
