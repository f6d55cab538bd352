"""Early stopping: asynchronous successive halving over recorded measurements.

Rungs are rebuilt from the ledger at every start, so they survive whatever ends the driver, and
their axis is our own step, so a trial that was continued elsewhere is where it was.
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

from trainables.config import Objective
from trainables.metric_keys import (
    EPOCH,
    EVAL_SECONDS,
    GLOBAL_STEP,
    GPU_HOURS,
    MAX_RESERVED,
    TOKENS_SEEN,
    TRAIN_LOSS,
    TRAIN_SECONDS,
    TRAINABLE_PARAMETERS,
)
from trainables.results.pareto import Constraint
from trainables.results.records import Measurement, Outcome, TrialStatus
from trainables.under_ray.reporting import MEASUREMENT
from tune.in_order import InOrder
from tune.sweep_config import EarlyStoppingConfig

# What a trial has spent or holds: the untouched base nothing, and a trial never less than before.
_COSTS = (
    MAX_RESERVED,
    TRAIN_SECONDS,
    EVAL_SECONDS,
    GPU_HOURS,
    TRAINABLE_PARAMETERS,
    TOKENS_SEEN,
    EPOCH,
    GLOBAL_STEP,
)


class EarlyStopping(InOrder):
    """Tune's scheduler around the rule; remembers why it stopped a trial."""

    def __init__(self, rule: SuccessiveHalving) -> None:
        super().__init__()
        self._rule = rule
        self._outcomes: dict[str, Outcome] = {}

    def outcome(self, trial_id: str) -> Outcome | None:
        """How a trial ended that was stopped here; None for any other."""
        return self._outcomes.get(trial_id)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Let the trial go on, or stop it; one that confirms a winner always goes on."""
        measurement = _measurement(result)
        if measurement is None or trial.config["confirms"] is not None:
            return str(TrialScheduler.CONTINUE)
        outcome = self._rule.decide(int(trial.config["trial"]["number"]), measurement)
        if outcome is None:
            return str(TrialScheduler.CONTINUE)
        self._outcomes[trial.trial_id] = outcome
        return str(TrialScheduler.STOP)


def _measurement(flat: dict[str, Any]) -> Measurement | None:
    """The measurement in a result, which Tune flattens for its schedulers; None without one."""
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
        step: optimizer steps at which trials are compared.
        losses: of the trials that were compared here, [trials, losses]; lower is better.
        compared: their numbers.
        allowed: the trials whose constraints held here.
    """

    step: int
    losses: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    compared: set[int] = field(default_factory=set)
    allowed: set[int] = field(default_factory=set)

    def admits(self, number: int, losses: Sequence[float], reduction_factor: float) -> bool:
        """Record a trial's losses; whether less than 1 / reduction_factor of all are better.

        Better is who dominates it: no worse in any loss and lower in one. With one loss the best
        1 / reduction_factor go on. With several also a trial goes on that gives one for another,
        since the search is for all trade-offs: tests/benchmarks/search_economy.py shows how much
        of the front a weighted sum cuts off.

        As in ASHA (Li et al. 2018, 1810.05934) the decision is made at once, on those that came
        before; with fewer than `reduction_factor` of them every trial goes on. Their number is
        rounded up where the paper rounds down, which at a rung of five would keep a fifth for a
        third: tests/benchmarks/early_stopping.py shows what that costs.
        """
        own = np.array([losses])
        if number not in self.compared:
            self.losses = np.vstack([self.losses, own]) if self.compared else own
            self.compared.add(number)
        count = len(self.compared)
        if count < reduction_factor:
            return True
        is_better = (self.losses <= own).all(axis=1) & (self.losses < own).any(axis=1)
        return bool(is_better.sum() < math.ceil(count / reduction_factor))


def kept_by_base(constraints: Sequence[Constraint], base: Mapping[str, float]) -> list[Constraint]:
    """The constraints that can be judged before a trial's end: those that the base keeps.

    A trial that breaks one of these has lost what it had, be it skill or budget. What the base
    does not keep, such as an accuracy that is to be learned, or what it has no value of, such as
    the validation loss, training may yet bring within its bound.

    Args:
        constraints: of the sweep.
        base: metrics of the untouched base's evaluation, in which all forgetting and drift is 0.
    """
    metrics = {**dict.fromkeys(_COSTS, 0.0), **base}
    return [c for c in constraints if c.metric in metrics and c.holds(metrics[c.metric])]


