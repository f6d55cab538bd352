"""What to type after a sweep: to go on, to try again what failed, to compare its runs in W&B."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from trainables.files.storage import Location
from trainables.metric_keys import GPU_HOURS
from trainables.results.recommendation import numbers_text
from tune.config.sweep_config import SweepConfig
from tune.search.space import planned_trials
from tune.sweep import SweepOutcome
from tune.tracking.wandb_listener import WandbListener
from tune.tracking.wandb_views import have_views_made, views_command


def to_go_on(options: argparse.Namespace, config: SweepConfig, outcome: SweepOutcome) -> list[str]:
    """The command that goes on with the sweep, however it ended; none once a grid is done."""
    spent = None if outcome.interrupted else outcome.cut_short_by
    if not outcome.interrupted and spent is None:
        return _more_trials(options, config, outcome)
    command = _command(options)
    if (options.retry_failed and outcome.interrupted) or spent == "failures":
        command.append("--retry-failed")
    command += _same_trials(options)
    if spent == "gpu_hours" and config.budget.gpu_hours:
        held = sum(record.metric(GPU_HOURS) or 0.0 for record in outcome.records)
        command += ["--set", f"budget.gpu_hours={2 * max(config.budget.gpu_hours, held):g}"]
    idle = outcome.idle_hours if spent == "hours" else None
    if idle is not None:
        command += ["--set", f"budget.hours={2 * max(config.budget.hours or 0.0, idle):.2g}"]
    if outcome.interrupted:
        why = "goes on"
    elif spent == "failures":
        why = "the last trials failed alike, before their first measurement; mend that first"
    else:
        left = "" if config.confirm is None else ", and the winners repeated"
        when = " before any trial" if idle is not None else ""
        why = f"budget.{spent} is spent{when}; with this more trials{left}"
    return [f"{shlex.join(command)}   # {why}"]


def _more_trials(
    options: argparse.Namespace, config: SweepConfig, outcome: SweepOutcome
) -> list[str]:
    # An earlier start may have had a larger budget.
    searched = sum(record.confirms is None for record in outcome.records)
    most = max(planned_trials(config), searched)
    twice = config.budget.model_copy(update={"trials": 2 * most})
    more = planned_trials(config.model_copy(update={"budget": twice}))
    if more <= most:
        return []
    return [f"{shlex.join([*_command(options), '--num-trials', str(more)])}   # more trials"]


def to_retry(options: argparse.Namespace, outcome: SweepOutcome) -> list[str]:
    """The command that runs again what failed, unless another goes on or has to do so first."""
    if not outcome.failed or outcome.interrupted or outcome.cut_short_by == "failures":
        return []
    command = [*_command(options), "--retry-failed", *_same_trials(options)]
    return [f"{shlex.join(command)}   # {numbers_text(outcome.failed)} again"]


def in_wandb(listener: WandbListener, location: Location, interrupted: bool) -> list[str]:
    """Where to compare the runs, or how to upload them; an interrupt does not wait for views."""
    upload = listener.upload_hints()
    if listener.is_online() and not interrupted:
        return [*upload, *have_views_made(location)]
    return [*upload, views_command(location)] if upload or listener.is_online() else []


def _same_trials(options: argparse.Namespace) -> list[str]:
    return [] if options.num_trials is None else ["--num-trials", str(options.num_trials)]


def _command(options: argparse.Namespace) -> list[str]:
    """The command as it was typed, but for what differs between its starts."""
    command = ["python", "tune/run.py", options.sweep]
    if options.output_dir != Path("sweeps"):
        command += ["--output-dir", str(options.output_dir)]
    for override in options.overrides:
        command += ["--set", override]
    if options.address:
        command += ["--address", options.address]
    if options.max_gpus is not None:
        command += ["--max-gpus", str(options.max_gpus)]
    return command
