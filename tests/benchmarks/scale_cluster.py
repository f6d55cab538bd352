"""A cluster that is not there: actors, each on a GPU of its own, beneath Tune's real controller.

Tune's actor manager is the real one, too. What it calls of Ray is replaced: calls of an actor's
methods return futures of this module, `ray.wait` skips to the first that is ready, and `ray.get`
gives what an actor would have sent.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from benchmarks.scale_clock import RAY, DriverClock
from ray.air.execution.resources import ResourceManager
from ray.tune.result import RESULT_DUPLICATE

from trainables.workers.reporters import MEASUREMENT

REPORT, TRIAL, NOTHING = "report", "trial", "nothing"
BUSY, STARTING = "busy", "starting"
OF_A_TRIAL = ("trial", "params", "attempt", "confirms")

# What a trial does: the seconds until each thing that it reports, and that report.
Script = Callable[[dict[str, Any]], Iterator[tuple[float, dict[str, Any]]]]


@dataclass(frozen=True)
class Timings:
    """Seconds that the simulation cannot find out by itself.

    The defaults were measured on a local Ray of two cores that did other work, too. Its trials are
    the quickstart's; a model of billions of parameters takes longer to begin, above all in a
    process that does not hold it yet.

    Attributes:
        fresh: until a trial trains in a process that has to be started.
        reused: until one trains in a process that trained another before.
        call: of the driver, to call an actor's method with a trial's configuration.
        get: of the driver, to fetch a result.
        wait: of the driver, to look which of no futures are ready.
        wait_for_each: what each future adds to that.
        fsync: that the driver waits for the disk, for each durable write of the ledger.
    """

    fresh: float = 15.0
    reused: float = 0.9
    call: float = 1.2e-3
    get: float = 0.4e-3
    wait: float = 0.25e-3
    wait_for_each: float = 1.1e-6
    fsync: float = 0.5e-3


@dataclass(eq=False)
class Future:
    """What the call of an actor's method returns.

    Attributes:
        ready: when it has its value.
        kind: of the event that it is to the driver.
        value: as it was sent.
    """

    ready: float
    kind: str = TRIAL
    value: bytes = pickle.dumps(None)


class Usage:
    """When GPUs were busy, and when an actor on them was about to be ready."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, float, float]] = []

    def add(self, kind: str, begin: float, end: float) -> None:
        """Note a span of one GPU; its end may be yet to come."""
        self._spans.append((kind, begin, end))

    def between(self, begin: float, end: float) -> Counter[str]:
        """GPU-seconds by kind within a window."""
        seconds: Counter[str] = Counter()
        for kind, first, last in self._spans:
            seconds[kind] += max(0.0, min(last, end) - max(first, begin))
        return seconds


class SimulatedCluster:
    """The cluster's part of Ray, in the time of the driver's clock.

    Args:
        clock: of the driver.
        timings: of what is not simulated in detail.
        script: what a trial of a configuration does.
    """

    def __init__(self, clock: DriverClock, timings: Timings, script: Script) -> None:
        self.clock, self.timings, self.script = clock, timings, script
        self.usage = Usage()

    def wait(
        self, futures: Sequence[Future], num_returns: int, timeout: float
    ) -> tuple[list[Future], list[Future]]:
        """What `ray.wait` does: the first in line that is ready, or the next to be so in time."""
        clock, timings = self.clock, self.timings
        clock.charge(RAY, timings.wait + len(futures) * timings.wait_for_each)
        with clock.stopped():
            now = clock.now()
            found = next((future for future in futures if future.ready <= now), None)
            found = found or min(futures, key=lambda future: future.ready, default=None)
            if found is None or found.ready > now + timeout:
                clock.sleep(timeout)
                clock.kind = NOTHING
                return [], list(futures)
            clock.skip_to(found.ready)
            clock.kind = found.kind
            return [found], [future for future in futures if future is not found]

    def get(self, future: Future) -> Any:
        """What `ray.get` does with a future that is ready."""
        self.clock.charge(RAY, self.timings.get)
        with self.clock.stopped():
            return pickle.loads(future.value)  # noqa: S301 - our own

    @contextmanager
    def in_place_of_ray(self, folder: Path) -> Iterator[None]:
        """For Tune there is no other cluster, and no other time, while the context lasts.

        Args:
            folder: where Tune stages its own files, for which it has a folder of Ray's otherwise.
        """
        time = self.clock.as_module()
        session = str(folder / "session")

        def run(process: Any, **arguments: Any) -> None:
            """Copy Tune's snapshot to the sweep's folder, for which it has a thread otherwise."""
            with self.clock.stopped():
                process._fn(**arguments)

        with ExitStack() as patches:
            for name, stand_in in (
                ("ray.wait", self.wait),
                ("ray.get", self.get),
                ("os.fsync", lambda descriptor: self.clock.sleep(self.timings.fsync)),
                ("ray.tune.execution.tune_controller.time", time),
                ("ray.tune.execution.experiment_state.time", time),
                ("ray.train._internal.storage._get_ray_train_session_dir", lambda: session),
                ("ray.train._internal.syncer._BackgroundProcess.start", run),
            ):
                patches.enter_context(patch(name, stand_in))
            yield


