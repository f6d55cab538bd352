"""The searcher: an Optuna study that asks, is told every ending rightly, and can be rebuilt."""

from __future__ import annotations

import hashlib
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher

from trainables.config import TrialConfig
from trainables.records import TrialRecord, TrialStatus
from tune.listeners import SweepListener
from tune.search_space import Params, distributions, grid_size, suggest
from tune.sweep_config import SweepConfig

logger = logging.getLogger(__name__)
MakeTrial = Callable[[int, Params, int], TrialConfig]

_POPULATION = 20  # of a generation of NSGA-II
# A trial that diverged or found no memory is infeasible, whatever it measured before.
_INFEASIBLE = (TrialStatus.DIVERGED, TrialStatus.OUT_OF_MEMORY)


class _GridSampler(optuna.samplers.BruteForceSampler):
    """Every point once. Does not stop the study at the end: the sweep counts its trials itself."""

    def after_trial(
        self, study: Any, trial: Any, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Nothing to do."""


class OptunaSearcher(Searcher, SweepListener):
    """Suggests trials to Tune and is told their endings as a listener of the sweep.

    The sampler is seeded anew for each trial from (sweep seed, trial number), so a study rebuilt
    from records suggests what the uninterrupted one would have.

    Args:
        config: the sweep.
        make_trial: turns a trial's number, parameters and attempt into its configuration.
        finished: records of earlier runs that count as they are.
        interrupted: records of trials to run again, before any new one is asked for.
    """

    def __init__(
        self,
        config: SweepConfig,
        make_trial: MakeTrial,
        finished: Sequence[TrialRecord] = (),
        interrupted: Sequence[TrialRecord] = (),
    ) -> None:
        super().__init__()
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._make_trial = make_trial
        self._again = sorted(interrupted, key=lambda record: record.number)
        self._asked: dict[int, optuna.Trial] = {}
        self._gpu_hours = 0.0
        # Of a kill among trials side by side a number may be left out; it is asked for again.
        self._numbers = {record.number for record in (*finished, *interrupted)}
        self.study = optuna.create_study(
            study_name=config.name,
            directions=[_direction(objective.mode) for objective in config.objectives],
        )
        self.study.set_metric_names([objective.metric for objective in config.objectives])
        for record in sorted([*finished, *interrupted], key=lambda record: record.number):
            if record.status is TrialStatus.RUNNING:
                self.study.add_trial(self._frozen(record, TrialState.RUNNING, None))
                frozen = self.study.get_trials(deepcopy=False)[-1]
                self._asked[record.number] = optuna.Trial(self.study, frozen._trial_id)
            else:
                self._add_finished(record)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its searcher for a restore that is never asked for."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial for Tune, or that there is none."""
        if self._again:
            record = self._again.pop(0)
            return self._for_tune(record.number, record.params, record.attempt + 1)
        if self._is_exhausted():
            # One that still runs may lose its process and have to be suggested again.
            return None if self._asked else str(Searcher.FINISHED)
        number = next(number for number in count() if number not in self._numbers)
        self._numbers.add(number)
        self.study.sampler = _sampler(self._config, number)
        trial = self.study.ask()
        self._asked[number] = trial
        params = suggest(self._config.search, partial(_draw, trial))
        return self._for_tune(number, params, attempt=1)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: endings arrive through `trial_ended`, where their kind is known."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger holds the search's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def trial_interrupted(self, record: TrialRecord) -> None:
        """Suggest the trial again, before any new one."""
        self._again.append(record)

    def trial_ended(self, record: TrialRecord) -> None:
        """Tell the study how a trial ended."""
        self._count_cost(record)
        trial = self._asked.pop(record.number)
        state, values = self._verdict(record)
        for key, value in self._constraints(record, state).items():
            trial.set_constraint(key, value)
        for key, text in _attributes(record).items():
            trial.set_user_attr(key, text)
        self.study.tell(trial, values, state=state)

    def export(self, file: Path) -> None:
        """Write the study to an Optuna journal, which `optuna-dashboard` opens."""
        unfinished = file.with_name(f".{file.name}")
        unfinished.unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(unfinished)))
        optuna.copy_study(
            from_study_name=self.study.study_name,
            from_storage=self.study._storage,
            to_storage=storage,
        )
        unfinished.replace(file)

    def _for_tune(self, number: int, params: Params, attempt: int) -> dict[str, Any]:
        trial = self._make_trial(number, params, attempt)
        return {"trial": trial.model_dump(mode="json"), "params": params, "attempt": attempt}

    def _is_exhausted(self) -> bool:
        asked = len(self.study.get_trials(deepcopy=False))
        budget = self._config.budget
        if asked >= budget.trials:
            return True
        if budget.gpu_hours is not None and self._gpu_hours >= budget.gpu_hours:
            return True
        points = grid_size(self._config.search) if self._config.sampler == "grid" else None
        return points is not None and asked >= points

    def _add_finished(self, record: TrialRecord) -> None:
        self._count_cost(record)
        state, values = self._verdict(record)
        self.study.add_trial(self._frozen(record, state, values))

    def _frozen(
        self, record: TrialRecord, state: TrialState, values: list[float] | None
    ) -> FrozenTrial:
        return create_trial(
            state=state,
            values=values,
            params=record.params,
            distributions=distributions(self._config.search, record.params),
            constraints=self._constraints(record, state) if state.is_finished() else None,
            user_attrs=_attributes(record),
            system_attrs=self._generation(),
        )

    def _generation(self) -> dict[str, int]:
        """The generation NSGA-II would count the next trial to, which records do not hold."""
        if self._config.sampler != "nsga2":
            return {}
        key = optuna.samplers.NSGAIISampler._get_generation_key()
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        generations = [trial.system_attrs.get(key, 0) for trial in complete]
        newest = max(generations, default=0)
        return {key: newest + (generations.count(newest) >= _POPULATION)}

    def _verdict(self, record: TrialRecord) -> tuple[TrialState, list[float] | None]:
        """How the study shall see an ending.

        Infeasible endings count as complete with the worst values seen, so that the sampler
        avoids their region; what failed for outside reasons is not held against it.
        """
        if record.status in _INFEASIBLE:
            return TrialState.COMPLETE, self._worst_values()
        if record.status is not TrialStatus.COMPLETE:
            return TrialState.FAIL, None
        values = [record.metric(objective.metric) for objective in self._config.objectives]
        if any(value is None or not math.isfinite(value) for value in values):
            logger.warning("trial %d logged no finite objective: %s", record.number, values)
            return TrialState.FAIL, None
        return TrialState.COMPLETE, [float(value) for value in values if value is not None]

    def _worst_values(self) -> list[float]:
        seen = [
            trial.values
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ]
        worst = []
        for index, objective in enumerate(self._config.objectives):
            column = [values[index] for values in seen] or [0.0]
            worst.append(max(column) if objective.mode == "min" else min(column))
        return worst

    def _constraints(self, record: TrialRecord, state: TrialState) -> dict[str, float]:
        if state is not TrialState.COMPLETE:
            return {}
        constraints = {"trained to the end": 1.0 if record.status in _INFEASIBLE else 0.0}
        for constraint in self._config.constraints:
            value = record.metric(constraint.metric)
            constraints[str(constraint)] = (
                1.0
                if value is None or record.status in _INFEASIBLE
                else constraint.violation(value)
            )
        return constraints

    def _count_cost(self, record: TrialRecord) -> None:
        self._gpu_hours += record.metric("cost/gpu_h") or 0.0


def _draw(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution)  # noqa: S101 - the space has no others
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def _attributes(record: TrialRecord) -> dict[str, str]:
    return {"status": record.status.value, "trial_id": record.config.trial_id}


def _direction(mode: str) -> str:
    return "minimize" if mode == "min" else "maximize"


def _sampler(config: SweepConfig, number: int) -> optuna.samplers.BaseSampler:
    """The configured sampler, seeded for one trial."""
    digest = hashlib.sha256(f"{config.seed}:{number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    match config.sampler:
        case "random":
            return optuna.samplers.RandomSampler(seed=seed)
        case "grid":
            return _GridSampler(seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=_POPULATION)
        case "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True
            )
