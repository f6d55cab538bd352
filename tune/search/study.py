"""Optuna studies over trials of a sweep, made from their records."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from analysis.results.pareto import objective_values
from trainables.config import Constraint
from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.search_config import SearchConfig
from tune.config.sweep_config import SweepConfig
from tune.search.initial_design import InitialDesign
from tune.search.space import RECIPE, Params, axes, distributions, suggest

logger = logging.getLogger(__name__)

# What TPE learns from, and from how many trials on; until then, the initial design goes on.
_LEARNED_FROM = (TrialState.COMPLETE, TrialState.PRUNED)
_STARTUP = 10
# A trial that diverged or ran out of memory is infeasible, whatever it measured before.
_INFEASIBLE = (TrialStatus.DIVERGED, TrialStatus.OUT_OF_MEMORY)
_TRAINED = "trained to the end"
_LARGEST_MISS = 1e9  # of a constraint, as a share of its bound; also what was not measured
_DIRECTIONS = {"min": "minimize", "max": "maximize"}
# How many draws to make before a known point is accepted. TPE mostly draws from one peak, so in a
# space of lists it would repeat known points: as many random draws follow.
_DRAWS = 10


class _GridSampler(optuna.samplers.BruteForceSampler):
    """Samples every point once without stopping the study."""

    def after_trial(
        self, study: Any, trial: Any, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Do nothing: the sweep counts its own trials."""


class _TPESampler(optuna.samplers.TPESampler):
    """TPE that sees only a running trial's own point, as it does for a finished one."""

    def _get_params(self, trial: FrozenTrial, study: Any) -> Any:
        """The trial's own parameters.

        Optuna also counts the other recipes' parameters that it drew for a running trial. They
        would repel trials from points that nobody trains, and records do not hold them.
        """
        return trial.params


