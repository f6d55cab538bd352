"""A sweep file's templates cannot hang a sweep, eat its memory or leave their sandbox."""

from __future__ import annotations

import time

import pytest
from faults import faults

from trainables.config import DataConfig
from trainables.data import row_templates
from trainables.data.rows import row_examples
from trainables.errors import Fault

SQUARING = "{% set n = namespace(s='ab') %}{% for i in range(90) %}{% set n.s = STEP %}{% endfor %}"
HOSTILE = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'x' * 10**10 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x' | center(9999999999) }}",
    SQUARING.replace("STEP", "n.s ~ n.s"),
    SQUARING.replace("STEP", "[n.s, n.s] | join"),
]


def refused(template: str) -> Fault:
    data = DataConfig(path="rows.jsonl", prompt="q", completion=template)
    (fault,) = faults(row_examples, data, [{"a": "b"}])
    return fault


@pytest.mark.parametrize("template", HOSTILE)
def test_a_template_that_takes_or_makes_too_much_is_refused(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_templates, "SECONDS", 0.1)
    monkeypatch.setattr(row_templates, "LONGEST", 100_000)
    began = time.monotonic()
    fault = refused(template)
    assert time.monotonic() - began < 5
    assert fault.field == "data.completion"
    assert "cannot be rendered on row 1 of rows.jsonl: it " in fault.rule
    assert "loops" in fault.remedy


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ a.format.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_a_template_stays_in_its_sandbox(template: str) -> None:
    assert "unsafe" in refused(template).rule
