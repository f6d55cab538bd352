"""What to type after a sweep: to continue or to run again what failed."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from analysis.results.recommendation import numbers_text
from trainables.metric_keys import GPU_HOURS
from tune.config.sweep_config import SweepConfig
from tune.search.space import planned_trials
from tune.sweep import SweepOutcome


def to_go_on(options: argparse.Namespace, config: SweepConfig, outcome: SweepOutcome) -> list[str]:
    """The command that goes on with the sweep, however it ended; none once a grid is done."""
    same = _same_trials(options)
    more = f"with this more trials{', and the winners repeated' if config.confirm else ''}"
    if outcome.interrupted:
        again = ["--retry-failed"] if options.retry_failed else []
        return [_line(options, [*again, *same], "goes on")]
    if outcome.cut_short_by == "gpu_hours":
        held = sum(record.metric(GPU_HOURS) or 0.0 for record in outcome.records)
        twice = f"budget.gpu_hours={2 * max(config.budget.gpu_hours or 0.0, held):g}"
        return [_line(options, [*same, "--set", twice], f"budget.gpu_hours is spent; {more}")]
    if outcome.cut_short_by == "hours":
        return [_line(options, same, f"budget.hours is spent; {more}")]
    # An earlier start may have had a larger budget.
    searched = sum(record.confirms is None for record in outcome.records)
    most = max(planned_trials(config), searched)
    larger = config.budget.model_copy(update={"trials": 2 * most})
    planned = planned_trials(config.model_copy(update={"budget": larger}))
    if planned <= most:
        return []
    return [_line(options, ["--num-trials", str(planned)], "more trials")]


def to_retry(options: argparse.Namespace, outcome: SweepOutcome) -> list[str]:
    """The command that runs again what failed, unless another goes on or has to do so first."""
    if not outcome.failed or outcome.interrupted:
        return []
    again = ["--retry-failed", *_same_trials(options)]
    return [_line(options, again, f"{numbers_text(outcome.failed)} again")]


def _same_trials(options: argparse.Namespace) -> list[str]:
    return [] if options.num_trials is None else ["--num-trials", str(options.num_trials)]


def _line(options: argparse.Namespace, also: list[str], why: str) -> str:
    """The command as it was typed, with `also` for what differs between its starts."""
    command = ["python", "tune/run.py", options.sweep]
    if options.output_dir != Path("sweeps"):
        command += ["--output-dir", str(options.output_dir)]
    for override in options.overrides:
        command += ["--set", override]
    if options.address:
        command += ["--address", options.address]
    if options.max_gpus is not None:
        command += ["--max-gpus", str(options.max_gpus)]
    return f"{shlex.join([*command, *also])}   # {why}"
