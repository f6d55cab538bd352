"""The paper's table: recipe and capacity by task, against the base and a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.item_comparison import Comparison
from analysis.results.formatting import NAMES, SHORT_NAMES, alteration, points, rate
from analysis.results.repeats import diverged
from analysis.shown_sweeps import Group, Results
from analysis.stats.intervals import Interval
from analysis.stats.significance import holm
from analysis.sweeps import bases
from trainables import metric_keys
from trainables.config import Role
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, OOD_ACC, VALIDATION_LOSS
from trainables.records.schema import Repair

UNLIKE_BASE, UNLIKE_REFERENCE = "*", "†"
_SUMMARIES: tuple[tuple[str, Role, str], ...] = (
    (SHORT_NAMES[IN_DOMAIN_ACC], "in_domain", IN_DOMAIN_ACC),
    (SHORT_NAMES[OOD_ACC], "ood", OOD_ACC),
    (SHORT_NAMES[FORGETTING_MEAN], "retention", FORGETTING_MEAN),
)
LOSS = NAMES[VALIDATION_LOSS]

Difference = Comparison | float | None


@dataclass(frozen=True)
class Cell:
    """A value, and how it differs from the base's and from the reference's.

    Attributes:
        value: a fraction, or a loss.
        to_base, to_reference: the row's value minus the other's, of a loss the number alone; None
            if there is nothing to compare with. The p-values, corrected for having picked the
            trials, are adjusted over all comparisons with the base, and with the reference (Holm).
        seeds: over complete repeats with other seeds, without the trial itself; None for fewer
            than two.
        only_repeat: the value of the one complete repeat where there is no other.
        repeats: number of repeats that completed or diverged.
        diverged: how many of them diverged.
    """

    value: float
    to_base: Difference = None
    to_reference: Difference = None
    seeds: Interval | None = None
    only_repeat: float | None = None
    repeats: int = 0
    diverged: int = 0

    @property
    def marks(self) -> str:
        """`*` if unlike the base, `†` if unlike the reference, both as `runs_differ`."""
        found = ((UNLIKE_BASE, self.to_base), (UNLIKE_REFERENCE, self.to_reference))
        return "".join(m for m, d in found if isinstance(d, Comparison) and d.runs_differ)

    @property
    def differences(self) -> list[str]:
        """From the base and from the reference, as printed: in points, of a loss in nats."""
        return [_difference_text(difference) for difference in (self.to_base, self.to_reference)]


@dataclass(frozen=True)
class Row:
    """The base, or the best trade-off of one sweep, recipe and capacity.

    Attributes:
        trial: its number; None for the base.
        trial_id: unique across sweeps.
        strength, repair: at which point of the trial.
        trials: how many it was picked from, each strength of a trial one.
        is_feasible: whether it keeps every constraint; the base is not asked to.
    """

    label: str
    cells: dict[str, Cell]
    trial: int | None = None
    trial_id: str | None = None
    strength: float = 1.0
    repair: Repair | None = None
    trials: int = 0
    learning_rate: float | None = None
    is_feasible: bool = True

    @property
    def name(self) -> str:
        """The label, and a word if a constraint is broken."""
        return self.label if self.is_feasible else f"{self.label} (breaks a constraint)"


@dataclass(frozen=True)
class PaperTable:
    """Rows by columns: up to three summaries, then every task, each with its role.

    Attributes:
        reference: the recipe that all are compared with, see `Results.reference`.
    """

    rows: tuple[Row, ...]
    roles: dict[str, Role]
    reference: str

    def frame(self) -> pd.DataFrame:
        """All numbers in tidy form: one row per cell."""
        return pd.DataFrame(
            [
                {
                    "row": row.label,
                    "trial": row.trial,
                    "trial_id": row.trial_id,
                    "strength": None if row.trial is None else row.strength,
                    "repair": row.repair,
                    "trials": row.trials,
                    "feasible": row.is_feasible,
                    "learning_rate": row.learning_rate,
                    "column": column,
                    "role": self.roles[column],
                    "value": cell.value,
                    **_columns_of_difference("to_base", cell.to_base),
                    **_columns_of_difference("to_reference", cell.to_reference),
                    **_columns_of_interval("seeds", cell.seeds),
                    "seeds": cell.seeds.estimate if cell.seeds else cell.only_repeat,
                    "seeds_n": cell.repeats - cell.diverged,
                    "seeds_diverged": cell.diverged,
                }
                for row in self.rows
                for column, cell in row.cells.items()
            ]
        )

    @property
    def summaries(self) -> list[str]:
        """Columns that summarise a whole role."""
        return [name for name in (LOSS, *(name for name, *_ in _SUMMARIES)) if name in self.roles]

    @property
    def tasks(self) -> list[str]:
        """Columns of single tasks."""
        return [name for name in self.roles if name not in self.summaries]

    def texts(self) -> list[list[str]]:
        """Header and rows as printed."""
        header = ["", "trial", "lr"]
        for name in self.summaries:
            header += [name, f"{name} Δ base", f"{name} Δ {self.reference}"]
        rows = [
            summary_texts(row, self.summaries)
            + [cell_text(row.cells.get(name)) for name in self.tasks]
            for row in self.rows
        ]
        return [[*header, *self.tasks], *rows]


def summary_texts(row: Row, summaries: Sequence[str]) -> list[str]:
    """A row without its tasks: its labels, then each summary and its differences."""
    texts = [
        row.name,
        "" if row.trial is None else f"{row.trial}{alteration(row)} (of {row.trials})",
        "" if row.learning_rate is None else rate(row.learning_rate),
    ]
    for name in summaries:
        cell = row.cells.get(name)
        texts += [cell_text(cell), *(cell.differences if cell else ("", ""))]
    return texts


def cell_text(cell: Cell | None) -> str:
    """Such as `0.839*`; with repeats `0.839* (0.812 ± 0.012, 2 of 5 diverged)`.

    Uneven intervals are written as `(0.912, 0.771 to 1.000)`, one repeat as `(0.812, n = 1)`.
    """
    if cell is None:
        return ""
    parts = []
    if cell.seeds is not None:
        mean, low, high = cell.seeds.estimate, cell.seeds.low, cell.seeds.high
        is_even = math.isclose(high - mean, mean - low, abs_tol=1e-9)
        spread = f" ± {high - mean:.3f}" if is_even else f", {low:.3f} to {high:.3f}"
        parts.append(f"{mean:.3f}{spread}")
    elif cell.only_repeat is not None:
        parts.append(f"{cell.only_repeat:.3f}, n = 1")
    if cell.diverged:
        parts.append(f"{cell.diverged} of {cell.repeats} diverged")
    own = f"{cell.value:.3f}{cell.marks}"
    return f"{own} ({', '.join(parts)})" if parts else own


def _difference_text(difference: Difference) -> str:
    if isinstance(difference, Comparison):
        return points(difference.difference.estimate)
    return "" if difference is None else f"{difference:+z.3f}"


def _columns_of_difference(name: str, difference: Difference) -> dict[str, object]:
    if isinstance(difference, Comparison):
        interval = _columns_of_interval(name, difference.difference)
        return {**interval, f"{name}_p": difference.p_value}
    return {**_columns_of_interval(name, None), name: difference, f"{name}_p": None}


def _columns_of_interval(name: str, interval: Interval | None) -> dict[str, object]:
    return {
        name: interval.estimate if interval else None,
        f"{name}_low": interval.low if interval else None,
        f"{name}_high": interval.high if interval else None,
    }


def paper_table(results: Results) -> PaperTable:
    """Compare the best trade-off of each recipe and capacity with the base and the reference."""
    columns = _table_columns(results)
    rows = _base_rows(results, columns)
    rows += [_row(results, group, columns) for group in results.groups]
    roles = {name: role for name, (role, *_) in columns.items()}
    reference = results.reference(results.sweeps[0])
    return PaperTable(tuple(_adjusted(rows)), roles, reference.recipe if reference else "reference")


Columns = dict[str, tuple[Role, str, list[str]]]  # column to its role, metric key and tasks


def _table_columns(results: Results) -> Columns:
    columns: Columns = {}
    if results.gain == VALIDATION_LOSS:
        columns[LOSS] = "in_domain", VALIDATION_LOSS, []
    for name, role, metric in _SUMMARIES:
        tasks = list(results.tasks(role))
        if tasks:
            columns[name] = role, metric, tasks
    for role in ("in_domain", "ood", "retention"):
        for label, task in results.tasks(role).items():
            name = f"{label} (task)" if label in columns else label
            columns[name] = role, metric_keys.task_score(role, label, task.metric), [label]
    return columns


def _base_rows(results: Results, columns: Columns) -> list[Row]:
    keys = {n: key for n, (_, key, _) in columns.items() if key in results.base.metrics}
    return [
        Row(name, dict(zip(keys, map(Cell, values), strict=True)))
        for values, name in bases(results.sweeps, *keys.values()).items()
    ]


def _row(results: Results, group: Group, columns: Columns) -> Row:
    trial = group.best
    return Row(
        label=group.label,
        cells={
            name: _cell(results, group, metric, tasks)
            for name, (_, metric, tasks) in columns.items()
            if trial.metric(metric) is not None
        },
        trial=trial.number,
        trial_id=trial.config.trial_id,
        strength=trial.strength,
        repair=trial.repair,
        trials=group.picked_from,
        learning_rate=trial.config.learning_rate,
        is_feasible=results.keeps_constraints(trial),
    )


def _cell(results: Results, group: Group, metric: str, tasks: Sequence[str]) -> Cell:
    """A metric that the group's best has, compared with the base's and the reference's."""
    trial, reference = group.best, results.reference(group.sweep)
    has_other = reference is not None and reference is not group
    repeats, values = results.repeats(trial), results.repeated(trial, metric)
    return Cell(
        value=trial.metric(metric) or 0.0,
        to_base=_difference(results, group, None, metric, tasks),
        to_reference=_difference(results, group, reference, metric, tasks) if has_other else None,
        seeds=results.over_seeds(trial, metric),
        only_repeat=values[0] if len(values) == 1 else None,
        repeats=len(repeats),
        diverged=diverged(repeats),
    )


