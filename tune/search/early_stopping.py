"""Early stopping: asynchronous successive halving over recorded measurements.

Rungs are rebuilt from the ledger at every start. They lie at shares of a training's steps, so
trials of different batch sizes are compared after the same number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from analysis.results.trade_off import standard_error
from trainables.config import Constraint, Objective, TrainConfig
from trainables.config.train_config import step_at
from trainables.metric_keys import METRICS, TRAIN_LOSS, TRAINABLE_PARAMETERS
from trainables.records.schema import Measurement, Outcome, TrialStatus
from trainables.workers.reporters import MEASUREMENT
from tune.config.sweep_config import EarlyStoppingConfig
from tune.search.fifo import Fifo

# Zero for the untouched base, and never decreasing in a trial.
_COSTS = (*(key for key, metric in METRICS.items() if metric.adds_up), TRAINABLE_PARAMETERS)
# In nats/token, added to a trial's first loss, which is of a few samples and may be near zero.
_SPREAD_OF_FIRST = 1.0
# By which share of its training one trial may be ahead of another that it is compared with. Steps
# are whole, so for trainings of 20 and of 1000 steps that report together it may be 0.0255.
_LARGEST_LEAD = 0.03


class EarlyStopping(Fifo):
    """Tune scheduler that applies the rule and remembers why it stopped each trial."""

    def __init__(self, rule: SuccessiveHalving) -> None:
        super().__init__()
        self._rule = rule
        self._outcomes: dict[str, Outcome] = {}

    def outcome(self, trial_id: str) -> Outcome | None:
        """How a trial ended that the rule stopped; None for any other."""
        return self._outcomes.get(trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop the trial; repeats of winners always continue."""
        measurement = _measurement(result)
        if measurement is None or measurement.is_altered or trial.config["confirms"] is not None:
            return str(TrialScheduler.CONTINUE)
        config = trial.config["trial"]
        train = TrainConfig.model_validate(config["train"])
        outcome = self._rule.decide(int(config["number"]), measurement, train)
        if outcome is None:
            return str(TrialScheduler.CONTINUE)
        self._outcomes[trial.trial_id] = outcome
        return str(TrialScheduler.STOP)


def _measurement(flat: dict[str, Any]) -> Measurement | None:
    """The measurement in a result, which Tune flattens for schedulers."""
    prefix = f"{MEASUREMENT}/"
    if f"{prefix}step" not in flat:
        return None
    inside = f"{prefix}metrics/"
    return Measurement(
        step=flat[f"{prefix}step"],
        total_steps=flat[f"{prefix}total_steps"],
        strength=flat[f"{prefix}strength"],
        metrics={key.removeprefix(inside): flat[key] for key in flat if key.startswith(inside)},
        time=flat[f"{prefix}time"],
    )


@dataclass(eq=False)
class Rung:
    """One level of successive halving.

    Attributes:
        share: of the training, after which trials are compared.
        seen: of each trial compared here, its share, its losses (lower is better) and their
            standard errors.
        compared: numbers of the trials compared here.
        allowed: numbers of the trials whose constraints held here.
    """

    share: float
    seen: list[tuple[float, Sequence[float], Sequence[float]]] = field(default_factory=list)
    compared: set[int] = field(default_factory=set)
    allowed: set[int] = field(default_factory=set)

    def admits(
        self,
        number: int,
        share: float,
        losses: Sequence[float],
        errors: Sequence[float],
        reduction_factor: float,
    ) -> bool:
        """Record a trial's losses; True if fewer than 1 / reduction_factor of all are better.

        All are those that were as far in their training. A trial is better if it dominates
        this one: no worse in any loss, and lower in at least one by more than the standard error of
        the difference. With several losses a trial that trades one for another continues, because
        the search wants the whole front (tests/benchmarks/search_economy.py).

        As in ASHA (Li et al. 2018, 1810.05934), the decision is made at once, based on the trials
        that came before; with fewer than `reduction_factor` trials, all continue. The number kept
        is rounded up where the paper rounds down (tests/benchmarks/early_stopping.py).
        """
        self.seen.append((share, losses, errors))
        self.compared.add(number)
        peers = [
            (values, error) for at, values, error in self.seen if abs(at - share) <= _LARGEST_LEAD
        ]
        if len(peers) < reduction_factor:
            return True
        own, losses_there = np.array([losses]), np.array([values for values, _ in peers])
        margins = np.hypot([error for _, error in peers], [errors])
        is_better = (losses_there <= own).all(axis=1) & (own - losses_there > margins).any(axis=1)
        return bool(is_better.sum() < math.ceil(len(losses_there) / reduction_factor))


def kept_by_base(constraints: Sequence[Constraint], base: Mapping[str, float]) -> list[Constraint]:
    """The constraints that are judged before a trial ends: those that the base satisfies.

    The others may still be met through training.

    Args:
        constraints: of the sweep.
        base: metrics of the untouched base.
    """
    metrics = {**dict.fromkeys(_COSTS, 0.0), **base}
    return [c for c in constraints if c.metric in metrics and c.holds(metrics[c.metric])]