class SuccessiveHalving:
    """The rule alone: from measurements to "goes on" or how the trial ends. No Ray in it.

    Args:
        config: rungs, and what trials are compared by.
        objectives: of the sweep; what trials are compared by unless the configuration says.
        constraints: bounds of which one that is broken at a rung already ends a trial, since
            forgetting is seldom undone; of the sweep's, those of `kept_by_base`.
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
        self._rungs: dict[int, list[Rung]] = {}
        self._first_loss: dict[int, float] = {}

    def replay(self, histories: Mapping[int, Sequence[Measurement]]) -> dict[int, Outcome]:
        """Take in what each trial measured in earlier runs of the command.

        The measurements are taken in the order of their times, so that each is judged by those
        that came before it. What a rung holds in the end does not depend on that order.

        Returns:
            How each trial ends whose last measurement was to be its last. One among them that
            still runs by the ledger lost its driver between the decision and its record.
        """
        arrivals = [(m, number) for number, history in histories.items() for m in history]
        outcomes = {}
        for measurement, number in sorted(arrivals, key=lambda arrival: arrival[0].time):
            outcomes[number] = self.decide(number, measurement)
        return {number: outcome for number, outcome in outcomes.items() if outcome is not None}

    def decide(self, number: int, measurement: Measurement) -> Outcome | None:
        """How the trial should end now; None lets it go on.

        The last step is no rung: who has come so far is complete.
        """
        total_steps = measurement.total_steps
        if total_steps is None or measurement.step >= total_steps:
            return None
        if reason := self._explodes(number, measurement):
            return Outcome(status=TrialStatus.DIVERGED, reason=reason)
        reached = [r for r in self._rungs_of(total_steps) if r.step <= measurement.step]
        if not reached:
            return None
        reason = self._breaks_constraint(number, measurement, reached[-1])
        reason = reason or self._falls_behind(number, measurement, reached[-1])
        return Outcome(status=TrialStatus.STOPPED_EARLY, reason=reason) if reason else None

    def _rungs_of(self, total_steps: int) -> list[Rung]:
        """Rungs at first_rung x reduction_factor^k of a training's length, below its end."""
        if total_steps not in self._rungs:
            steps = []
            share = self._config.first_rung
            while share < 1:
                steps.append(max(1, round(share * total_steps)))
                share *= self._config.reduction_factor
            self._rungs[total_steps] = [Rung(step) for step in sorted(set(steps))]
        return self._rungs[total_steps]

    def _losses(self, measurement: Measurement) -> list[float] | None:
        """What trials are compared by, lower is better; None where some of it is missing."""
        metrics, weights = measurement.metrics, self._config.metrics
        names = weights or [objective.metric for objective in self._objectives]
        if not metrics.keys() >= set(names):
            return None
        if weights:
            return [-sum(weight * metrics[name] for name, weight in weights.items())]
        return [objective.loss(metrics[objective.metric]) for objective in self._objectives]

    def _explodes(self, number: int, measurement: Measurement) -> str | None:
        loss = measurement.metrics.get(TRAIN_LOSS)
        if loss is None:
            return None
        first = self._first_loss.setdefault(number, loss)
        limit = self._config.loss_limit
        if limit is not None and loss > limit * first:
            return f"training loss {loss:.3g} is over {limit:g} x the first, {first:.3g}"
        return None

    def _breaks_constraint(self, number: int, measurement: Measurement, rung: Rung) -> str | None:
        """Looks once at a rung, at the first measurement there that has what is constrained."""
        if number in rung.allowed:
            return None
        for constraint in self._constraints:
            value = measurement.metrics.get(constraint.metric)
            if value is None:
                return None
            if not constraint.holds(value):
                return f"{constraint} is broken already: {value:.3g} at step {measurement.step}"
        rung.allowed.add(number)
        return None

    def _falls_behind(self, number: int, measurement: Measurement, rung: Rung) -> str | None:
        """Compares once at a rung, at the first measurement there that has what is compared."""
        losses = self._losses(measurement)
        if losses is None or number in rung.compared:
            return None
        if rung.admits(number, losses, self._config.reduction_factor):
            return None
        share = f"1/{self._config.reduction_factor:g}"
        if len(losses) > 1:
            return f"{share} of the trials dominate it at step {measurement.step}"
        return f"not among the best {share} at step {measurement.step}"