def _difference(
    results: Results, group: Group, reference: Group | None, metric: str, tasks: Sequence[str]
) -> Difference:
    """The best's value minus the reference's, or minus the base's if that is None."""
    trial, other = group.best, reference.best if reference else None
    if metric == VALIDATION_LOSS:  # the base's, on the rows that the trial's sweep held out
        of_other = other.metric(metric) if other else results.sweep(trial).base.metrics.get(metric)
        return None if of_other is None else (trial.metric(metric) or 0.0) - of_other
    picked_from = group.picked_from * (reference.picked_from if reference else 1)
    found = results.items.compare(trial, other, tasks, picked_from)
    # Base minus tuned, it falls as accuracy rises.
    return found.negated() if found and metric == FORGETTING_MEAN else found


def _adjusted(rows: Sequence[Row]) -> list[Row]:
    """Adjust p-values over all comparisons with the base, and over all with the reference."""
    cells = {(i, name): cell for i, row in enumerate(rows) for name, cell in row.cells.items()}
    for other in ("to_base", "to_reference"):
        differences = {place: getattr(cell, other) for place, cell in cells.items()}
        tested = {at: found for at, found in differences.items() if isinstance(found, Comparison)}
        adjusted = holm([found.p_value for found in tested.values()])
        for (place, found), p_value in zip(tested.items(), adjusted, strict=True):
            adjusted_one: dict[str, Any] = {other: replace(found, p_value=p_value)}
            cells[place] = replace(cells[place], **adjusted_one)
    return [
        replace(row, cells={name: cells[i, name] for name in row.cells})
        for i, row in enumerate(rows)
    ]