class SimulatedActor:
    """A trial's process, as far as Tune's controller knows it."""

    def __init__(self, cluster: SimulatedCluster, config: dict[str, Any]) -> None:
        self._cluster = cluster
        self._begin(config)

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=partial(self._call, name))

    def _call(self, method: str, *arguments: Any, **_: Any) -> Future:
        clock, timings = self._cluster.clock, self._cluster.timings
        clock.charge(RAY, timings.call)
        with clock.stopped():
            match method:
                case "__ray_ready__":
                    return self._start(timings.fresh)
                case "reset":
                    self._begin(*arguments)
                    return self._start(timings.reused)
                case "train":
                    return self._train()
                case _:  # of no consequence to the trial, such as `stop`
                    return Future(clock.now())

    def _begin(self, config: dict[str, Any]) -> None:
        self._config = {key: config[key] for key in OF_A_TRIAL}
        self._script = self._cluster.script(self._config)
        self._reports = 0

    def _start(self, seconds: float) -> Future:
        begin = self._cluster.clock.now()
        self._cluster.usage.add(STARTING, begin, begin + seconds)
        return Future(begin + seconds, value=pickle.dumps(True))

    def _train(self) -> Future:
        """Go on to the next report. The last one of any function says that it has returned."""
        begin = self._cluster.clock.now()
        seconds, report = next(self._script, (0.0, None))
        self._cluster.usage.add(BUSY, begin, begin + seconds)
        result = {RESULT_DUPLICATE: True} if report is None else report | self._filled_in(begin)
        kind = REPORT if MEASUREMENT in result else TRIAL
        return Future(begin + seconds, kind, pickle.dumps(result))

    def _filled_in(self, now: float) -> dict[str, Any]:
        """What Tune adds to each report; the trial's configuration is most of it."""
        self._reports += 1
        return {
            "config": self._config,
            "training_iteration": self._reports,
            "iterations_since_restore": self._reports,
            "time_this_iter_s": now,
            "time_total_s": now,
            "time_since_restore": now,
            "timestamp": int(now),
            "date": "2025-01-01_00-00-00",
            "pid": 1,
            "hostname": "node",
            "node_ip": "10.0.0.1",
            "done": False,
        }


class SimulatedGpus(ResourceManager):
    """Gives each actor what it asks for, as long as there is a GPU."""

    def __init__(self, cluster: SimulatedCluster, gpus: int) -> None:
        self._cluster = cluster
        self._free = gpus

    def request_resources(self, resource_request: Any) -> None:
        """Nothing needs to be reserved."""

    def cancel_resource_request(self, resource_request: Any) -> None:
        """Nothing was reserved."""

    def has_resources_ready(self, resource_request: Any) -> bool:
        """Whether a GPU is free."""
        return self._free > 0

    def acquire_resources(self, resource_request: Any) -> Any:
        """Take a GPU; what is given annotates an actor's class, as that of Ray does."""
        self._free -= 1
        start = partial(SimulatedActor, self._cluster)
        actor_class = SimpleNamespace(remote=lambda config, storage: start(config))
        return SimpleNamespace(
            resource_request=resource_request,
            annotate_remote_entities=lambda classes: [actor_class],
        )

    def free_resources(self, acquired_resource: Any) -> None:
        """A GPU is free again."""
        self._free += 1

    def clear(self) -> None:
        """Nothing is kept."""
