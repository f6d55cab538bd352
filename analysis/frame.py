"""Sweeps as tidy data frames: trials, measurements, tasks and items, including failed trials.

Nothing is parsed from names: task keys are built from the base's record. Units and directions of
the metrics are in `trainables.metric_keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from analysis.results.trial_columns import setting_columns
from analysis.sweeps import Sweep, open_sweeps
from trainables.errors import Fault, UserError
from trainables.records.item_records import pair_items
from trainables.records.schema import ItemScore, TrialRecord, points_of
from trainables.storage.storage import Location

_TRIAL_COLUMNS = ["trial_id", "sweep", "number"]
_FLOATS = ["share", "value", "score", "stderr", "base", "tuned", "chance", "gain", "forgetting"]


def load_trials(sweep_dirs: Location | Sequence[Location]) -> pd.DataFrame:
    """The frame of `trials_frame` of sweeps in these folders, or in one.

    Raises:
        UserError: as `open_sweeps`.
    """
    return trials_frame(open_sweeps(sweep_dirs))


def trials_frame(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """One row per trial, indexed by its id, which is unique across sweeps.

    Its columns are those of results.csv, with the sweep but no best values. Metrics that a trial
    never logged are NaN.
    """
    return points_frame(sweeps, lambda records: records).set_index("trial_id")


def points_frame(
    sweeps: Sequence[Sweep],
    points: Callable[[Sequence[TrialRecord]], Sequence[TrialRecord]] = points_of,
) -> pd.DataFrame:
    """One row per trial, with one for each other strength and repair that was evaluated.

    The columns are those of `trials_frame`. `points`: which rows the trials have.
    """
    rows = [
        {"sweep": sweep.title, **setting_columns(sweep.ledger.located(record)), **record.metrics}
        for sweep in sweeps
        for record in points(sweep.trials)
    ]
    return pd.DataFrame(rows)


def _trials(sweeps: Iterable[Sweep]) -> Iterator[tuple[Sweep, TrialRecord, tuple[str, str, int]]]:
    """Every trial with its sweep, and its values of the columns `_TRIAL_COLUMNS`."""
    for sweep in sweeps:
        for record in sweep.trials:
            yield sweep, record, (record.config.trial_id, sweep.title, record.number)


def _frame(rows: Sequence[tuple[Any, ...]], columns: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*_TRIAL_COLUMNS, *columns])
    return frame.astype(dict.fromkeys(frame.columns.intersection(_FLOATS), float))


def measurements_frame(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """Every measured value: trial_id, sweep, number, step, share, metric, value.

    `share` is the completed fraction of the training, in [0, 1]; NaN if its length is unknown.
    """
    rows = [
        (*own, m.step, m.step / m.total_steps if m.total_steps else None, metric, value)
        for sweep, record, own in _trials(sweeps)
        for m in sweep.histories[record.number]
        for metric, value in m.metrics.items()
    ]
    return _frame(rows, ["step", "share", "metric", "value"])


def tasks_frame(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """Every trial's newest score on every task.

    Columns: trial_id, sweep, number, role, task, metric (the harness's), score, stderr, base,
    chance, gain (score - base) and forgetting (base - score; retention tasks only). All values
    are fractions.
    """
    rows = []
    for sweep, record, own in _trials(sweeps):
        for label, task, key, score in sweep.base.scored(record):
            scores = (score, record.metric(f"{key}_stderr"), task.value, task.chance)
            lost = task.value - score if task.role == "retention" else None
            rows.append((*own, task.role, label, task.metric, *scores, score - task.value, lost))
    columns = ["role", "task", "metric", "score", "stderr", "base", "chance", "gain", "forgetting"]
    return _frame(rows, columns)


def items_frame(sweeps: Sequence[Sweep], numbers: Iterable[int] | None = None) -> pd.DataFrame:
    """Every document's score by the base and by each trial whose evaluation completed.

    Columns: trial_id, sweep, number, role, task, doc_hash, filter, base, tuned. A row takes about
    200 bytes: of many large trials read some at a time, by their numbers.

    Raises:
        UserError: a sweep's folder lacks the base's items.
    """
    wanted = None if numbers is None else set(numbers)
    rows = [
        (*own, sweep.base.scores[task].role, task, b.doc_hash, b.filter, b.score, tuned.score)
        for sweep in sweeps
        for base_items in [_base_items(sweep)]
        for _, record, own in _trials([sweep])
        if wanted is None or record.number in wanted
        for task, pairs in pair_items(base_items, sweep.ledger.items(record)).items()
        for b, tuned in ((pair.base, pair.tuned) for pair in pairs)
    ]
    columns = ["role", "task", "doc_hash", "filter", "base", "tuned"]
    return _frame(rows, columns)


def _base_items(sweep: Sweep) -> list[ItemScore]:
    ledger = sweep.ledger
    try:
        return ledger.base_items()
    except FileNotFoundError as error:  # the bulk of a sweep, so they may have been left out
        rule = f"lacks the items of the base: {ledger.folder.place(ledger.folder.base_items)}"
        remedy = "copy that file, too, from where the sweep ran"
        raise UserError([Fault("SWEEP_DIR", rule, remedy)]) from error
