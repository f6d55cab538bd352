"""What a sweep found: its Pareto front, the recommended trial, failures, results and next steps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainables.files.storage import Location, is_address
from trainables.inside.records import InsideFolder
from trainables.results.folder import SweepFolder
from trainables.results.pareto import pareto_front
from trainables.results.recommendation import Recommendation, numbers_text, recommend
from trainables.results.records import FAILURES, TrialRecord
from trainables.results.wording import (
    ABSENT,
    SCORES,
    SHORT_NAMES,
    STATUS,
    by_reason,
    count_statuses,
    goals_in_words,
    metric_text,
    rate,
    setting,
    status_in_full,
)
from tune.config.sweep_config import SweepConfig
from tune.folder.tables import repeated

_MOST_REASONS = 8
_MOST_ON_FRONT = 20


def print_summary(
    console: Console,
    config: SweepConfig,
    records: Sequence[TrialRecord],
    folder: Location,
    hints: list[str],
) -> None:
    """Print what the sweep found, what failed, where everything is and what to run next."""
    counted = f": {count_statuses(records)}" if records else ""
    count = {0: "no trials", 1: "1 trial"}.get(len(records), f"{len(records)} trials")
    _say(console, f"\n{config.name}: {count}{counted}", "bold")
    recommendation = recommend(config, records)
    _print_front(console, config, records)
    _print_recommendation(console, recommendation)
    _print_failures(console, records)
    _print_places(console, recommendation, records, folder)
    commands = _commands(recommendation, folder) if records else []
    _print_next(console, recommendation, [*commands, *hints])


def _print_front(console: Console, config: SweepConfig, records: Sequence[TrialRecord]) -> None:
    front = pareto_front(config, records)
    if not front:
        return
    title = "Pareto front" if len(config.objectives) > 1 else "Best"
    _say(console, f"\n{title} ({goals_in_words(config)}):", "bold")
    named = [objective.metric for objective in config.objectives]
    named += [constraint.metric for constraint in config.constraints]
    # Metrics that no trial of the front has, such as OOD without OOD tasks, get no column.
    keys = [
        k for k in dict.fromkeys([*named, *SCORES]) if any(r.metric(k) is not None for r in front)
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("trial", "rank", "alpha", "lr", *(SHORT_NAMES.get(key, key) for key in keys)):
        table.add_column(column, justify="right", overflow="fold")
    for record in _sorted_by_first(config, front)[:_MOST_ON_FRONT]:
        lora = record.config.lora
        table.add_row(
            str(record.number),
            str(lora.rank) if lora else record.config.method,
            f"{lora.alpha:g}" if lora else ABSENT,
            rate(record.config.learning_rate),
            *(metric_text(key, record.metric(key)) for key in keys),
        )
    console.print(table)
    if len(front) > _MOST_ON_FRONT:
        _say(console, f"and {len(front) - _MOST_ON_FRONT} more, see results.csv")


def _sorted_by_first(config: SweepConfig, front: list[TrialRecord]) -> list[TrialRecord]:
    """The front in walking order: from best to worst in the first objective."""
    objective = config.objectives[0]
    return sorted(front, key=lambda record: objective.loss(record.metric(objective.metric) or 0.0))


def _print_recommendation(console: Console, recommendation: Recommendation | None) -> None:
    if recommendation is None:
        _say(console, "\nNo trial to recommend: none is complete with every objective.", "bold")
        return
    trial, found = recommendation.trial, recommendation.word.capitalize()
    style = "bold green" if recommendation.feasible else "bold yellow"
    _say(console, f"\n{found}: trial {trial.number} ({setting(trial)})", style)
    _say(console, f"  {recommendation.reason}")


def _print_failures(console: Console, records: Sequence[TrialRecord]) -> None:
    found = by_reason(record for record in records if record.status in FAILURES)
    if not found:
        return
    _say(console, "\nNot trained to the end:", "bold")
    for status, reason, failed in found[:_MOST_REASONS]:
        line = f"  {len(failed)} x {status_in_full(status)}: {reason} ({numbers_text(failed)})"
        _say(console, line, STATUS[status].style)
    if len(found) > _MOST_REASONS:
        _say(console, f"  and {len(found) - _MOST_REASONS} more reasons, see results.csv")


def _print_places(
    console: Console,
    recommendation: Recommendation | None,
    records: Sequence[TrialRecord],
    root: Location,
) -> None:
    folder = SweepFolder(root)
    _say(console, "\nResults:", "bold")
    _say(console, f"  everything   {root}")
    _say(console, f"  all trials   {folder.place(folder.results_csv)}")
    if repeated(records):
        _say(console, f"  over seeds   {folder.place(folder.confirmed_csv)}")
    if (inside := InsideFolder(folder.root).root).is_dir():
        _say(console, f"  inside       {inside}")
    if recommendation is not None:
        kept = recommendation.trial.weights_dir or "not kept (train.save_weights is false)"
        _say(console, f"  weights      {kept}")


def _commands(recommendation: Recommendation | None, root: Location) -> list[str]:
    """What shows the sweep, and what takes its winner."""
    sweep = shlex.quote(str(root))
    lines = [f"python -m analysis report {sweep}   # all of it on one page"]
    if recommendation and recommendation.trial.weights_dir and not is_address(str(root)):
        command = f"python -m analysis export {sweep} --to winner"
        lines.append(f"{command}   # the {recommendation.word} trial")
    return lines


def _print_next(console: Console, recommendation: Recommendation | None, hints: list[str]) -> None:
    weights = recommendation.trial.weights_dir if recommendation else None
    lines = list(hints)
    if recommendation is not None and weights is not None:
        package, name = (
            ("peft", "AutoPeftModelForCausalLM")
            if recommendation.trial.config.method == "lora"
            else ("transformers", "AutoModelForCausalLM")
        )
        if is_address(weights):
            lines.append(f"copy {weights} to this machine, to a folder weights")
            weights = "weights"
        lines.append(f"from {package} import {name}; model = {name}.from_pretrained({weights!r})")
    if lines:
        _say(console, "\nNext:", "bold")
    for line in lines:
        _say(console, f"  {line}")


def _say(console: Console, line: str, style: str = "") -> None:
    """Print a single line however long, so that commands and paths can be copied."""
    console.print(Text(line, style), soft_wrap=True, highlight=False)
