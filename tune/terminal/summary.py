"""The summary at a sweep's end: front, recommended trial, failures, results and next steps."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.results.confirmation import missing_repeats, repeats_to_begin
from analysis.results.formatting import (
    ABSENT,
    SHORT_NAMES,
    STATUS,
    by_reason,
    count_statuses,
    count_trials,
    goal_metrics,
    goals_in_words,
    metric_text,
    rate,
    score_metrics,
    setting,
)
from analysis.results.pareto import is_no_worse, objective_losses, pareto_front, violation
from analysis.results.recommendation import Recommendation, numbers_text, recommend, refuted
from analysis.results.repeats import judged_by_repeats
from trainables.inspection.inspection_records import InspectionFolder
from trainables.records.ledger import Ledger
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import FAILURES, TrialRecord
from trainables.storage.storage import Location, is_address
from tune.config.sweep_config import SweepConfig
from tune.folder.tables import repeated

_MOST_REASONS = 8
_MOST_ON_FRONT = 20
_GAP = 2  # between columns


def print_summary(
    console: Console,
    config: SweepConfig,
    base: Mapping[str, float],
    records: Sequence[TrialRecord],
    folder: Location,
    hints: list[str],
) -> None:
    """Print what the sweep found, what failed, where everything is and what to run next.

    `base` has the untouched model's metrics.
    """
    recommendation = recommend(config, records)
    weights = _weights(recommendation, folder)
    commands = _commands(recommendation, weights, folder) if records else []
    parts = chain(
        _counts(config, records),
        _front(config, records, console.width),
        _recommended(config, base, records, recommendation),
        _failures(records),
        _places(recommendation, weights, records, folder),
        [Text("\nNext:", "bold")] if commands or hints else [],
        (Text(f"  {line}") for line in [*commands, *hints]),
    )
    for part in parts:  # each line whole, however long, so that commands and paths can be copied
        console.print(part, soft_wrap=isinstance(part, Text))


def _counts(config: SweepConfig, records: Sequence[TrialRecord]) -> Iterator[Text]:
    counted = f"{count_trials(records)}: {count_statuses(records)}"
    yield Text(f"\n{config.name}: {counted if records else 'no trials'}", "bold")


def _front(
    config: SweepConfig, records: Sequence[TrialRecord], width: int
) -> Iterator[Text | Table]:
    front = pareto_front(config, records)
    if not front:
        return
    title = "Pareto front" if len(config.objectives) > 1 else "Best"
    yield Text(f"\n{title} ({goals_in_words(config)}):", "bold")
    # Metrics that no trial of the front has, such as OOD without OOD tasks, get no column.
    measured = {key for record in front for key in record.metrics}
    judged_by = dict.fromkeys([*goal_metrics(config), *score_metrics(measured)])
    keys = [key for key in judged_by if key in measured]
    first = config.objectives[0]
    front.sort(key=lambda record: first.loss(record.metric(first.metric) or 0.0))
    columns = _columns(front[:_MOST_ON_FRONT], keys)
    # All on the front keep the constraints, so their columns go first in a narrow terminal.
    needed = {*(aim.metric for aim in config.objectives), *score_metrics(measured)}
    spare = [SHORT_NAMES.get(key, key) for key in keys if key not in needed]
    left_out = []
    while spare and _width(columns) > width:
        left_out.append(spare.pop())
        del columns[left_out[-1]]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for title in columns:
        table.add_column(Text(title), justify="right", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    yield table
    if left_out:
        yield Text(f"too wide to show: {', '.join(reversed(left_out))}, see results.csv")
    if len(front) > _MOST_ON_FRONT:
        yield Text(f"and {len(front) - _MOST_ON_FRONT} more, see results.csv")
    ids = {record.point_id for record in front}
    judged = [r for r in judged_by_repeats(records, config.confirm) if r.point_id in ids]
    if text := refuted(config, judged, numbers_text):
        yield Text(f"each by its own run; {text}")


def _columns(records: Sequence[TrialRecord], keys: Sequence[str]) -> dict[str, list[str]]:
    """Cells by title, from top to bottom."""
    configs = [record.config for record in records]
    return {
        "trial": [str(record.number) for record in records],
        **_strengths(records),
        "recipe": [own.recipe for own in configs],
        "capacity": [str(own.capacity or ABSENT) for own in configs],
        "lr": [rate(own.learning_rate) for own in configs],
        **{
            SHORT_NAMES.get(key, key): [metric_text(key, record.metric(key)) for record in records]
            for key in keys
        },
    }


def _strengths(records: Sequence[TrialRecord]) -> dict[str, list[str]]:
    """A column of what was made of each trial; none if all are as training left them."""
    if not any(record.is_altered for record in records):
        return {}
    names = {None: "", "no_intruders": "no intruders ", "seed_mean": "seed mean "}
    return {"strength": [f"{names[record.repair]}{record.strength:g}" for record in records]}


def _width(columns: dict[str, list[str]]) -> int:
    widest = (max(map(len, [title, *cells])) for title, cells in columns.items())
    return sum(widest) + _GAP * (len(columns) - 1)


def _recommended(
    config: SweepConfig,
    base: Mapping[str, float],
    records: Sequence[TrialRecord],
    recommendation: Recommendation | None,
) -> Iterator[Text]:
    if recommendation is None:
        yield Text("\nNo trial to recommend: none is complete with every objective.", "bold")
        return
    trial, found = recommendation.trial, recommendation.word.capitalize()
    style = "bold green" if recommendation.feasible else "bold yellow"
    yield Text(f"\n{found}: {numbers_text([trial])} ({setting(trial)})", style)
    missing = missing_repeats(records, repeats_to_begin(config, records))
    yield Text(f"  {recommendation.reason}{missing}")
    repeated_as = {r.point_id: r for r in judged_by_repeats(records, config.confirm)}
    yield from _beside_base(config, base, repeated_as.get(trial.point_id, trial))


def _beside_base(
    config: SweepConfig, base: Mapping[str, float], trial: TrialRecord
) -> Iterator[Text]:
    """The base's values of the objectives, and whether the trial is better in any, or a bound."""
    aims = [aim for aim in config.objectives if aim.metric in base]
    text = ", ".join(f"{aim.metric} {metric_text(aim.metric, base[aim.metric])}" for aim in aims)
    if not text:
        return
    base_losses = [aim.loss(base[aim.metric]) for aim in aims]
    trial_losses = objective_losses(config, trial)
    keeps_as_much = all(
        aim.metric in base and aim.violation(base[aim.metric]) <= max(violation(aim, trial), 0)
        for aim in config.constraints
    )
    is_complete = len(base_losses) == len(trial_losses)
    if is_worthless := keeps_as_much and is_complete and is_no_worse(base_losses, trial_losses):
        text += ": no worse in any objective, so this trial gains nothing"
    yield Text(f"  The base itself has {text}.", "yellow" if is_worthless else "")


