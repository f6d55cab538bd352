"""Templates over rows, which print what is asked and learned in each."""

from __future__ import annotations

import math
from datetime import date, time, timedelta
from numbers import Number
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainables.data.row_files import Row

WHOLE = "row"  # what templates call the row itself, unless a field of it is called so
# Of what else templates print, what has a text that anyone would write.
_OF_TEXT = (str, Number, date, time, timedelta, Undefined)
# What a template, which is the user's code, can raise.
TEMPLATE_FAILS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
)


def _no_text(value: Any) -> TypeError:
    """The error of a template that prints what only Python has a notation of, such as a list."""
    kind = type(value).__name__
    return TypeError(f"it prints a {kind}, which is no text; join it, or name chats by `messages`")


class _Null(Undefined):
    """A value that is null: false, as in Python, but without a text, as "None" would be learned."""

    __str__ = Undefined._fail_with_undefined_error

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Null)

    def __hash__(self) -> int:
        return hash(None)


NULL_IS_PRINTED = "what it prints is null"
_NULL = _Null(NULL_IS_PRINTED)


def _written(value: Any) -> Any:
    """What a template prints."""
    if isinstance(value, float) and math.isnan(value):  # which some tools write for null
        raise ValueError("what it prints is NaN")
    if value is None:  # as a method returns it
        return _NULL
    if not isinstance(value, _OF_TEXT):
        raise _no_text(value)
    return value


def _with_nulls(value: Any) -> Any:
    """A row's content with nulls that print nothing: filters would make None a text."""
    if value is None:
        return _NULL
    if isinstance(value, dict):
        return {n: v if isinstance(v, str) else _with_nulls(v) for n, v in value.items()}
    return [_with_nulls(item) for item in value] if isinstance(value, list) else value


def _as_json(value: Any) -> None:
    """Null in JSON, for what JSON itself has no notation of."""
    if not isinstance(value, _Null):
        raise _no_text(value)


ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=True, finalize=_written
)
ENVIRONMENT.tests["none"] = lambda value: value is None or isinstance(value, _Null)
ENVIRONMENT.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _as_json}


def text_of(template: Template, row: Row) -> str:
    """What a template makes of a row; it may raise any of `TEMPLATE_FAILS`."""
    return template.render(names_of(_with_nulls(row)))


def names_of(row: Row) -> Row:
    """What a template may name: the fields, and the row, as some are called what no name can be."""
    return {WHOLE: row} | row
