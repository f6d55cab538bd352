"""Which trial of a sweep a command is about, and which of its points."""

from __future__ import annotations

import math

from analysis.results.recommendation import numbers_text
from analysis.sweeps import Sweep
from trainables.errors import Fault, UserError
from trainables.records.schema import TrialRecord, TrialStatus


def choose_point(
    sweep: Sweep, number: int | None, strength: float | None, repair: str | None = None
) -> TrialRecord:
    """A trial at a strength that was evaluated, or repaired.

    Args:
        sweep: that of the trial.
        number: of the trial; None takes the recommended one.
        strength: None takes the recommended point of the recommended trial, of any other trial 1.
        repair: None likewise; not with a strength.

    Raises:
        UserError: nothing is recommended, there is no such trial, or it was not evaluated there.
    """
    found = sweep.recommendation
    if number is None and found is None:
        rule = "the sweep recommends none, as no trial is complete with every objective"
        raise UserError([Fault("--trial", rule, complete_trials(sweep))])
    if found and number in (None, found.trial.number):
        if strength is None and repair is None:
            return found.trial
        number = found.trial.number
    record = next((each for each in sweep.trials if each.number == number), None)
    if record is None:
        rule = f"must be one of the sweep's, got {number}"
        raise UserError([Fault("--trial", rule, complete_trials(sweep))])
    if repair is not None:
        return _repaired(record, repair)
    return record if strength is None else _at_strength(record, strength)


def complete_trials(sweep: Sweep) -> str:
    """Such as `complete: trials 3, 5`."""
    complete = [record for record in sweep.trials if record.status is TrialStatus.COMPLETE]
    return f"complete: {numbers_text(complete)}" if complete else "no trial is complete"


def _at_strength(record: TrialRecord, strength: float) -> TrialRecord:
    curve = {point.strength: point for point in record.curve}
    nearest = min(curve, key=lambda known: abs(known - strength))
    if not math.isclose(nearest, strength, rel_tol=1e-9):
        rule = f"trial {record.number} was not evaluated at {strength:g}"
        known = ", ".join(f"{each:g}" for each in curve)
        why = record.config.method.why_not_scaled
        remedy = f"the nearest is {nearest:g}, of {known}"
        raise UserError([Fault("--strength", rule, remedy if why is None else f"{remedy}: {why}")])
    return curve[nearest]


def _repaired(record: TrialRecord, repair: str) -> TrialRecord:
    views = {str(view.repair): view for view in record.repaired}
    if repair not in views:
        rule = f"trial {record.number} was not repaired so, got {repair}"
        remedy = f"it has {', '.join(views)}" if views else "set rewind.repair in the sweep file"
        raise UserError([Fault("--repair", rule, remedy)])
    return views[repair]
