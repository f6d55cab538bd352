"""Jinja templates over rows: sandboxed, and limited in time and in the size of what they make."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import date, timedelta
from datetime import time as time_of_day
from functools import wraps
from numbers import Number
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, Undefined, meta, nodes
from jinja2.exceptions import TemplateRuntimeError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from trainables.data.row_files import Row

WHOLE = "row"  # the variable that holds the whole row, unless a field has this name
NULL_IS_PRINTED = "what it prints is null"
# Whatever else a template prints has no text that anyone would write.
_PRINTABLE = (str, Number, date, time_of_day, timedelta, Undefined)
TEMPLATE_FAILS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""What a template, which is the user's code, can raise."""
SECONDS = 5.0  # for one row
LONGEST = 10_000_000  # characters or items
_MOST_BITS = 4096  # of an integer
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class TemplateTooLarge(TemplateRuntimeError):
    """A template takes too long or makes too much."""


def _check_time() -> None:
    if time.monotonic() > _deadline.get():
        raise TemplateTooLarge(f"it takes longer than {SECONDS:g} s")


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise TemplateTooLarge(f"it makes more than {LONGEST:,} characters")


def _check_size(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise TemplateTooLarge(f"it makes a number of more than {_MOST_BITS} bits")
    if isinstance(value, (str, list, tuple)):
        _check_length(len(value))
    return value


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with limits on its numbers, such as a width, and on its result."""

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        _check_time()
        for value in (*arguments, *named.values()):
            if isinstance(value, int):
                _check_length(abs(value))
        return _check_size(function(*arguments, **named))

    return call


def _timed(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _check_time()
        yield item


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_size(1 << min(left.bit_length() * abs(right), _MOST_BITS))
        for text, times in ((left, right), (right, left)) if operator == "*" else ():
            if isinstance(text, (str, list, tuple)) and isinstance(times, int):
                _check_length(len(text) * times)
        return _check_size(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, *arguments: Any, **named: Any) -> Any:
        return _limited(super().call)(context, function, *arguments, **named)


class _LimitLoops(NodeTransformer):
    """Checks the time at each turn of a loop, and the size of what `~` joins."""

    def visit_For(self, loop: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja has its name
        loop.iter = nodes.Filter(loop.iter, "timed", [], [], None, None)
        return self.generic_visit(loop)

    def visit_Concat(self, joined: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja has its name
        return nodes.Filter(self.generic_visit(joined), "check_size", [], [], None, None)


def _no_text(value: Any) -> TypeError:
    """The error of printing what only Python has a notation for, such as a list."""
    kind = type(value).__name__
    return TypeError(f"it prints a {kind}, which is no text; join it, or name chats by `messages`")


class _Null(Undefined):
    """A value that is null: false, as in Python, but without a text, as "None" would be learned."""

    def __str__(self) -> str:
        raise UndefinedError(NULL_IS_PRINTED)

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Null)

    def __hash__(self) -> int:
        return hash(None)


_NULL = _Null(NULL_IS_PRINTED)


def _printed(value: Any) -> Any:
    """What a template prints."""
    if isinstance(value, float) and math.isnan(value):  # which some tools write for null
        raise ValueError("what it prints is NaN")
    if value is None:  # as a method returns it
        return _NULL
    if not isinstance(value, _PRINTABLE):
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


_ENVIRONMENT = _Environment(
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    finalize=_printed,
    optimized=False,  # else constants are computed, without limits, as a template is compiled
)
_ENVIRONMENT.tests["none"] = lambda value: value is None or isinstance(value, _Null)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _as_json}
_ENVIRONMENT.filters = {n: _limited(f) for n, f in _ENVIRONMENT.filters.items()}
_ENVIRONMENT.filters |= {"timed": _timed, "check_size": _check_size}
del _ENVIRONMENT.globals["lipsum"]


def compile_template(text: str) -> Template:
    """A template whose loops, operators, calls and filters are limited, in any thread.

    Not limited is a single step that makes a huge text of long ones (`text.replace("a", text)`),
    or by a width in a format string (`"%999999999d" % 1`).

    Raises:
        TemplateError: it is malformed.
    """
    tree = _LimitLoops().visit(_ENVIRONMENT.parse(text))
    return _ENVIRONMENT.from_string(tree.set_environment(_ENVIRONMENT))


def variables_in(template: str) -> set[str]:
    """The names that a template uses."""
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(template))


def render(template: Template, row: Row) -> str:
    """What a template makes of a row.

    Raises:
        TEMPLATE_FAILS: any of these.
        TemplateTooLarge: it takes longer than `SECONDS`, or makes more than `LONGEST` characters.
    """
    began = _deadline.set(time.monotonic() + SECONDS)
    try:
        chunks, length = [], 0
        for chunk in template.generate(variables(_with_nulls(row))):
            _check_time()
            chunks.append(chunk)
            length += len(chunk)
            _check_length(length)
        return "".join(chunks)
    finally:
        _deadline.reset(began)


def variables(row: Row) -> Row:
    """What a template may name: the fields, and the row, for fields whose names Jinja refuses."""
    return {WHOLE: row} | row
