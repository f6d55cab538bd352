"""What templates make of rows, and the faults of those that cannot be rendered."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from faults import faults

from trainables.config import DataConfig
from trainables.data.rows import row_examples
from trainables.errors import Fault

Row = dict[str, Any]


def examples(rows: list[Row], **fields: Any) -> Any:
    return row_examples(DataConfig(path="rows.jsonl", **fields), rows)


def fault_of(rows: list[Row], **fields: Any) -> Fault:
    (fault,) = faults(examples, rows, **fields)
    return fault


def prompt(template: str, **row: Any) -> str:
    ((example,),) = examples([row], prompt=template, completion="c")
    return str(example.prompt)


ODD = {"Full Question": "q", "ground-truth": "a"}


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("{{ a }}\n", {"a": "x"}, "x\n"),
        ("{{ row['Full Question'] }}", ODD, "q"),
        ("{{ row }}", {"row": "r"}, "r"),
        ("{% if hint is defined %}{{ hint }}{% endif %}{{ a }}", {"a": "x"}, "x"),
        ("{% for i in range(2) %}{{ a[i] }}{% endfor %}", {"a": ["x", "y"]}, "xy"),
        ("A question", {"n": "1"}, "A question"),
        ("{{ '{n}' }}", {"n": "1"}, "{n}"),
        # Null is false, and no text.
        ("{% if a %}{{ a }} {% endif %}{{ a or '!' }}{{ a is none }}", {"a": None}, "!True"),
        ("{{ a.b or 'x' }}{{ a.b == none }}{{ a | tojson }}", {"a": {"b": None}}, None),
        # Numbers and times are text.
        ("{{ n }} {{ d }} {{ t }} {{ n > 2 }} {{ d.year }}", {"n": 2.5, "d": date(2024, 7, 26),
         "t": Decimal("1.50")}, "2.5 2024-07-26 1.50 True 2024"),
        ("{{ a | map('string') | join }}{{ a | tojson }}", {"a": ["x"]}, 'x["x"]'),
    ],
)  # fmt: skip
def test_a_template_is_rendered_on_a_row(template: str, row: Row, text: str | None) -> None:
    assert prompt(template, **row) == ('xTrue{"b": null}' if text is None else text)


@pytest.mark.parametrize(
    ("template", "row", "facts", "remedy"),
    [
        ("{{ q", {"q": "x"}, ["is no valid template", "'{{ q'"], ""),
        ("{{ q }} {{ hint }}", {"q": "x"}, ["names hint, absent from row 1"], "the row has q"),
        ("{{ q }}", {"talk": [{"role": "user"}]}, ["names q"], "name chats by data.messages: talk"),
        ("{{ Full Question }}", ODD, ["is no valid template"], "write row['Full Question']"),
        ("{{ ground-truth }}", ODD, ["names ground, truth"], "write row['Full Question']"),
        # The name of a field, instead of a template.
        ("q", {"q": "x"}, ["is one text for all rows: 'q'"], "write {{ q }}"),
        ("{q}: {n}, {n}", {"q": "x", "n": 1}, ["one text"], "write {{ q }} and {{ n }}"),
        # Null.
        ("{{ a }}", {"a": None}, ["prints a, null in row 1"], "{% if a %} ... {% endif %}"),
        ("{{ a | trim }}", {"a": None}, ["prints a, null in row 1"], "leave such rows out"),
        ("{{ a | join(', ') }}", {"a": ["x", None]}, ["what it prints is null"], ""),
        # What only Python has a notation for.
        ("{{ a }}", {"a": [{"role": "user"}]}, ["it prints a list, which is no text"], ""),
        ("{{ a }}", {"a": float("nan")}, ["what it prints is NaN"], ""),
    ],
)
def test_why_a_template_cannot_be_rendered_is_reported(
    template: str, row: Row, facts: list[str], remedy: str
) -> None:
    fault = fault_of([row], prompt=template, completion="c")
    assert fault.field == "data.prompt"
    assert all(fact in fault.rule for fact in facts)
    assert remedy in fault.remedy
