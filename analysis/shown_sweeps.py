"""Sweeps that are shown together, with derived values computed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.item_comparison import Items
from analysis.results.formatting import alteration, candidate_noun, score_metrics
from analysis.results.item_metrics import limits, rounding
from analysis.results.pareto import (
    can_be_taken,
    is_feasible,
    measured_points,
    objective_values,
    pareto_front,
)
from analysis.results.recommendation import Recommendation, numbers_text, recommend
from analysis.results.repeats import best_confirmed, find_repeats, judged_by_repeats, metrics_over
from analysis.results.sample_size import FEWEST_OF_CAPACITY
from analysis.results.trade_off import trade_off_ranges
from analysis.stats.intervals import Interval, over_seeds
from analysis.sweeps import Sweep
from trainables.config import Role
from trainables.methods.base import Capacity
from trainables.metric_keys import domain_metric
from trainables.records.schema import (
    BaseRecord,
    PointId,
    TaskScore,
    TrialRecord,
    TrialStatus,
)


@dataclass(frozen=True)
class Group:
    """The complete trials of one sweep, recipe and capacity.

    Attributes:
        label: such as `LoRA, rank 8`, with the sweep if there are several.
        recipe: its name in the sweep file.
        title: what labels call the recipe.
        capacity: None if the recipe's method has one size only.
        best: the point of its trials that `Results.nearest_to_ideal` takes.
        picked_from: number of models that the best was picked from, as `Results.candidates`.
        trained: number of trials among these.
    """

    label: str
    sweep: Sweep
    recipe: str
    title: str
    capacity: Capacity | None
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    picked_from: int
    trained: int

    @property
    def is_tried(self) -> bool:
        """Whether its best was picked from enough trials to tell capacities apart."""
        return self.trained >= FEWEST_OF_CAPACITY


class Results:
    """One or several sweeps with the same model and evaluation.

    Objectives and constraints are those of the first sweep.

    Attributes:
        items: compares trials item by item.
    """

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self.sweeps = tuple(sweeps)
        self.goals = sweeps[0].settings
        self._sweep_of = {r.config.trial_id: sweep for sweep in sweeps for r in sweep.trials}
        self.items = Items(sweeps, self._sweep_of)

    @property
    def base(self) -> BaseRecord:
        """The untouched base model."""
        return self.sweeps[0].base

    @property
    def gain(self) -> str:
        """Key of what tells how well the domain is learned, see `domain_metric`."""
        return domain_metric(self.base.metrics)

    @property
    def scores(self) -> tuple[str, ...]:
        """The metrics that every sweep is judged by, as far as it has the tasks."""
        return score_metrics(self.base.metrics)

    @property
    def judged_by(self) -> tuple[str, ...]:
        """Metrics that a trial is judged by: the scores, then objectives that are none of them."""
        return tuple(dict.fromkeys([*self.scores, *(o.metric for o in self.goals.objectives)]))

    @property
    def plotted_against(self) -> list[str]:
        """What the gain is plotted against: what else a complete trial has of `judged_by`."""
        others = (metric for metric in self.judged_by if metric != self.gain)
        return [m for m in others if any(r.metric(m) is not None for r in self.complete)]

    @cached_property
    def trials(self) -> list[TrialRecord]:
        """Every trial of every sweep, with failed ones and repeats with other seeds."""
        return [record for sweep in self.sweeps for record in sweep.trials]

    @cached_property
    def search_trials(self) -> list[TrialRecord]:
        """Every trial of the search, without repeats with other seeds."""
        return [record for record in self.trials if record.confirms is None]

    @cached_property
    def complete(self) -> list[TrialRecord]:
        """Trials of the search that completed and have every objective."""
        return [r for r in self.search_trials if objective_values(self.goals, r) is not None]

    @cached_property
    def points(self) -> list[TrialRecord]:
        """The complete trials, at each strength and as each repair left them."""
        return measured_points(self.goals, self.complete)

    @cached_property
    def candidates(self) -> list[TrialRecord]:
        """What the best was picked from: all points, and the trials that were stopped early."""
        return [*self.points, *self._stopped]

    @property
    def candidate_noun(self) -> str:
        """What the candidates are counted as: `trial`, or `model` where a trial has several."""
        return candidate_noun(self.candidates)

    @cached_property
    def _stopped(self) -> list[TrialRecord]:
        return [r for r in self.search_trials if r.status is TrialStatus.STOPPED_EARLY]

    def more_stopped(self, sweep: Sweep | None = None, recipe: str | None = None) -> str:
        """Such as `; 5 more trials were stopped early by their scores`; empty if none."""
        stopped = self.of(sweep, self._stopped) if sweep else self._stopped
        count = sum(recipe in (None, record.config.recipe) for record in stopped)
        if count == 1:
            return "; 1 more trial was stopped early by its scores"
        return f"; {count} more trials were stopped early by their scores" if count else ""

    @cached_property
    def recipes(self) -> list[str]:
        """The recipes that were searched, in the order of the sweeps' files."""
        found = {record.config.recipe for record in self.search_trials}
        in_files = [name for sweep in self.sweeps for name in sweep.settings.search]
        of_trials = [record.config.recipe for record in self.search_trials]
        return [name for name in dict.fromkeys([*in_files, *of_trials]) if name in found]

    def recipe_trials(self, recipe: str, sweep: Sweep) -> list[TrialRecord]:
        """A sweep's complete trials of a recipe."""
        return [r for r in self.of(sweep, self.complete) if r.config.recipe == recipe]

    def recipe_points(self, recipe: str, sweep: Sweep) -> list[TrialRecord]:
        """The points of a sweep's complete trials of a recipe."""
        return [r for r in self.of(sweep, self.points) if r.config.recipe == recipe]

    @cached_property
    def front(self) -> list[TrialRecord]:
        """The Pareto front."""
        return pareto_front(self.goals, self.points)

    def is_on_front(self, record: TrialRecord) -> bool:
        """Whether this point of a trial is on the Pareto front."""
        return record.point_id in self._front_ids

    @cached_property
    def _front_ids(self) -> frozenset[PointId]:
        return frozenset(record.point_id for record in self.front)

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The recommended trial; None if none is complete."""
        return recommend(self.goals, self.points, [*self.judged.values()], self.names)

    @cached_property
    def judged(self) -> dict[PointId, TrialRecord]:
        """By `point_id`, what repeats with other seeds judge: see `judged_by_repeats`."""
        judged = (judged_by_repeats(s.trials, s.settings.confirm) for s in self.sweeps)
        return {record.point_id: record for of_sweep in judged for record in of_sweep}

    def keeps_constraints(self, record: TrialRecord) -> bool:
        """Whether a trial keeps every constraint: in the mean over repeats if these judge it.

        One that diverged with another seed is judged by its own run: it has no mean over all.
        """
        return is_feasible(self.goals, self._judged_or_own(record))

    def can_be_taken(self, record: TrialRecord) -> bool:
        """Whether it also is complete, with every objective, with every seed."""
        return can_be_taken(self.goals, self._judged_or_own(record))

    def _judged_or_own(self, record: TrialRecord) -> TrialRecord:
        return self.judged.get(record.point_id, record)

    @cached_property
    def groups(self) -> list[Group]:
        """By recipe, then by capacity; groups without a complete trial are left out.

        Each sweep has its own, beside those of the others: in one of several sweeps, what else
        differs between these would be taken for chance or for an effect of the capacity.
        """
        found = [
            self._group(sweep, recipe, capacity)
            for recipe in self.recipes
            for capacity in self._capacities(recipe)
            for sweep in self.sweeps
        ]
        return [group for group in found if group is not None]

    def _capacities(self, recipe: str) -> list[Capacity | None]:
        """Those of a recipe's complete trials, in order; None comes last."""
        found = {r.config.capacity for r in self.complete if r.config.recipe == recipe}
        sized = sorted((each for each in found if each), key=lambda each: (each.order, each.name))
        return [*sized, None] if None in found else [*sized]

    def _group(self, sweep: Sweep, recipe: str, capacity: Capacity | None) -> Group | None:
        def own(records: Iterable[TrialRecord]) -> list[TrialRecord]:
            configs = ((record, record.config) for record in self.of(sweep, records))
            return [r for r, c in configs if (c.recipe, c.capacity) == (recipe, capacity)]

        trials = own(self.complete)
        if not trials:
            return None
        config = trials[0].config
        return Group(
            config.group_label + self.whose(sweep),
            sweep,
            recipe,
            config.recipe_title,
            capacity,
            tuple(trials),
            self.nearest_to_ideal(own(self.points)),
            len(own(self.candidates)),
            len(trials) + len(own(self._stopped)),
        )

    def sized(self, recipe: str, sweep: Sweep) -> list[Group]:
        """A sweep's groups of a recipe that have a capacity, in its order."""
        own = (group for group in self.groups if (group.recipe, group.sweep) == (recipe, sweep))
        return [group for group in own if group.capacity is not None]

    def reference(self, sweep: Sweep) -> Group | None:
        """The group to compare a sweep's others with; None if there is nothing to choose from.

        That of full fine-tuning, where a recipe trains the base's own weights: of another sweep
        if this one has none, as methods may be swept one by one. Else the best of the first recipe,
        if the sweep has several.
        """
        found = [group for group in self.groups if group.best.config.method.changes_base]
        if not found:
            own = [group for group in self.groups if group.sweep is sweep]
            if len({group.recipe for group in own}) < 2:
                return None
            found = [group for group in own if group.recipe == own[0].recipe]
        recipe, of = min(
            ((g.recipe, g.sweep) for g in found), key=lambda each: each[1] is not sweep
        )
        groups = [group for group in found if (group.recipe, group.sweep) == (recipe, of)]
        best = self.nearest_to_ideal([group.best for group in groups])
        return next(group for group in groups if group.best is best)

    def nearest_to_ideal(self, trials: Sequence[TrialRecord]) -> TrialRecord:
        """The best trade-off among these points of complete trials, on the scale of all.

        It is the recommended one if that is one of them, or else the one that a sweep by itself
        would recommend: repeats may have decided. Else those that repeats refuted come last.
        """
        own = {record.point_id: record for record in trials}
        for taken in self._taken:
            if taken in own:
                return own[taken]
        return best_confirmed(self.goals, trials, self.judged, self._ranges)

    @cached_property
    def _taken(self) -> list[PointId]:
        """Ids of the recommended point, and of what each sweep by itself would recommend."""
        judged = self.judged.values()
        several = self.sweeps if len(self.sweeps) > 1 else ()
        alone = (recommend(self.goals, s.trials, self.of(s, judged)) for s in several)
        found = [self.recommendation, *alone]
        return [taken.trial.point_id for taken in found if taken]

    @cached_property
    def _ranges(self) -> list[tuple[float, float]]:
        return trade_off_ranges(self.goals, self.points)

    def name(self, record: TrialRecord) -> str:
        """Such as `trial 7 at strength 0.4`, with its sweep if there are several."""
        return f"trial {record.number}{alteration(record)}{self.whose(self.sweep(record))}"

    def names(self, records: Sequence[TrialRecord]) -> str:
        """Such as `trials 3, 5 and 12 more`, for each sweep if there are several."""
        if len(self.sweeps) == 1:
            return numbers_text(records)
        own = [(s.title, self.of(s, records)) for s in self.sweeps]
        return ", ".join(f"{numbers_text(of)} of {name}" for name, of in own if of)

    def sweep(self, record: TrialRecord) -> Sweep:
        """The sweep that a trial belongs to."""
        return self._sweep_of[record.config.trial_id]

    def of(self, sweep: Sweep, records: Iterable[TrialRecord]) -> list[TrialRecord]:
        """Those of the records that belong to a sweep."""
        return [record for record in records if self.sweep(record) is sweep]

    def whose(self, sweep: Sweep) -> str:
        """Such as ` of first`; empty if there is one sweep."""
        return f" of {sweep.title}" if len(self.sweeps) > 1 else ""

    def tasks(self, role: Role) -> dict[str, TaskScore]:
        """The base's scores on the tasks of a role."""
        return {label: task for label, task in self.base.scores.items() if task.role == role}

    def over_seeds(self, record: TrialRecord, metric: str) -> Interval | None:
        """Interval over a trial's complete repeats with other seeds; None for fewer than two.

        The trial itself is left out: it was picked for being the best, so it was lucky.
        """
        scores = self.base.scores
        found = over_seeds(self.repeated(record, metric), rounding(metric, scores))
        return found and found.within(*limits(metric, scores))

    def repeats(self, record: TrialRecord) -> list[TrialRecord]:
        """A trial's complete or diverged repeats with other seeds."""
        return find_repeats(record, self.sweep(record).trials)

    def repeated(self, record: TrialRecord, metric: str) -> list[float]:
        """A metric in each of a trial's complete repeats; empty unless all of them have it."""
        return metrics_over(self.repeats(record)).get(metric, [])