def _failures(records: Sequence[TrialRecord]) -> Iterator[Text]:
    found = by_reason(record for record in records if record.status in FAILURES)
    if not found:
        return
    yield Text("\nNot trained to the end:", "bold")
    for status, reason, failed in found[:_MOST_REASONS]:
        line = f"  {len(failed)} x {status.in_words}: {reason} ({numbers_text(failed)})"
        yield Text(line, STATUS[status].style)
    if len(found) > _MOST_REASONS:
        yield Text(f"  and {len(found) - _MOST_REASONS} more reasons, see results.csv")


def _weights(recommendation: Recommendation | None, root: Location) -> str | None:
    """Where the recommended trial's weights are, also if the sweep's folder was moved."""
    if recommendation is None:
        return None
    trial = recommendation.trial
    return (Ledger(root).located(trial) if isinstance(root, Path) else trial).weights_dir


def _places(
    recommendation: Recommendation | None,
    weights: str | None,
    records: Sequence[TrialRecord],
    root: Location,
) -> Iterator[Text]:
    folder = SweepFolder(root)
    yield Text("\nResults:", "bold")
    yield Text(f"  everything   {root}")
    yield Text(f"  all trials   {folder.place(folder.results_csv)}")
    if repeated(records):
        yield Text(f"  over seeds   {folder.place(folder.confirmed_csv)}")
    if (inspection := InspectionFolder(folder.root).root).is_dir():
        yield Text(f"  inspection   {inspection}")
    if recommendation is not None:
        written = recommendation.trial.weights_dir
        why = f"gone, written to {written}" if written else "not kept (train.save_weights is false)"
        at = " (at strength 1; `export` writes them as recommended)"
        of = at if recommendation.trial.is_altered else ""
        yield Text(f"  weights      {weights or why}{of if weights else ''}")


def _commands(
    recommendation: Recommendation | None, weights: str | None, root: Location
) -> list[str]:
    """Commands that show the sweep and export its winner."""
    sweep = shlex.quote(str(root))
    lines = [f"python -m analysis report {sweep}   # all of it on one page"]
    if recommendation and weights and not is_address(weights):
        command = f"python -m analysis export {sweep} --to winner"
        if recommendation.trial.config.model.trust_remote_code:
            command += " --trust-remote-code"
        lines.append(f"{command}   # the {recommendation.word} trial")
    return lines
