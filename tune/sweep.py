"""Runs a sweep, from a configuration and a folder to finished records."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import tune as ray_tune

from trainables.compat.ray import count_memory_kills_as_lost_processes
from trainables.config import TrialConfig
from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Outcome, TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord
from trainables.storage.storage import Location
from trainables.workers.packed_trials import SlotHosts
from trainables.workers.stop_request import StopRequest
from trainables.workers.trainable import run_trial
from tune.cluster.base_evaluation import have_base_checked, have_base_evaluated
from tune.cluster.cloud import autoscaler_limits
from tune.cluster.inspections import inspect_trials
from tune.cluster.memory_fit import cards_by_recipe, check_memory
from tune.cluster.node_checks import (
    ask_nodes,
    check_nodes,
    clear_nodes,
    largest_cluster,
    nodes_up,
    smallest_gpu,
)
from tune.cluster.repairs import repair_trials
from tune.cluster.slot_hosts import HostPool, beside_hosts, with_trials_left
from tune.cluster.waiting import WaitForRoom
from tune.config.input_files import digests, edited_meanwhile, paths_of_trials
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_metrics import check_metrics
from tune.config.training_warnings import held_out_warnings, item_warnings, training_warnings
from tune.folder.disk_budget import DiskBudget, PublishedCheckpoints
from tune.folder.provenance import provenance, version_warnings, warned
from tune.folder.recorder import Recorder
from tune.listeners import SweepListener
from tune.process_signals import stopping_gently
from tune.resources.capacity import (
    check_resources,
    held_by_worker,
    max_concurrent,
    within_limit,
)
from tune.resources.placement import Placement, Room, beside_driver, driver_warning
from tune.search.earlier_trials import RETRIED, earlier_trials
from tune.search.early_stopping import EarlyStopping, SuccessiveHalving, kept_by_base
from tune.search.fifo import Fifo
from tune.search.searcher import MakeTrial, OptunaSearcher
from tune.search.space import Params, planned_trials
from tune.search.trial_ids import TrialMaker
from tune.stops_by_hand import ENDED_BY_HAND, StopsByHand
from tune.tune_events import TuneEvents

Trainable = Callable[..., None]


@dataclass(frozen=True)
class SweepOutcome:
    """The result of one run of the command; for `cut_short_by` see `OptunaSearcher`.

    Attributes:
        base: the untouched model's metrics.
        failed: what `--retry-failed` would run again.
    """

    base: dict[str, float]
    records: list[TrialRecord]
    interrupted: bool
    cut_short_by: str | None
    failed: list[TrialRecord]


class Sweep:
    """One sweep in one folder, on a running Ray cluster.

    Args:
        config: the sweep.
        location: location of its folder, on a disk or in an object store.
        base_cache: where base evaluations are kept for all sweeps.
        retry_failed: retry trials that failed, were cancelled or ran out of memory.
        trainable: what Tune runs for each trial.
        may_write: raises if another driver has taken the sweep over.

    Raises:
        UserError: the folder holds another sweep, `warm_start` names one that does not fit, or a
            node of the cluster cannot run a task.
    """

    def __init__(
        self,
        config: SweepConfig,
        location: Location,
        base_cache: Location,
        retry_failed: bool = False,
        trainable: Trainable = run_trial,
        may_write: Callable[[], None] = lambda: None,
    ) -> None:
        self._began, self._created = time.monotonic(), time.time()
        self._config = config
        self._may_write = may_write
        self._ledger = Ledger(location, may_write)
        self._base_cache = base_cache
        self._trainable = trainable
        self._model = config.model
        self._ask_nodes()
        self._limits = autoscaler_limits()
        self._all = largest_cluster(nodes_up(), self._limits.most)
        self._cluster = within_limit(config, self._all)
        self._beside_driver = beside_driver()
        self._inputs = digests(config)  # before the base is measured with them
        self._earlier = earlier_trials(config, self._ledger, self._inputs)
        self._finished = self._earlier.ended(retry_failed)
        self._interrupted = [*map(_as_interrupted, self._earlier.to_go_on(retry_failed))]
        self._ended_at_start: list[TrialRecord] = []
        self._listeners: Sequence[SweepListener] = ()

    def run(self, listeners: Sequence[SweepListener]) -> SweepOutcome:
        """Evaluate the base, run what is missing and return all records.

        Raises:
            UserError: something in the input is wrong; no trial has run.
        """
        self._listeners = listeners
        check_nodes(self._nodes, self._ledger.folder.location)
        check_resources(self._config, self._all, nodes_up(), self._limits.types)
        check_memory(self._config, self._cards, self._has_base)
        make_trial = self._trial_maker(self._config.name)
        left = with_trials_left(self._config, self._finished)
        if warning := driver_warning():
            self._tell(f"warning: {warning}")
        for line in self._earlier.messages():
            self._tell(line)
        with (
            StopRequest(self._beside_driver) as request,
            HostPool(left, self._cluster, make_trial, self._beside_driver, self._tell) as hosts,
        ):
            base = self._evaluate_base(hosts)
            if self._has_unseen_gpus:
                self._ask_nodes()
                check_memory(self._config, self._cards, has_base=True)
            self._model = base.pinned(self._model)
            check_metrics(self._config, base)
            of_training = training_warnings(self._config, base.train_samples)
            of_data = held_out_warnings(self._config, base)
            of_items = item_warnings(self._config, base, planned_trials(self._config))
            sweep = self._write_sweep((*of_training, *of_data, *of_items))
            return self._run_trials(sweep, base, hosts, request)

    def _tell(self, message: str) -> None:
        for listener in self._listeners:
            listener.preparing(message)

    def _run_trials(
        self, sweep: SweepRecord, base: BaseRecord, hosts: HostPool, request: StopRequest
    ) -> SweepOutcome:
        by_hand = StopsByHand(self._ledger, request.ask, self._may_write)
        begun = {r.number for r in self._earlier.own if r.status is TrialStatus.RUNNING}
        self._end_stopped(dict.fromkeys(by_hand.left_for(begun), ENDED_BY_HAND))
        scheduler = self._scheduler(base)
        searcher = OptunaSearcher(
            self._config,
            self._trial_maker(sweep.sweep_id),
            self._finished,
            self._interrupted,
            self._earlier.warm,
            began=self._began,
        )
        tidy = (
            PublishedCheckpoints()
            if self._ledger.folder.is_in_store
            else DiskBudget(self._ledger, self._config.budget.checkpoint_gib)
        )
        recorder, shown = Recorder(self._ledger), self._listeners
        everyone = [recorder, searcher, scheduler, hosts, tidy, *shown, by_hand]
        events = TuneEvents(
            everyone,
            self._config.budget.retries,
            self._finished,
            self._interrupted,
            scheduler.outcome,
            by_hand,
        )
        for listener in everyone:
            listener.sweep_started(sweep, base, self._finished)
        for record in self._ended_at_start:
            tidy.trial_ended(record)
        is_whole = True
        try:
            if not searcher.is_done:
                slot_hosts = hosts.ready(base.train_samples)
                _fit(self._tuner(searcher, events, scheduler, slot_hosts), events, request)
                if not events.is_stopping:  # else the next start looks
                    self._warn_of_edits()
            if self._config.repairs and not (events.running or events.is_stopping):
                hosts.close()
                is_whole = self._repair([recorder, *shown])
        finally:
            self._may_write()  # another driver's mirrors are newer
            records = self._ledger.trials()
            for listener in everyone:
                listener.sweep_ended(records)
        hosts.close()
        return self._finish(base, records, searcher, events, is_whole)

    def _repair(self, listeners: Sequence[SweepListener]) -> bool:
        """Have weights repaired as the sweep file asks for, as far as that was not done yet.

        Returns whether it was not interrupted; the next start of the command does the rest.
        """
        records = {record.number: record for record in self._ledger.trials()}
        found = repair_trials(
            self._config, self._ledger.folder, self._cluster, [*records.values()], self._tell
        )
        try:
            for number, measurement in found:
                record = records[number] = records[number].after(measurement)
                for listener in listeners:
                    listener.point_measured(record, measurement)
                self._ledger.write_trial(record)
        except KeyboardInterrupt:
            return False
        return True

    def _finish(
        self,
        base: BaseRecord,
        records: list[TrialRecord],
        searcher: OptunaSearcher,
        events: TuneEvents,
        is_whole: bool,
    ) -> SweepOutcome:
        self._may_write()  # again: W&B may have taken a minute
        folder = self._ledger.folder
        if folder.is_in_store:
            clear_nodes(folder, records)
        searcher.export(folder.study)
        # Stopped trials stay RUNNING in the ledger; the next start of the command resumes them.
        interrupted = bool(events.running) or (events.is_stopping and not searcher.is_done)
        interrupted = interrupted or not is_whole
        if self._config.inspect and not interrupted:
            try:
                inspect_trials(self._config, folder, self._cluster, records, self._tell)
            except KeyboardInterrupt:  # the next start of the command looks there
                self._may_write()  # that another driver has the sweep interrupts likewise
                interrupted = True
        failed = [record for record in records if record.status in RETRIED]
        return SweepOutcome(base.metrics, records, interrupted, searcher.cut_short_by, failed)

    def _ask_nodes(self) -> None:
        location = self._ledger.folder.location
        self._nodes = ask_nodes(location, paths_of_trials(self._config))
        self._cards = cards_by_recipe(self._config, partial(smallest_gpu, self._nodes))

    @property
    def _has_unseen_gpus(self) -> bool:
        """Whether the cluster had not started a recipe's GPUs when its nodes were asked."""
        is_seen = len(self._cards) == len(self._config.search.recipes)
        return not is_seen and self._cluster.get("GPU", 0) > 0

    @property
    def _has_base(self) -> bool:
        return self._ledger.exists() and self._ledger.has_base()

    def _evaluate_base(self, hosts: HostPool) -> BaseRecord:
        sweep = self._config, self._ledger
        if self._has_base:
            have_base_checked(*sweep, self._cluster, self._tell)
        else:
            have_base_evaluated(*sweep, self._base_cache, hosts, self._cluster, self._tell)
        return self._ledger.base()

    def _write_sweep(self, warnings: tuple[str, ...]) -> SweepRecord:
        config = self._config.model_dump(mode="json")
        of_start = {"created": self._created, "warnings": warnings}
        now = provenance().model_copy(update=of_start)
        if self._ledger.exists():
            record = self._ledger.sweep().started_again(config, now)
        else:
            sweep_id = f"{self._config.name}-{uuid.uuid4().hex[:8]}"
            record = SweepRecord(
                sweep_id=sweep_id, config=config, provenance=now, inputs=self._inputs
            )
        if self._earlier.is_warm_new and (self._earlier.warm or self._ledger.warm_start()):
            self._ledger.write_warm_start(self._earlier.warm)
        record = warned(record, *version_warnings(record))
        self._ledger.write_sweep(record)
        return record

    def _warn_of_edits(self) -> None:
        """Warn of files that were edited while trials read them."""
        if warning := edited_meanwhile(self._inputs, self._config):
            self._tell(f"warning: {warning}")
            self._ledger.write_sweep(warned(self._ledger.sweep(), warning))

    def _trial_maker(self, sweep_id: str) -> MakeTrial:
        make_trial = TrialMaker(self._config, sweep_id, self._ledger.folder, self._cluster)

        def make(number: int, params: Params, attempt: int, seed: int) -> TrialConfig:
            trial = make_trial(number, params, attempt, seed)
            return trial.model_copy(update={"model": self._model})

        return make

    def _scheduler(self, base: BaseRecord) -> Fifo:
        """The scheduler; early stopping has the rungs as earlier runs of the command left them."""
        if self._config.early_stopping is None:
            return Fifo()
        constraints = kept_by_base(self._config.constraints, base.metrics)
        rule = SuccessiveHalving(self._config.early_stopping, self._config.objectives, constraints)
        histories = self._ledger.histories(as_they_came=True)
        searched = [r for r in (*self._finished, *self._interrupted) if r.confirms is None]
        trains = {record.number: record.config.train for record in searched}
        measured = {number: histories.get(number, []) for number in trains}
        self._end_stopped(rule.replay(measured, trains))
        return EarlyStopping(rule)

    def _end_stopped(self, outcomes: Mapping[int, Outcome]) -> None:
        """End the interrupted trials that the last driver was about to stop."""
        for record in [record for record in self._interrupted if record.number in outcomes]:
            self._interrupted.remove(record)
            at = record.last.time if record.last else record.began  # it has not trained since
            record = record.ended_as(outcomes[record.number], at)
            self._finished.append(record)
            self._ended_at_start.append(record)
            self._ledger.write_trial(record)

    def _tuner(
        self,
        searcher: OptunaSearcher,
        events: TuneEvents,
        scheduler: Fifo,
        hosts: SlotHosts | None,
    ) -> ray_tune.Tuner:
        config = self._config
        trainable, left, in_slots = self._trainable, self._cluster, 0
        packed: tuple[str, ...] = ()
        if hosts is not None:
            trainable = ray_tune.with_parameters(trainable, slot_hosts=hosts)
            in_slots, packed = len(hosts.actors) * hosts.slots, hosts.recipes
            left = beside_hosts(config, packed, self._cluster, len(hosts.actors))
        held = {r: held_by_worker(config, r, self._cluster) for r in config.search.recipes}
        count_memory_kills_as_lost_processes()
        # It complains of files of Tune's that a sweep does not need.
        logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
        placement = Placement(self._beside_driver, held, in_slots, packed)
        searcher.keep_within(Room(left, placement))
        return ray_tune.Tuner(
            ray_tune.with_resources(trainable, placement),
            tune_config=ray_tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when there are no more trials
                max_concurrent_trials=max_concurrent(config, left, in_slots, packed),
                reuse_actors=True,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_id,
            ),
            run_config=ray_tune.RunConfig(
                # Names Tune's own folder on this machine, so it must differ between sweeps.
                name=self._ledger.sweep().sweep_id,
                storage_path=str(self._ledger.folder.ray.absolute()),
                callbacks=[events, WaitForRoom(held, hosts, self._tell)],
                verbose=0,
            ),
        )


def _as_interrupted(record: TrialRecord) -> TrialRecord:
    """The record of a trial to resume."""
    failures = 0 if record.status in RETRIED else record.failures
    return record.model_copy(update={"status": TrialStatus.RUNNING, "failures": failures})


def _fit(tuner: ray_tune.Tuner, events: TuneEvents, request: StopRequest) -> None:
    """Run the trials; Ctrl-C has them save a checkpoint and end."""

    def stop() -> None:
        events.sweep_stopping()
        request.make()

    with stopping_gently(stop):
        tuner.fit()


def _trial_id(trial: Any) -> str:
    return str(trial.config["trial"]["trial_id"])
