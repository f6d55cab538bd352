"""The criteria of a gate, from the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError

from trainables.config import Constraint
from trainables.errors import Fault, UserError, collecting, did_you_mean
from trainables.metric_keys import FORGETTING_MEAN


def read_criteria(
    max_forgetting: str | None, least: Sequence[str], most: Sequence[str]
) -> list[Constraint]:
    """The criteria, each once.

    Args:
        max_forgetting: of `--max-forgetting`, a bound of `forgetting/mean`.
        least: of `--min`, each `METRIC=NUMBER`.
        most: of `--max`, the same.

    Raises:
        UserError: there is none, or some cannot be read.
    """
    found: list[Constraint] = []
    faults: list[Fault] = []
    if max_forgetting is not None:
        with collecting(faults):
            found.append(_criterion("--max-forgetting", FORGETTING_MEAN, "<=", max_forgetting))
    for option, operator, given in (("--min", ">=", least), ("--max", "<=", most)):
        for text in given:
            metric, _, bound = text.rpartition("=")
            if not metric:
                rule = f"must read METRIC=NUMBER, got {text!r}"
                faults.append(Fault(option, rule, "such as in_domain/acc_mean=0.8"))
                continue
            with collecting(faults):
                found.append(_criterion(option, metric, operator, bound))
    if not (found or faults):
        remedy = "give --max-forgetting 0.02, --min METRIC=NUMBER or --max METRIC=NUMBER"
        faults.append(Fault("gate", "has no criterion", remedy))
    if faults:
        raise UserError(faults)
    return list(dict.fromkeys(found))


def _criterion(option: str, metric: str, operator: str, bound: str) -> Constraint:
    try:
        return Constraint.model_validate({"metric": metric, "operator": operator, "bound": bound})
    except ValidationError as error:
        rule = f"must be a finite number, got {bound!r}"
        raise UserError([Fault(option, rule)]) from error


def check_measured(criteria: Sequence[Constraint], metrics: Mapping[str, float], of: str) -> None:
    """Check that a model has every metric that the criteria bound.

    Args:
        criteria: of `read_criteria`.
        metrics: what it has.
        of: names it, such as `trial 7`.

    Raises:
        UserError: it lacks some.
    """
    known = ", ".join(sorted(metrics))
    faults = [
        Fault(
            _option(criterion),
            f"{of} has no metric {criterion.metric}",
            did_you_mean(criterion.metric, metrics) or f"it has {known}",
        )
        for criterion in criteria
        if criterion.metric not in metrics
    ]
    if faults:
        raise UserError(faults)


def _option(criterion: Constraint) -> Literal["--min", "--max-forgetting", "--max"]:
    if criterion.operator == ">=":
        return "--min"
    return "--max-forgetting" if criterion.metric == FORGETTING_MEAN else "--max"
