"""Trials of a simulated sweep: what one does, and those that the sweep has behind it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from ray.tune.experiment import Experiment, Trial
from ray.tune.search.variant_generator import _resolve_nested_dict, format_vars
from ray.tune.utils import flatten_dict

from trainables.records.schema import Measurement, Outcome, TrialRecord, TrialStatus
from trainables.workers.reporters import MEASUREMENT, OUTCOME
from tune.search.searcher import MakeTrial
from tune.search.space import Params

MINUTES, REPORTS, STEPS = 20.0, 10, 1000  # of a whole training
METRICS = ("train/loss", "in_domain/acc_mean", "forgetting/mean", "ood/acc_mean")
COMPLETE = Outcome(status=TrialStatus.COMPLETE)

_EVERY = STEPS // REPORTS
_SLOW, _FAST = 2.0, 0.5  # how much longer, or shorter, than the middle a training takes
_MEAN_PACE = (_SLOW - _FAST) / math.log(_SLOW / _FAST)


def training(
    config: dict[str, Any], minutes: float = MINUTES
) -> Iterator[tuple[float, dict[str, Any]]]:
    """What a trial does, a `Script`: it reports ten times, and last how it ended.

    Trials differ in pace by up to a factor of 4, a trial's times between reports by less than 2.

    Args:
        config: of the trial.
        minutes: that a whole training takes on average.
    """
    number = config["trial"]["number"]
    chance = random.Random(number)
    is_new = config["attempt"] == 1
    begin = 0 if is_new else steps_done(number)
    # Of slow trials more are under way at any moment than are started, so more are interrupted.
    pace = _FAST * (_SLOW / _FAST) ** chance.random() if is_new else chance.uniform(_FAST, _SLOW)
    for step in range(begin + _EVERY, STEPS + 1, _EVERY):
        seconds = minutes * 60 / REPORTS * pace / _MEAN_PACE * chance.uniform(0.75, 1.25)
        if not is_new and step == begin + _EVERY:
            seconds *= chance.random()  # it had come some way towards this report
        yield seconds, {MEASUREMENT: measurement(chance, step).model_dump()}
    yield 0.0, {OUTCOME: COMPLETE.model_dump(mode="json")}


def steps_done(number: int) -> int:
    """How far a trial had come when it was interrupted."""
    return random.Random(-1 - number).randrange(REPORTS) * _EVERY


def measurement(chance: random.Random, step: int) -> Measurement:
    """What a trial measures is chance; no training diverges."""
    metrics = {key: chance.uniform(0.5, 1) for key in METRICS}
    return Measurement(step=step, total_steps=STEPS, metrics=metrics, time=float(step))


class History:
    """The trials that a sweep has behind it, as its ledger would know them.

    Attributes:
        finished: those that are complete.
        interrupted: those that go on.

    Args:
        make: a trial's configuration.
        finished: how many are complete.
        interrupted: how many were interrupted, each somewhere on its way.
    """

    def __init__(self, make: MakeTrial, finished: int, interrupted: int) -> None:
        self._make = make
        self._chance = random.Random(0)
        self.finished = [self._record(n, STEPS).ended_as(COMPLETE, 2.0) for n in range(finished)]
        numbers = range(finished, finished + interrupted)
        self.interrupted = [self._record(number, steps_done(number)) for number in numbers]

    def measurements(self) -> Iterator[tuple[int, Measurement]]:
        """What all of them have measured, with their numbers."""
        for record in (*self.finished, *self.interrupted):
            last = record.last.step if record.last else 0
            for step in range(_EVERY, last + 1, _EVERY):
                yield record.number, measurement(self._chance, step)

    def _record(self, number: int, step: int) -> TrialRecord:
        params = self._params()
        config = self._make(number, params, 1, 0)
        record = TrialRecord(config=config, params=params, started=float(number))
        return record.after(measurement(self._chance, step)) if step else record

    def _params(self) -> Params:
        """A point of the quickstart's space."""
        chance = self._chance
        if chance.random() < 0.25:
            return {"recipe": "full", "full/learning_rate": 10 ** chance.uniform(-4, -2)}
        return {
            "recipe": "lora",
            "lora/rank": chance.choice([1, 2, 4, 8, 16, 32]),
            "lora/alpha_ratio": chance.choice([1, 2, 4]),
            "lora/learning_rate": 10 ** chance.uniform(-3.3, -2),
        }


def as_tune_keeps_it(
    record: TrialRecord, experiment: Experiment, name_of: Callable[[Trial], str]
) -> Trial:
    """A complete trial in the memory of Tune's controller, which forgets none."""
    config = {
        "trial": record.config.model_dump(mode="json"),
        "params": record.params,
        "attempt": 1,
        "confirms": None,
    }
    trial = Trial(
        experiment.run_identifier,
        config=config,
        evaluated_params=flatten_dict(config),
        experiment_tag=f"{record.number}_{format_vars(_resolve_nested_dict(config))}",
        storage=experiment.storage,
        checkpoint_config=experiment.checkpoint_config,
        trial_name_creator=name_of,
        trial_dirname_creator=name_of,
    )
    trial.relative_logdir = trial.storage.trial_dir_name = trial.custom_dirname
    of_the_result = {**config, "trial": record.config.model_dump(mode="json")}  # sent, so a copy
    outcome = {OUTCOME: COMPLETE.model_dump(mode="json"), "config": of_the_result}
    trial.update_last_result({**outcome, "done": True, "training_iteration": REPORTS + 1})
    trial.set_status(Trial.TERMINATED)
    return trial
