"""A trial of a sweep, to be judged by its records."""

from __future__ import annotations

from analysis.chosen_point import choose_point, complete_trials
from analysis.gate.subject import Subject
from analysis.results.formatting import setting
from analysis.results.recommendation import numbers_text
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.errors import Fault, UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import ItemScore, TrialRecord, TrialStatus
from trainables.storage.storage import Location


def read_trial(sweep_dir: Location, number: int | None, strength: float | None) -> Subject:
    """The scores and items of a complete trial at one strength.

    Args:
        sweep_dir: folder of a sweep, or its address.
        number: of the trial; None takes the recommended one.
        strength: one that was evaluated; None takes the recommended one of the recommended trial,
            of any other trial 1.

    Raises:
        UserError: there is no such sweep, trial or strength, the trial is not complete, or its
            items or the base's are missing.
    """
    [sweep] = open_sweeps([sweep_dir])
    results = Results([sweep])
    record = choose_point(sweep, number, strength)
    if record.status is not TrialStatus.COMPLETE:
        rule = f"must be a complete trial's, trial {record.number} is {record.status.in_words}"
        raise UserError([Fault("--trial", rule, complete_trials(sweep))])
    items, base_items = _items(sweep.ledger, record)
    # A repeat with another seed was not picked by its scores.
    picked_from = len(results.candidates) if record.confirms is None else 1
    about = [setting(record)]
    found = results.recommendation
    if found and found.trial.point_id == record.point_id:
        about.append(found.word if found.feasible else f"{found.word}, {found.reason}")
    if picked_from > 1:
        about.append(f"its intervals hold for all {picked_from} of the search at once")
    return Subject(
        f"{numbers_text([record])} of {sweep.name}",
        "; ".join(about),
        record.metrics,
        sweep.base.scores,
        items,
        base_items,
        picked_from,
    )


def _items(ledger: Ledger, record: TrialRecord) -> tuple[list[ItemScore], list[ItemScore]]:
    """The trial's and the base's; without them nothing says what is chance."""
    try:
        items, base_items = ledger.items(record), ledger.base_items()
    except FileNotFoundError:
        items, base_items = [], []
    if not (items and base_items):
        rule = f"lacks the items of trial {record.number} or of the base: {ledger.folder.location}"
        remedy = "copy the sweep's folder with its base/items.jsonl and the trial's attempt_*/items"
        raise UserError([Fault("SWEEP_DIR", rule, remedy)])
    return items, base_items
