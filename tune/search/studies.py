"""The studies of a sweep: one of all trials, or one of each recipe if the search is balanced."""

from __future__ import annotations

import copy
from collections.abc import Set
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from trainables.records.schema import TrialRecord
from tune.config.sweep_config import SweepConfig
from tune.search.history import SearchHistory
from tune.search.space import RECIPE, Params
from tune.search.study import Study, new_study


class Studies:
    """Asks and tells the study that a trial belongs to.

    In a balanced search the next trial is of the recipe that has fewest trials of lower number, the
    first in the file of several, and its sampler learns from trials of that recipe alone.

    Args:
        config: the sweep.
    """

    def __init__(self, config: SweepConfig) -> None:
        self._config = config
        is_split = config.search.is_balanced and len(config.search.recipes) > 1
        recipes = config.search.recipes if is_split else ()
        self._of_recipe = {recipe: Study(config, recipe) for recipe in recipes}
        self._all = [*self._of_recipe.values()] or [Study(config)]

    @property
    def optuna(self) -> optuna.Study:
        """The study of all trials; of a balanced search, a copy."""
        if not self._of_recipe:
            return self._all[0].optuna
        study = new_study(self._config)
        study.add_trials(self._trials())
        return study

    def ask(self, number: int, history: SearchHistory) -> Params:
        """A point for a trial that is not in the history yet."""

        def is_known(point: Params) -> bool:
            return history.tried(point) > 0

        position = history.position(number)
        if not self._of_recipe:
            return self._all[0].ask(number, position, position, is_known)
        before = history.recipes_before(number)
        recipes = [each for each in self._of_recipe if before[each] < self._most(each)]
        recipe = min(recipes or self._of_recipe, key=before.__getitem__)
        return self._of_recipe[recipe].ask(number, position, before[recipe], is_known)

    def _most(self, recipe: str) -> float:
        """How many trials a recipe has at most: a grid has so many points."""
        is_grid = self._config.sampler == "grid"
        return self._config.search.grid_size(recipe) if is_grid else float("inf")

    def withdraw_all_but(self, numbers: Set[int]) -> None:
        """Forget the other suggestions, which will never run."""
        for study in self._all:
            study.withdraw_all_but(numbers)

    def tell(self, record: TrialRecord) -> None:
        """Tell how a trial ended that was asked for or added as running."""
        self._study(record).tell(record)

    def add(self, record: TrialRecord) -> None:
        """Add a trial that was not asked for: an earlier one, or a point of `search.first`."""
        self._study(record).add(record)

    def count_points(self) -> int:
        """Number of different points that trials have run or will."""
        return sum(study.count_points() for study in self._all)

    def export(self, file: Path) -> None:
        """Write the trials to an Optuna journal that `optuna-dashboard` can open."""
        unfinished = file.with_name(f".{file.name}")
        unfinished.unlink(missing_ok=True)
        exported = new_study(self._config, JournalStorage(JournalFileBackend(str(unfinished))))
        exported.add_trials(self._trials())
        unfinished.replace(file)

    def _study(self, record: TrialRecord) -> Study:
        return self._of_recipe.get(record.config.recipe, self._all[0])

    def _trials(self) -> list[FrozenTrial]:
        """The trials of all studies, in the order in which they were asked for or added."""
        if not self._of_recipe:
            return self._all[0].trials()
        distribution = CategoricalDistribution(self._config.search.recipes)
        found = []
        for recipe, study in self._of_recipe.items():
            for trial in map(copy.deepcopy, study.trials()):
                trial.params = {RECIPE: recipe, **trial.params}
                trial.distributions = {RECIPE: distribution, **trial.distributions}
                found.append(trial)
        return sorted(found, key=lambda trial: trial.datetime_start)
