"""Early stopping: asynchronous successive halving over recorded measurements.

Rungs are rebuilt from the ledger at every start, so they survive whatever ends the driver, and
their axis is our own step, so a trial that was continued elsewhere is where it was.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from trainables.metric_keys import TRAIN_LOSS
from trainables.pareto import Constraint
from trainables.records import Measurement, Outcome, TrialStatus
from trainables.under_ray.reporting import MEASUREMENT
from tune.sweep_config import EarlyStoppingConfig


class EarlyStopping(FIFOScheduler):
    """Tune's scheduler around the rule; remembers why it stopped a trial."""

    def __init__(self, rule: SuccessiveHalving) -> None:
        super().__init__()
        self._rule = rule
        self._outcomes: dict[str, Outcome] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: the rungs are rebuilt from the ledger."""
        return {}

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


@dataclass
class Rung:
    """One level of successive halving.

    Attributes:
        step: optimizer steps at which trials are compared.
        scores: of the trials that have reached it, higher is better, sorted.
        compared: the trials that were compared here.
        allowed: the trials whose constraints held here.
    """

    step: int
    scores: list[float] = field(default_factory=list)
    compared: set[int] = field(default_factory=set)
    allowed: set[int] = field(default_factory=set)

    def admits(self, number: int, score: float, reduction_factor: float) -> bool:
        """Record a trial's score; whether it is among the best 1 / reduction_factor so far.

        As in ASHA (Li et al. 2018, 1810.05934) the decision is made at once, on those that came
        before; with fewer than `reduction_factor` of them every trial goes on. Their number is
        rounded up where the paper rounds down, which at a rung of five would keep a fifth for a
        third: tests/benchmarks/early_stopping.py shows what that costs.
        """
        if number not in self.compared:
            self.compared.add(number)
            insort(self.scores, score)
        if len(self.scores) < reduction_factor:
            return True
        keep = math.ceil(len(self.scores) / reduction_factor)
        return score >= self.scores[-keep]


class SuccessiveHalving:
    """The rule alone: from measurements to "goes on" or how the trial ends. No Ray in it.

    Args:
        config: metric, direction and rungs.
        constraints: bounds on the final metrics; one that is broken at a rung already ends a
            trial, since forgetting is seldom undone.
    """

    def __init__(self, config: EarlyStoppingConfig, constraints: Sequence[Constraint] = ()) -> None:
        self._config = config
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

    def _score(self, measurement: Measurement) -> float | None:
        """The weighted sum of the chosen metrics, higher is better; None where one is missing."""
        total = 0.0
        for metric, weight in self._config.metrics.items():
            value = measurement.metrics.get(metric)
            if value is None:
                return None
            total += weight * value
        return total

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
        score = self._score(measurement)
        if score is None or number in rung.compared:
            return None
        if rung.admits(number, score, self._config.reduction_factor):
            return None
        keep = f"best 1/{self._config.reduction_factor:g}"
        return f"not among the {keep} at step {measurement.step}"
