"""Numbers that Ray or a clock would not take are faults of their fields."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_files import edited, faults


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("resources.lora.cpus_per_worker=0.00001", "must be >= 0.0001, got 1e-05"),
        ("budget.minutes_per_report=1.0e+9", "must be <= 1e+06, got 1000000000.0"),
    ],
)
def test_a_number_that_nothing_takes_is_told_of(given: str, rule: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(), encoding="utf-8")
    (fault,) = faults(file, given)
    assert fault.rule == rule
