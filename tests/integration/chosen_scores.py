"""Evaluations whose objective has the values that a test chooses."""

from __future__ import annotations

from typing import Any

import pytest

from trainables.config import Objective
from trainables.evaluation import base_scores as base_evaluation

OBJECTIVE = Objective(metric="in_domain/acc_mean", mode="max")


def scores(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Lets the objective have these values, one evaluation after another."""
    from trainables.training import measuring

    compare, queue = base_evaluation.compare_with_base, list(values.values())

    def chosen(*arguments: Any) -> Any:
        evaluation, metrics = compare(*arguments)
        return evaluation, metrics | {OBJECTIVE.metric: queue.pop(0)}

    monkeypatch.setattr(measuring, "compare_with_base", chosen)