class SuccessiveHalving:
    """The rule, free of Ray: maps a measurement to the outcome of a trial or to None.

    Args:
        config: the rungs and the metrics to compare trials by.
        objectives: of the sweep; trials are compared by these unless `config` names metrics.
        constraints: those from `kept_by_base`; breaking one at a rung ends the trial.
    """

    def __init__(
        self,
        config: EarlyStoppingConfig,
        objectives: Sequence[Objective] = (),
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self._config = config
        self._objectives = objectives
        self._constraints = constraints
        self._rungs: dict[tuple[int | None, float], list[Rung]] = {}
        self._first_loss: dict[int, float] = {}

    def replay(
        self,
        histories: Mapping[int, Sequence[Measurement]],
        trains: Mapping[int, TrainConfig],
    ) -> dict[int, Outcome]:
        """Judge the measurements of earlier runs of the command in the order of their times.

        Returns:
            The outcome of each trial that its last measurement stops. If the ledger still lists
            such a trial as running, its driver died before it recorded the outcome.
        """
        arrivals = [(number, each) for number, history in histories.items() for each in history]
        outcomes = {}
        for number, measurement in sorted(arrivals, key=lambda arrival: arrival[1].time):
            outcomes[number] = self.decide(number, measurement, trains[number])
        return {number: outcome for number, outcome in outcomes.items() if outcome is not None}

    def decide(self, number: int, measurement: Measurement, train: TrainConfig) -> Outcome | None:
        """How the trial should end now; None lets it continue.

        The last step is not a rung, and only trainings of equal length are compared.
        """
        total_steps = measurement.total_steps
        if total_steps is None or measurement.step >= total_steps:
            return None
        if reason := self._explodes(number, measurement):
            return Outcome(status=TrialStatus.DIVERGED, reason=reason)
        reached = [
            rung
            for rung in self._get_rungs(train)
            if step_at(rung.share, total_steps) <= measurement.step
        ]
        if not reached:
            return None
        reason = self._breaks_constraint(number, measurement, reached[-1])
        reason = reason or self._falls_behind(number, measurement, reached[-1])
        return Outcome(status=TrialStatus.STOPPED_EARLY, reason=reason) if reason else None

    def _get_rungs(self, train: TrainConfig) -> list[Rung]:
        """Rungs at first_rung x reduction_factor^k of trainings of this length, before the end."""
        length = train.steps, train.epochs
        if length not in self._rungs:
            rungs = self._rungs[length] = []
            share = self._config.first_rung
            while share < 1:
                rungs.append(Rung(share))
                share *= self._config.reduction_factor
        return self._rungs[length]

    def _losses(self, measurement: Measurement) -> list[float] | None:
        """The values trials are compared by, lower is better; None if any is missing."""
        metrics, weights = measurement.metrics, self._config.metrics
        names = weights or [objective.metric for objective in self._objectives]
        if not metrics.keys() >= set(names):
            return None
        if weights:
            total = sum(weight * metrics[name] for name, weight in weights.items())
            return [round(-total, 12)]  # as in `Objective.loss`
        return [objective.loss(metrics[objective.metric]) for objective in self._objectives]

    def _errors(self, measurement: Measurement) -> list[float]:
        """The standard errors of several losses; a single loss has none, as in ASHA."""
        if self._config.metrics or len(self._objectives) == 1:
            return [0.0]
        return [standard_error(o.metric, measurement.metrics) for o in self._objectives]

    def _explodes(self, number: int, measurement: Measurement) -> str | None:
        loss, times = measurement.metrics.get(TRAIN_LOSS), self._config.loss_limit
        if loss is None or times is None:
            return None
        first = self._first_loss.setdefault(number, loss)
        limit = times * (first + _SPREAD_OF_FIRST)
        if loss > limit:
            return f"training loss {loss:.3g} is over {limit:.3g}, and began at {first:.3g}"
        return None

    def _breaks_constraint(self, number: int, measurement: Measurement, rung: Rung) -> str | None:
        """Checks once per rung, at its first measurement with all constrained metrics."""
        if number in rung.allowed:
            return None
        for constraint in self._constraints:
            value = measurement.metrics.get(constraint.metric)
            if value is None:
                return None
            if not constraint.holds(value):
                return f"{constraint} is broken already at step {measurement.step}"
        rung.allowed.add(number)
        return None

    def _falls_behind(self, number: int, measurement: Measurement, rung: Rung) -> str | None:
        """Compares once per rung, at its first measurement with all compared metrics."""
        losses = self._losses(measurement)
        if losses is None or number in rung.compared:
            return None
        share = measurement.step / (measurement.total_steps or 1)
        errors = self._errors(measurement)
        if rung.admits(number, share, losses, errors, self._config.reduction_factor):
            return None
        best = f"1/{self._config.reduction_factor:g}"
        if len(losses) > 1:
            return f"{best} of the trials dominate it at step {measurement.step}"
        return f"not among the best {best} at step {measurement.step}"
