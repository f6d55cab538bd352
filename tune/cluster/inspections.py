"""Inspects the models of selected trials, as tasks on the workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import ray
from ray.exceptions import RayError

from analysis.results.default_selection import default_selection
from analysis.results.recommendation import numbers_text
from trainables.errors import first_line
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import TrialRecord
from trainables.workers.ray_tasks import as_task, inspect_on_worker
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import held_by_worker

logger = logging.getLogger(__name__)


def inspect_trials(
    config: SweepConfig,
    folder: SweepFolder,
    cluster: dict[str, float],
    records: Sequence[TrialRecord],
    tell: Callable[[str], None],
) -> None:
    """Have workers inspect the selected trials, as many at once as fit."""
    selected = set(default_selection(config, records))
    chosen = [record for record in records if record.number in selected]
    if not chosen:
        return
    tell(f"inspecting {numbers_text(chosen)} ...")
    running = {}
    for record in chosen:
        task = as_task(inspect_on_worker, held_by_worker(config, record.config.recipe, cluster))
        running[record.number] = task.remote(str(folder.root.absolute()), record.number)
    for number, reference in running.items():
        try:
            reason = ray.get(reference)
        except RayError as error:
            # A task's own error begins with its process; the error that it raised is its cause.
            reason = first_line(getattr(error, "cause", None) or error)
        if reason:
            logger.warning("cannot inspect trial %d: %s", number, reason)
            line = reason.strip().splitlines()[0]
            tell(f"warning: cannot inspect trial {number}: {line}")
        else:
            tell(f"inspected trial {number}")
