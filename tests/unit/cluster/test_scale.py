"""The benchmark of scale: its virtual time and its idle share are what one finds by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from benchmarks.scale import SETTINGS, Window, measured
from benchmarks.scale_clock import DriverClock
from benchmarks.scale_cluster import BUSY, SimulatedCluster, Timings
from benchmarks.scale_history import COMPLETE, STEPS, measurement
from benchmarks.scale_sweep import SimulatedSweep

from trainables.workers.reporters import MEASUREMENT, OUTCOME
from tune.config.sweep_file import load_sweep

TRAINS_FOR = 90.0
NO_TIME = Timings(fresh=0, reused=0, call=0, get=0, wait=0, wait_for_each=0, fsync=0)


def one_report(
    config: dict[str, Any], seconds: float = TRAINS_FOR
) -> Iterator[tuple[float, dict[str, Any]]]:
    """A trial that reports once, at its end."""
    last = measurement(random.Random(0), STEPS)
    yield seconds, {MEASUREMENT: last.model_dump()}
    yield 0.0, {OUTCOME: COMPLETE.model_dump(mode="json")}


def window(
    folder: Path, gpus: int, timings: Timings, ends: int, seconds: float = TRAINS_FOR
) -> Window:
    """Of a sweep of such trials, whose driver takes no time but that of the timings."""
    config = load_sweep("quickstart", [*SETTINGS, "sampler=random"])
    script = partial(one_report, seconds=seconds)
    cluster = SimulatedCluster(DriverClock(lambda: 0.0), timings, script)
    with cluster.in_place_of_ray(folder):
        sweep = SimulatedSweep(config, folder, cluster, gpus, finished=0)
        return measured(sweep, cluster, gpus, first_ends=gpus, ends=ends)


def test_gpus_idle_for_as_long_as_their_next_trial_takes_to_start(tmp_path: Path) -> None:
    found = window(tmp_path, 2, replace(NO_TIME, reused=10.0), ends=6)
    assert found.seconds == pytest.approx(3 * (TRAINS_FOR + 10))
    assert (found.ends, found.reports) == (6, 6)
    assert found.usage[BUSY] == pytest.approx(6 * TRAINS_FOR)
    assert found.idle_share == pytest.approx(10 / 100)
    assert found.starting_share == pytest.approx(10 / 100)
