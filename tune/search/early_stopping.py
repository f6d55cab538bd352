"""Early stopping: asynchronous successive halving over recorded measurements.

Rungs are rebuilt from the ledger at every start, so they survive whatever ends the driver. Their
axis is the share of a training's own steps, so a trial resumed elsewhere keeps its position, and
trials of other batch sizes, which take other numbers of steps for the same samples, meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
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

# What a trial has spent or holds: zero for the untouched base, and never decreasing in a trial.
_COSTS = (*(key for key, metric in METRICS.items() if metric.adds_up), TRAINABLE_PARAMETERS)
# In nats/token, added to a trial's first loss: that of a few samples may be anything from zero up,
# so others of the same model easily lose many times as much.
_SPREAD_OF_FIRST = 1.0
# By which share of its training one trial may be ahead of another that it is compared with. Steps
# are whole, so where both are due at one share of 20 and of 1000 steps it may be 0.0255.
_LARGEST_LEAD = 0.03


class EarlyStopping(Fifo):
    """Tune scheduler that applies the rule and remembers why it stopped each trial."""

    def __init__(self, rule: SuccessiveHalving) -> None:
        super().__init__()
        self._rule = rule
        self._outcomes: dict[str, Outcome] = {}

    def outcome(self, trial_id: str) -> Outcome | None:
        """How a trial that was stopped here ended; None for any other trial."""
        return self._outcomes.get(trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop the trial; a repeat run that confirms a winner always continues."""
        measurement = _measurement(result)
        if measurement is None or trial.config["confirms"] is not None:
            return str(TrialScheduler.CONTINUE)
        config = trial.config["trial"]
        train = TrainConfig.model_validate(config["train"])
        outcome = self._rule.decide(int(config["number"]), measurement, train)
        if outcome is None:
            return str(TrialScheduler.CONTINUE)
        self._outcomes[trial.trial_id] = outcome
        return str(TrialScheduler.STOP)


def _measurement(flat: dict[str, Any]) -> Measurement | None:
    """The measurement in a result, which Tune flattens for schedulers; None if it has none."""
    prefix = f"{MEASUREMENT}/"
    if f"{prefix}step" not in flat:
        return None
    inside = f"{prefix}metrics/"
    return Measurement(
        step=flat[f"{prefix}step"],
        total_steps=flat[f"{prefix}total_steps"],
        metrics={key.removeprefix(inside): flat[key] for key in flat if key.startswith(inside)},
        time=flat[f"{prefix}time"],
    )


@dataclass(eq=False)
class Rung:
    """One level of successive halving.

    Attributes:
        share: share of the training after which trials are compared.
        losses: losses of the trials compared here, [trials, losses]; lower is better.
        errors: their standard errors, [trials, losses].
        shares: where each of these was in its training, [trials].
        compared: numbers of the trials compared here.
        allowed: numbers of the trials whose constraints held here.
    """

    share: float
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    errors: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    shares: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
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

        All are those that were as far in their training. A trial is better if it dominates this
        one: no worse in any loss and lower in at least one, by more than the standard error of the
        difference. Less tells nothing: in simulated searches, as many of the trials ended by it
        were of the true front as of trials ended at random.

        With one loss, the best 1 / reduction_factor continue. With several losses a trial that
        trades one for another also continues, because the search wants the whole front:
        tests/benchmarks/search_economy.py shows how much of it a weighted sum cuts off.

        As in ASHA (Li et al. 2018, 1810.05934), the decision is made at once, based on the trials
        that came before; with fewer than `reduction_factor` trials, all continue. The number kept
        is rounded up where the paper rounds down, which in a rung of five would keep a fifth
        instead of a third: tests/benchmarks/early_stopping.py shows what that costs.
        """
        own, own_errors = np.array([losses]), np.array([errors])
        self.losses = np.vstack([self.losses, own]) if self.compared else own
        self.errors = np.vstack([self.errors, own_errors]) if self.compared else own_errors
        self.shares = np.append(self.shares, share)
        self.compared.add(number)
        are_there = np.abs(self.shares - share) <= _LARGEST_LEAD
        losses_there, margins = self.losses[are_there], np.hypot(self.errors[are_there], own_errors)
        if len(losses_there) < reduction_factor:
            return True
        is_better = (losses_there <= own).all(axis=1) & (own - losses_there > margins).any(axis=1)
        return bool(is_better.sum() < math.ceil(len(losses_there) / reduction_factor))


def kept_by_base(constraints: Sequence[Constraint], base: Mapping[str, float]) -> list[Constraint]:
    """The constraints that can be judged before a trial ends: those that the base satisfies.

    A trial that breaks one of these has lost something it had, be it skill or budget. A constraint
    that the base does not satisfy (an accuracy still to be learned) or has no value for (beside
    in-domain tasks, the validation loss) may still be met through training.

    Args:
        constraints: constraints of the sweep.
        base: metrics of the untouched base's evaluation, where all forgetting and drift is 0.
    """
    metrics = {**dict.fromkeys(_COSTS, 0.0), **base}
    return [c for c in constraints if c.metric in metrics and c.holds(metrics[c.metric])]


class SuccessiveHalving:
    """The rule itself, free of Ray: maps measurements to "continue" or to a trial's outcome.

    Args:
        config: the rungs and the metrics to compare trials by.
        objectives: objectives of the sweep; trials are compared by these unless `config` names
            metrics.
        constraints: the sweep's constraints from `kept_by_base`. Breaking one at a rung ends the
            trial, since forgetting is seldom undone.
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
        """Take in what each trial measured in earlier runs of the command.

        Measurements are replayed in the order they arrived, by their times, so that each is judged
        against those that came before it. A step that a later attempt repeated counts where it
        first came. The final content of a rung does not depend on the order.

        Returns:
            The outcome of each trial that its last measurement stops. If the ledger still lists
            such a trial as running, its driver died between the decision and its record.
        """
        arrivals = [(number, each) for number, history in histories.items() for each in history]
        outcomes = {}
        for number, measurement in sorted(arrivals, key=lambda arrival: arrival[1].time):
            outcomes[number] = self.decide(number, measurement, trains[number])
        return {number: outcome for number, outcome in outcomes.items() if outcome is not None}

    def decide(self, number: int, measurement: Measurement, train: TrainConfig) -> Outcome | None:
        """How the trial should end now; None lets it continue.

        The last step is not a rung: a trial that gets there is complete.

        Args:
            number: of the trial.
            measurement: its newest.
            train: its training; only trials of equal length are compared.
        """
        total_steps = measurement.total_steps
        if total_steps is None or measurement.step >= total_steps:
            return None
        if reason := self._explodes(number, measurement):
            return Outcome(status=TrialStatus.DIVERGED, reason=reason)
        reached = [
            rung
            for rung in self._rungs_of(train)
            if step_at(rung.share, total_steps) <= measurement.step
        ]
        if not reached:
            return None
        reason = self._breaks_constraint(number, measurement, reached[-1])
        reason = reason or self._falls_behind(number, measurement, reached[-1])
        return Outcome(status=TrialStatus.STOPPED_EARLY, reason=reason) if reason else None

    def _rungs_of(self, train: TrainConfig) -> list[Rung]:
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
        """The standard errors of several losses; a single one is ranked as measured, as in ASHA."""
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
