"""The trial to take, and why.

The sweep's final message and the report both ask here, so they never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from analysis.results.formatting import alteration, candidate_noun, capitalized, metric_text
from analysis.results.pareto import Goals, is_feasible, objective_values, pareto_front, violation
from analysis.results.repeats import judged_by_repeats
from analysis.results.trade_off import distance_to_ideal, objective_ranges, scaling_trials
from trainables.records.schema import PointId, TrialRecord, TrialStatus, points_of

_MOST_NUMBERS = 10
Names = Callable[[Sequence[TrialRecord]], str]


@dataclass(frozen=True)
class Recommendation:
    """The trial to take, and why, in a few sentences.

    Attributes:
        trial: always a complete one, at the strength to take it at.
        reason: derived from the records.
        feasible: whether it meets every constraint.
    """

    trial: TrialRecord
    reason: str
    feasible: bool = True

    @property
    def word(self) -> str:
        """What the trial is called: the nearest to keeping the constraints is not recommended."""
        return "recommended" if self.feasible else "nearest"


def recommend(
    goals: Goals,
    records: Sequence[TrialRecord],
    judged: Sequence[TrialRecord] | None = None,
    names: Names | None = None,
) -> Recommendation | None:
    """The trial to take, at one of its points; None if no complete trial has every objective.

    With one objective, the best; with several, the knee of the Pareto front: the trial nearest to
    the best of every objective after scaling each to [0, 1] over `scaling_trials`, or over two of
    its standard errors if they differ by less. If no trial meets the constraints, the one with the
    smallest total miss, each as a share of its bound. Ties go to the lower number, and of one trial
    to the lower strength.

    If the trial that the search alone would have taken was repeated, or breaks a constraint, a
    repeated trial is taken, unless none meets the constraints on average and trains to its end.

    `judged` are trials repeated with other seeds, by default those of `judged_by_repeats`; `names`
    is how the reason names trials, by default by their numbers.
    """
    names = names or numbers_text
    if judged is None:
        judged = judged_by_repeats(records, goals.confirm)
    points = points_of(records)
    by_search = _choose(goals, points, scaling_trials(goals, points), names)
    if by_search is None:
        return None
    taken, is_judged = by_search, _point_id(by_search.trial) in map(_point_id, judged)
    if is_judged or not by_search.feasible:
        by_repeats = _by_repeats(goals, points, judged, by_search, names)
        taken = by_repeats if is_judged or by_repeats.feasible else by_search
    return replace(taken, reason=taken.reason + _as_trained(goals, records, judged, taken.trial))


def _point_id(record: TrialRecord) -> PointId:
    return record.point_id


def _as_trained(
    goals: Goals,
    records: Sequence[TrialRecord],
    judged: Sequence[TrialRecord],
    taken: TrialRecord,
) -> str:
    """What a trial that is taken at another point is as training left it, as a sentence.

    By the means over repeats if these judge it, as they then judge the point that is taken.
    """
    if not taken.is_altered:
        return ""
    of_trial = [r for r in (*judged, *records) if r.config.trial_id == taken.config.trial_id]
    trained = (r for r in of_trial if not r.is_altered and objective_values(goals, r) is not None)
    found = next(trained, None)
    if found is None:
        return ""
    share = f" That is the base plus {taken.strength:g} of what training changed;"
    begin = " As trained, at strength 1," if taken.repair else f"{share} as trained, at strength 1,"
    return f"{begin} it has {_objectives(goals, found)}."


def _by_repeats(
    goals: Goals,
    records: Sequence[TrialRecord],
    judged: Sequence[TrialRecord],
    by_search: Recommendation,
    names: Names,
) -> Recommendation:
    scale = [*scaling_trials(goals, records), *pareto_front(goals, judged)]
    repeated = {record.config.trial_id for record in judged}
    own = {_point_id(r): r for r in records if objective_values(goals, r) is not None}
    sound = [record for record in judged if _point_id(record) in own]
    # What breaks a constraint by its own run was not to be taken, whatever repeats say.
    asked = [r for r in judged if is_feasible(goals, own.get(_point_id(r), r))] or judged
    found = _choose(goals, sound, scale, names, kind="repeated")
    if found is None or not found.feasible:
        others = [record for record in records if record.config.trial_id not in repeated]
        other = _choose(goals, others, scale, names)
        if other and (other.feasible or found is None):
            why_not = refuted(goals, asked, names)
            return replace(other, reason=f"{why_not}; of the others, {other.reason}")
    if found is None:
        reason = f"{by_search.reason}{_as_sentence(refuted(goals, asked, names))}"
        return replace(by_search, reason=reason)
    trial = own[_point_id(found.trial)]
    # Where all break a constraint, the reason has said so.
    shown = [r for r in asked if found.feasible or r.status is TrialStatus.DIVERGED]
    why_not = refuted(goals, shown, names)
    reason = f"by the means over repeats with other seeds, {found.reason}{_as_sentence(why_not)}"
    if trial is not by_search.trial:
        reason += f" One run of each would have chosen {names([by_search.trial])}."
    return Recommendation(trial, reason, found.feasible)


def refuted(goals: Goals, judged: Sequence[TrialRecord], names: Names) -> str:
    """Which trials cannot be taken and why, such as `with another seed trial 8 diverged`.

    `judged`: see `recommend`. Empty if repeats speak against none.
    """
    found: dict[str, dict[PointId, TrialRecord]] = {}
    for record in judged:
        if record.status is TrialStatus.DIVERGED:
            fault = "with another seed {} diverged"
            record = _whole(record)
        elif objective_values(goals, record) is None:
            fault = "with another seed {} had no finite value of an objective"
        elif not is_feasible(goals, record):
            fault = "in the mean over other seeds {} broke a constraint"
        else:
            continue
        found.setdefault(fault, {})[_point_id(record)] = record
    return ", and ".join(fault.format(names([*own.values()])) for fault, own in found.items())


def _whole(record: TrialRecord) -> TrialRecord:
    """The trial that this is a point of, by its name: a training diverges at every strength."""
    return record.model_copy(update={"strength": 1.0, "repair": None})


def _as_sentence(text: str) -> str:
    return f" {capitalized(text)}." if text else ""


def _choose(
    goals: Goals,
    records: Sequence[TrialRecord],
    scale: list[TrialRecord],
    names: Names,
    kind: str = "complete",
) -> Recommendation | None:
    """The best of the records by themselves, which the reason calls trials of this kind."""
    ranked = [record for record in records if objective_values(goals, record) is not None]
    if not ranked:
        return None
    front = pareto_front(goals, ranked)
    if not front:
        return _least_infeasible(goals, ranked, kind)
    feasible = sum(is_feasible(goals, record) for record in ranked)
    noun = candidate_noun(ranked)
    if feasible == 1:
        rest = "that keeps every constraint" if goals.constraints else "to choose from"
        only = f"the only {kind} {noun} {rest}: {_objectives(goals, front[0])}."
        return Recommendation(front[0], only)
    among = f"{feasible} {kind} {noun}s"
    if goals.constraints:
        among += " that keep every constraint"
    if len(goals.objectives) == 1:
        return _best(goals, front, among, names)
    return _knee(goals, front, scale, among, names)


def _least_infeasible(goals: Goals, ranked: list[TrialRecord], kind: str) -> Recommendation:
    def total(record: TrialRecord) -> float:
        misses = ((c, max(violation(c, record), 0.0)) for c in goals.constraints)
        return sum(miss / (abs(c.bound) or 1.0) for c, miss in misses)

    trial = min(ranked, key=lambda record: (total(record), record.number))
    broken = [
        f"{c.metric} is {_exactly(trial.metric(c.metric))}, not {c.operator} {c.bound:g}"
        for c in goals.constraints
        if violation(c, trial) > 0
    ]
    noun = candidate_noun(ranked)
    nearest = (
        f", and of {len(ranked)} {kind} {noun}s this one misses them by the least: "
        if len(ranked) > 1
        else f": of the only {kind} one "
    )
    reason = f"no {noun} keeps every constraint{nearest}{' and '.join(broken)}."
    return Recommendation(trial, reason, feasible=False)


def _exactly(value: float | None) -> str:
    """More digits than elsewhere: 0.0502 is not <= 0.05, but 0.050 would seem to be."""
    return "missing" if value is None else f"{value:g}"


def _best(goals: Goals, front: list[TrialRecord], among: str, names: Names) -> Recommendation:
    objective = goals.objectives[0]
    value = metric_text(objective.metric, front[0].metric(objective.metric))
    extreme = "lowest" if objective.mode == "min" else "highest"
    reason = f"{extreme} {objective.metric} ({value}) of {among}"
    return Recommendation(front[0], f"{reason}{_as_good(front[1:], names)}.")


def _knee(
    goals: Goals, front: list[TrialRecord], scale: list[TrialRecord], among: str, names: Names
) -> Recommendation:
    ranges = objective_ranges(goals, scale)
    distances = [distance_to_ideal(goals, record, ranges) for record in front]
    nearest = [r for r, d in zip(front, distances, strict=True) if d == min(distances)]
    trial, *others = nearest
    text = _objectives(goals, trial)
    if len(front) == 1:
        return Recommendation(trial, f"best in every objective of {among}: {text}.")
    reason = (
        f"the knee of the front's {len(front)} {candidate_noun(front)}s, nearest to the best of "
        f"every objective at once: {text}"
    )
    return Recommendation(trial, f"{reason}{_as_good(others, names)}.")


def _objectives(goals: Goals, trial: TrialRecord) -> str:
    """Such as `in_domain/acc_mean 0.812, forgetting/mean +0.031`."""
    metrics = (objective.metric for objective in goals.objectives)
    return ", ".join(f"{metric} {metric_text(metric, trial.metric(metric))}" for metric in metrics)


def _as_good(others: list[TrialRecord], names: Names) -> str:
    return f" (as good: {names(others)})" if others else ""


def numbers_text(records: Sequence[TrialRecord]) -> str:
    """Such as `trials 3, 5 at strength 0.4 and 12 more`."""
    shown = records[:_MOST_NUMBERS]
    numbers = ", ".join(f"{record.number}{alteration(record)}" for record in shown)
    more = len(records) - _MOST_NUMBERS
    text = f"trial{'s' if len(records) > 1 else ''} {numbers}"
    return f"{text} and {more} more" if more > 0 else text
