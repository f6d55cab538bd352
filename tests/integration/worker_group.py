"""Trials on one group of workers, in a process with a placement, as Tune gives it to a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainables.config import TrialConfig
from trainables.records.schema import Measurement

Train = Callable[..., tuple[list[Measurement], BaseException | None]]

_OF_THE_PROCESS = ("time/", "perf/", "memory/", "cost/")


@contextmanager
def group_of(workers: int, cpus_each: float) -> Iterator[Train]:
    """Place a group and train in it: the trial, then the step at which Tune or a worker ends it."""

    class Trials:  # in here, for processes that have no path to this file
        def train(self, trial: TrialConfig, stops_at: int | None, dies_at: int | None) -> Any:
            import psutil

            from trainables.training.reporter import ListReporter
            from trainables.workers.worker_group import train_on_workers

            class Reporter(ListReporter):
                def report(self, measurement: Measurement) -> None:
                    super().report(measurement)
                    if measurement.step == stops_at:
                        raise SystemExit  # as Tune ends the thread of a trial
                    if measurement.step == dies_at:
                        _, second = (
                            process
                            for process in psutil.Process().parent().children()
                            if process.name().startswith("ray::Worker")
                        )
                        second.kill()

            reporter = Reporter()
            try:
                train_on_workers(trial, reporter.report)
            except (Exception, SystemExit) as error:
                return reporter.measurements, error
            return reporter.measurements, None

    bundles = [{"memory": 1 << 20}, *[{"CPU": cpus_each}] * workers]
    placement = placement_group(bundles, strategy="PACK")
    actor: Any = ray.remote(num_cpus=0, memory=1 << 20)(Trials)
    trials = actor.options(
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement, 0)
    ).remote()

    def train(
        trial: TrialConfig, stops_at: int | None = None, dies_at: int | None = None
    ) -> tuple[list[Measurement], BaseException | None]:
        measurements, error = ray.get(trials.train.remote(trial, stops_at, dies_at))
        return measurements, error

    yield train
    remove_placement_group(placement)


def values(measurements: list[Measurement]) -> dict[int, dict[str, float]]:
    """What was measured of the training at each step."""
    return {
        m.step: {k: v for k, v in m.metrics.items() if not k.startswith(_OF_THE_PROCESS)}
        for m in measurements
    }