class Study:
    """An Optuna study over trials of the search, or of one of its recipes.

    It is made anew from the records for each question, so it does not matter in which order trials
    ended, nor whether the command was started again. The sampler is reseeded for each trial from
    (sweep seed, position in the search).

    It has all points of a trained model, each strength as a trial, as they are what is searched
    for. Knowing of strength 1 alone makes no difference that ten seeds show
    (tests/benchmarks/time_to_answer.py).

    Args:
        config: the sweep.
        recipe: the only one of the study; None for all.
    """

    def __init__(self, config: SweepConfig, recipe: str | None = None) -> None:
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._search = config.search if recipe is None else config.search.only(recipe)
        self._fixed: Params = {} if recipe is None else {RECIPE: recipe}
        # A study of one recipe has as many axes as are spread evenly, and fewer trials.
        self._startup = _STARTUP if recipe is None else _few_for(self._search, recipe)

    def ask(
        self,
        records: Sequence[TrialRecord],
        position: int,
        index: int,
        is_known: Callable[[Params], bool],
    ) -> Params:
        """A point for a trial.

        Args:
            records: of the study's trials, running ones included, in their order.
            position: of the trial in the search, which seeds the sampler.
            index: of the trial in this study.
            is_known: whether a point has been tried; such a point is returned only if all draws
                are known.
        """
        study = self.of(records)
        trained = [trial for trial in study.trials if trial.user_attrs["strength"] == 1]
        is_starting = sum(trial.state in _LEARNED_FROM for trial in trained) < self._startup
        draws = 2 * _DRAWS if self._config.sampler == "tpe" else _DRAWS
        for draw in range(draws):
            study.sampler = self._sampler(position, draw)
            if self._config.sampler == "tpe" and is_starting and not draw:
                study.sampler = InitialDesign(self._search, self._config.seed, index)
            trial = study.ask()
            params = self._fixed | suggest(self._search, partial(_draw, trial))
            if not is_known(params):
                break
            study.tell(trial, state=TrialState.FAIL)  # which samplers ignore
        return params

    def of(self, records: Sequence[TrialRecord]) -> optuna.Study:
        """The study of these trials, in this order."""
        study = new_study(self._config)
        for record in records:
            for point in record.curve:
                study.add_trial(self._frozen(point, records))
        return study

    def _frozen(self, record: TrialRecord, records: Sequence[TrialRecord]) -> FrozenTrial:
        state, values = self._verdict(record, records)
        intermediate = self._intermediate(record, state)
        drawn_from = distributions(self._search, record.params)
        return create_trial(
            state=state,
            values=list(intermediate.values()) or values,
            intermediate_values=intermediate,
            params={name: record.params[name] for name in drawn_from},
            distributions=drawn_from,
            constraints=self._constraints(record, state),
            user_attrs=_attributes(record),
        )

    def _sampler(self, position: int, draw: int) -> optuna.samplers.BaseSampler:
        """The configured sampler, seeded for one draw; TPE's last ones are random."""
        key = f"{self._config.seed}:{position}"
        digest = hashlib.sha256((f"{key}:{draw}" if draw else key).encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        match self._config.sampler:
            case "grid":
                return _GridSampler(seed=seed)
            case "tpe" if draw < _DRAWS:
                return _TPESampler(
                    seed=seed,
                    n_startup_trials=self._startup,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                )
        return optuna.samplers.RandomSampler(seed=seed)

    def _verdict(
        self, record: TrialRecord, records: Sequence[TrialRecord]
    ) -> tuple[TrialState, list[float] | None]:
        """The state and values of an outcome.

        Infeasible trials are complete with the worst values of all, so that the sampler avoids
        them. A trial that was stopped early is pruned, and a failure teaches nothing.
        """
        if record.status is TrialStatus.RUNNING:
            return TrialState.RUNNING, None
        if record.status in _INFEASIBLE:
            return TrialState.COMPLETE, self._worst_values(records)
        if record.status is TrialStatus.STOPPED_EARLY:
            return TrialState.PRUNED, None
        if record.status is not TrialStatus.COMPLETE:
            return TrialState.FAIL, None
        values = objective_values(self._config, record)
        if values is None:
            logger.warning("trial %d logged no finite value of an objective", record.number)
            return TrialState.FAIL, None
        return TrialState.COMPLETE, values

    def _worst_values(self, records: Sequence[TrialRecord]) -> list[float]:
        complete = [record for record in records if record.status is TrialStatus.COMPLETE]
        values = [objective_values(self._config, record) for record in complete]
        seen = [each for each in values if each is not None]
        return [
            max([each[index] for each in seen] or [0.0], key=objective.loss)
            for index, objective in enumerate(self._config.objectives)
        ]

    def _intermediate(self, record: TrialRecord, state: TrialState) -> dict[int, float]:
        """The value by which Optuna ranks a pruned trial; it has none with several objectives."""
        if state is not TrialState.PRUNED or len(self._config.objectives) > 1:
            return {}
        value = record.metric(self._config.objectives[0].metric)
        return {record.last.step: value} if record.last and value is not None else {}

    def _constraints(self, record: TrialRecord, state: TrialState) -> dict[str, float]:
        """How far the trial is from being feasible, for complete and pruned trials.

        Samplers prefer the lowest sum of the values above 0. So each value is a share of its bound,
        and the largest where a metric is missing or the trial diverged or ran out of memory.
        """
        if state not in (TrialState.COMPLETE, TrialState.PRUNED):
            return {}
        infeasible = record.status in _INFEASIBLE
        constraints = {_TRAINED: _LARGEST_MISS if infeasible else 0.0}
        for constraint in self._config.constraints:
            value = None if infeasible else record.metric(constraint.metric)
            constraints[str(constraint)] = _miss(constraint, value)
        return constraints


def new_study(config: SweepConfig, storage: BaseStorage | None = None) -> optuna.Study:
    """An empty study with the sweep's name and objectives."""
    study = optuna.create_study(
        study_name=config.name,
        storage=storage,
        directions=[_DIRECTIONS[objective.mode] for objective in config.objectives],
    )
    study.set_metric_names([objective.metric for objective in config.objectives])
    return study


def _few_for(search: SearchConfig, recipe: str) -> int:
    """How many trials of one recipe start its search."""
    return min(_STARTUP, 2 * len(list(axes(search, recipe))) + 2)


def _draw(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution)  # noqa: S101 - the space has no others
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _miss(constraint: Constraint, value: float | None) -> float:
    """How far a metric is beyond its bound, as a share of it; in its own unit if the bound is 0."""
    if value is None:
        return _LARGEST_MISS
    return min(constraint.violation(value) / (abs(constraint.bound) or 1.0), _LARGEST_MISS)


def _attributes(record: TrialRecord) -> dict[str, str | float]:
    trial = {"status": record.status.value, "trial_id": record.config.trial_id}
    return {**trial, "strength": record.strength}
