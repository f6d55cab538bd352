"""A sweep on a simulated cluster, wired as `tune.sweep` and `ray.tune.run` wire one.

It is in the midst of its run from the first moment on. Finished trials are known to the search,
the early stopping, the console and Tune's controller. All GPUs go on with trials that were
interrupted somewhere on their way, so they do not end all at once, and no search is needed to
fill the cluster.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.scale_clock import OURS, SAMPLER, DriverClock
from benchmarks.scale_cluster import TRIAL, SimulatedCluster, SimulatedGpus
from benchmarks.scale_history import METRICS, History, as_tune_keeps_it
from ray import tune as ray_tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator
from ray.tune.utils.callback import _create_default_callbacks
from ray.tune.utils.log import set_verbosity
from rich.console import Console

from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Measurement, SampleText, TrialRecord
from trainables.records.sweep_record import Provenance, SweepRecord
from tune.config.sweep_config import SweepConfig
from tune.folder.disk_budget import DiskBudget
from tune.folder.recorder import Recorder
from tune.listeners import SweepListener
from tune.resources.capacity import held_by_worker
from tune.resources.placement import Placement, Room
from tune.search.early_stopping import EarlyStopping, SuccessiveHalving
from tune.search.searcher import OptunaSearcher
from tune.search.trial_ids import TrialMaker
from tune.stops_by_hand import StopsByHand
from tune.terminal.console import ConsoleListener
from tune.tune_events import TuneEvents

PICTURES = 5
BASE = BaseRecord(
    key="",
    scores_key="",
    scores={},
    metrics=dict.fromkeys(METRICS, 0.5),
    general_nll=None,
    parameters=1,
    train_samples=1,
    validation_samples=0,
    skipped_samples=0,
    replayed_tokens=0.0,
    sample=SampleText(context="1 + 1 =", learned=" 2"),
    seconds=1,
)
SWEEP = SweepRecord(
    sweep_id="s",
    config={"name": "s"},
    provenance=Provenance(created=1, command="", git_commit=None, python="", versions={}),
)


class Counts(SweepListener):
    """How often what has happened.

    Args:
        clock: of the driver; what it does after an end counts as the trial's, not as its report's.
    """

    def __init__(self, clock: DriverClock) -> None:
        self._clock = clock
        self.starts = self.reports = self.ends = 0

    def trial_started(self, record: TrialRecord) -> None:
        self.starts += 1

    def measured(self, record: TrialRecord, measurement: Measurement) -> None:
        self.reports += 1

    def trial_ended(self, record: TrialRecord) -> None:
        self.ends += 1
        self._clock.kind = TRIAL


class SimulatedSweep:
    """A sweep and its driver.

    Args:
        config: the sweep.
        root: its folder.
        cluster: runs it; has taken the place of Ray for as long as the sweep lives.
        gpus: each for one trial.
        finished: trials that are complete when it begins.

    Attributes:
        counts: of what has happened since then.
        controller: Tune's.
    """

    def __init__(
        self, config: SweepConfig, root: Path, cluster: SimulatedCluster, gpus: int, finished: int
    ) -> None:
        self._config, self._cluster, self._gpus = config, cluster, gpus
        self._ledger = Ledger(root)
        self._resources = {"CPU": 8.0 * gpus, "GPU": float(gpus)}
        held = {
            recipe: held_by_worker(config, recipe, self._resources)
            for recipe in config.search.recipes
        }
        self._placement = Placement({}, held, slots=0)
        self.counts = Counts(cluster.clock)
        make_trial = TrialMaker(config, "s", self._ledger.folder, self._resources)
        history = History(make_trial, finished, gpus)
        self.searcher = OptunaSearcher(config, make_trial, history.finished, history.interrupted)
        self.searcher.keep_within(Room(self._resources, self._placement))
        scheduler = self._scheduler(history)
        events = self._events(history, scheduler)
        self.controller = self._controller(history, scheduler, events)
        _attribute(cluster.clock, self.searcher, scheduler, events, self.controller)

    def run(self, ends: int) -> None:
        """Let the driver run, as `ray.tune.run` does, until so many trials have ended."""
        while self.counts.ends < ends and not self.controller.is_finished():
            self.controller.step()

    def picture_seconds(self) -> float:
        """Processor seconds that the console's live table takes to be drawn."""
        terminal = Console(file=io.StringIO(), force_terminal=True, width=120, height=50)
        terminal.print(self._console._picture())
        began = time.process_time()
        for _ in range(PICTURES):
            terminal.print(self._console._picture())
        return (time.process_time() - began) / PICTURES

    def _scheduler(self, history: History) -> EarlyStopping:
        config = self._config
        assert config.early_stopping is not None
        rule = SuccessiveHalving(config.early_stopping, config.objectives, config.constraints)
        for number, measurement in history.measurements():
            # As `replay` does, which takes all in one list; `train` is not searched.
            rule.decide(number, measurement, config.train)
        return EarlyStopping(rule)

    def _events(self, history: History, scheduler: EarlyStopping) -> TuneEvents:
        now = self._cluster.clock.now
        self._console = ConsoleListener(self._config, Console(file=io.StringIO()), now)
        listeners: list[SweepListener] = [
            Recorder(self._ledger),
            self.searcher,
            DiskBudget(self._ledger, None, now),
            self._console,
            self.counts,
        ]
        for listener in listeners:
            listener.sweep_started(SWEEP, BASE, history.finished)
        by_hand = StopsByHand(self._ledger, lambda numbers: None, lambda: None)
        earlier = history.finished, history.interrupted
        return TuneEvents(listeners, 0, *earlier, scheduler.outcome, by_hand)

    def _controller(
        self, history: History, scheduler: EarlyStopping, events: TuneEvents
    ) -> TuneController:
        set_verbosity(0)
        experiment = Experiment(
            "s",
            ray_tune.with_resources(_no_trainable, self._placement),
            num_samples=sys.maxsize,
            storage_path=str(self._ledger.folder.ray.absolute()),
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        )
        search = SearchGenerator(ConcurrencyLimiter(self.searcher, max_concurrent=self._gpus))
        controller = TuneController(
            search_alg=search,
            scheduler=scheduler,
            callbacks=_create_default_callbacks([events]),
            trial_checkpoint_config=experiment.checkpoint_config,
            reuse_actors=True,
            storage=experiment.storage,
            resource_manager_factory=lambda: SimulatedGpus(self._cluster, self._gpus),
        )
        search.add_configurations([experiment])
        controller.update_max_pending_trials()
        controller.setup_experiments([experiment], search.total_samples)
        for record in history.finished:
            controller.add_trial(as_tune_keeps_it(record, experiment, _trial_id))
        controller.checkpoint(force=True, wait=True)  # these trials' part is made only once
        return controller


def _attribute(
    clock: DriverClock,
    searcher: OptunaSearcher,
    scheduler: EarlyStopping,
    events: TuneEvents,
    controller: TuneController,
) -> None:
    """Tell apart whose processor seconds are whose; what nobody claims is Tune's."""
    clock.attribute(searcher, OURS, "suggest")
    clock.attribute(searcher._history, OURS, "tried")
    clock.attribute(searcher._study, SAMPLER, "ask")  # all of it but `tried` is Optuna's
    clock.attribute(searcher.study, SAMPLER, "tell")
    clock.attribute(scheduler, OURS, "on_trial_result")
    clock.attribute(
        events,
        OURS,
        "on_trial_start",
        "on_trial_result",
        "on_trial_complete",
        "on_trial_error",
    )


def _no_trainable(config: dict[str, Any]) -> None:
    """Stands for the trials' code, of which a simulated actor runs nothing."""


def _trial_id(trial: Trial) -> str:
    return str(trial.config["trial"]["trial_id"])
