"""The studies of a sweep: one of all trials, or one of each recipe if the search is balanced."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.sweep_config import SweepConfig
from tune.search.history import SearchHistory
from tune.search.space import Params
from tune.search.study import Study, new_study


class Studies:
    """Draws points for trials, from what is known of those before.

    In a balanced search the next trial is of the recipe that has fewest trials of lower number, the
    first in the file of several, and its sampler learns from trials of that recipe alone.

    Args:
        config: the sweep.
        warm: trials of other sweeps that the samplers learn from.
    """

    def __init__(self, config: SweepConfig, warm: Sequence[TrialRecord] = ()) -> None:
        self._config = config
        is_split = config.search.is_balanced and len(config.search.recipes) > 1
        recipes = config.search.recipes if is_split else ()
        self._of_recipe = {recipe: Study(config, recipe) for recipe in recipes}
        self._of_all = Study(config)
        self._warm = list(warm)
        self._own: dict[int, TrialRecord] = {}

    @property
    def optuna(self) -> optuna.Study:
        """The study of all trials."""
        return self._of_all.of(self._records())

    def take(self, record: TrialRecord) -> None:
        """Take a trial as it stands, in place of what was known of it: it begins, or has ended."""
        self._own[record.number] = record

    def ask(self, number: int, history: SearchHistory) -> Params:
        """A point for a trial that is not in the history yet."""

        def is_known(point: Params) -> bool:
            return history.tried(point) > 0

        position = history.position(number)
        if not self._of_recipe:
            return self._of_all.ask(self._records(), position, position, is_known)
        before = history.recipes_before(number)
        recipes = [each for each in self._of_recipe if before[each] < self._most(each)]
        recipe = min(recipes or self._of_recipe, key=before.__getitem__)
        records = [record for record in self._records() if record.config.recipe == recipe]
        return self._of_recipe[recipe].ask(records, position, before[recipe], is_known)

    def _records(self) -> list[TrialRecord]:
        """The trials that the samplers learn from: first those of other sweeps, then by number."""
        return [*self._warm, *(self._own[number] for number in sorted(self._own))]

    def _most(self, recipe: str) -> float:
        """How many trials a recipe has at most: a grid has so many points."""
        is_grid = self._config.sampler == "grid"
        return self._config.search.grid_size(recipe) if is_grid else float("inf")

    def withdraw_all_but(self, numbers: Set[int]) -> None:
        """Forget the other suggestions, which will never run."""
        self._own = {
            number: record
            for number, record in self._own.items()
            if number in numbers or record.status is not TrialStatus.RUNNING
        }

    def count_points(self) -> int:
        """Number of different points that trials have run or will."""
        return len({frozenset(record.params.items()) for record in self._records()})

    def export(self, file: Path) -> None:
        """Write the trials to an Optuna journal that `optuna-dashboard` can open."""
        unfinished = file.with_name(f".{file.name}")
        unfinished.unlink(missing_ok=True)
        exported = new_study(self._config, JournalStorage(JournalFileBackend(str(unfinished))))
        exported.add_trials(self.optuna.trials)
        unfinished.replace(file)
