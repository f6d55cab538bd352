"""Repairs the weights of trials that are done, as tasks on the workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from analysis.results.default_selection import default_selection
from analysis.results.formatting import REPAIRS
from analysis.results.repeats import find_repeats
from trainables.errors import first_line
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import Measurement, Repair, TrialRecord, TrialStatus
from trainables.workers.ray_tasks import as_task, repair_on_worker
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import held_by_worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    trial: TrialRecord
    repair: Repair
    repeats: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"trial {self.trial.number}{REPAIRS[self.repair]}"


def repair_trials(
    config: SweepConfig,
    folder: SweepFolder,
    cluster: dict[str, float],
    records: Sequence[TrialRecord],
    tell: Callable[[str], None],
) -> Iterator[tuple[int, Measurement]]:
    """Have workers do the repairs that are missing, as many at once as fit.

    Yields:
        The number of each trial and what was measured of it; a warning names those that fail.
    """
    running = {}
    for job in _missing(config, records):
        if reason := job.trial.config.method.why_not_repaired:
            tell(f"no repair of {job}: {reason}")
            continue
        task = as_task(repair_on_worker, held_by_worker(config, job.trial.config.recipe, cluster))
        arguments = job.trial.number, job.repair, job.repeats
        running[task.remote(str(folder.root.absolute()), *arguments)] = job
    if running:
        tell(f"repairing weights: {', '.join(map(str, running.values()))} ...")
    for reference, job in running.items():
        try:
            found = ray.get(reference)
        except RayError as error:
            # A task's own error begins with its process; the error that it raised is its cause.
            found = first_line(getattr(error, "cause", None) or error)
        if isinstance(found, Measurement):
            yield job.trial.number, found
        else:
            logger.warning("cannot repair %s: %s", job, found)
            tell(f"warning: cannot repair {job}: {found.strip().splitlines()[0]}")


def _missing(config: SweepConfig, records: Sequence[TrialRecord]) -> Iterator[_Job]:
    """What is asked for and was not done yet; it does not depend on what was."""
    if not config.repairs:
        return
    plain = [_without_repairs(record) for record in records]
    selected = set(default_selection(config, plain))
    for record in records:
        done = {point.repair for point in record.points}
        for repair in config.repairs:
            repeats = _trained_again(record, plain) if repair == "seed_mean" else ()
            is_asked = bool(repeats) if repair == "seed_mean" else record.number in selected
            if is_asked and repair not in done:
                yield _Job(record, repair, repeats)


def _without_repairs(record: TrialRecord) -> TrialRecord:
    points = tuple(point for point in record.points if point.repair is None)
    return record.model_copy(update={"points": points})


def _trained_again(record: TrialRecord, records: Sequence[TrialRecord]) -> tuple[int, ...]:
    """The numbers of its complete repeat runs; empty where not all have weights."""
    found = [r for r in find_repeats(record, records) if r.status is TrialStatus.COMPLETE]
    has_all = all(each.weights_dir for each in (record, *found))
    return tuple(each.number for each in found) if has_all else ()
