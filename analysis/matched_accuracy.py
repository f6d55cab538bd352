"""Forgetting of recipes at one accuracy in the domain: who learns more may forget more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.shown_sweeps import Results
from analysis.stats.intervals import Interval
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    OOD_ACC,
    TOKENS_SEEN,
    TRAIN_SECONDS,
    TRAINABLE_PARAMETERS,
)
from trainables.records.schema import TrialRecord

_LEAST_SHARE = 0.5
"""Of the largest gain in the domain; recipes that gain less do not lower the level."""


@dataclass(frozen=True)
class MatchedRow:
    """A recipe's trial, at the strength at which it forgets least of those that reach the level.

    Attributes:
        label: what labels call the recipe, with the sweep if there are several.
        level: in-domain accuracy.
        trial: if none reaches the level, the one that comes nearest.
        reaches: whether it reaches the level.
        picked_from: number of models that it was picked from, each strength of a trial one.
        forgetting: mean over the retention tasks; its interval is over items and holds for all
            models that it was picked from.
        forgets_more: whether it is shown to forget more than the first row's on the same items,
            corrected for having picked both trials and the pair of recipes.
        tokens, seconds: of its training.
    """

    label: str
    level: float
    trial: TrialRecord
    reaches: bool
    picked_from: int
    forgetting: float
    interval: Interval | None
    forgets_more: bool
    in_domain: float
    ood: float | None
    parameters: float | None
    tokens: float | None
    seconds: float | None


def matched_rows(results: Results) -> list[MatchedRow]:
    """A row for each sweep's recipes, the least forgetting first; those below the level last.

    Recipes are read along the curves of their trials, at the strengths that were evaluated: what
    lies between two of them was not measured.

    The level is the best accuracy of the recipe that learned least, of those with at least half of
    the largest gain over the base: one that hardly learns would lower it to the base's accuracy,
    at which nothing is forgotten. Empty without in-domain or retention tasks, or if none gains.
    """
    own = [_measured(results, trials) for trials in _by_recipe(results)]
    measured = [trials for trials in own if trials]
    level = _level(results.base.metrics.get(IN_DOMAIN_ACC, 0.0), measured)
    if level is None:
        return []
    picked = sorted((_pick(trials, level) for trials in measured), key=lambda r: _order(r, level))
    pairs = math.comb(len(picked), 2)
    return [_row(results, trial, picked[0], level, pairs) for trial in picked]


def _by_recipe(results: Results) -> list[list[TrialRecord]]:
    return [
        results.recipe_points(name, sweep) for name in results.recipes for sweep in results.sweeps
    ]


def _measured(results: Results, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those with accuracy in the domain and forgetting."""
    keys = IN_DOMAIN_ACC, FORGETTING_MEAN
    return [trial for trial in trials if all(trial.metric(key) is not None for key in keys)]


def _level(base: float, recipes: Sequence[Sequence[TrialRecord]]) -> float | None:
    best = [max(map(_accuracy, trials)) for trials in recipes]
    if max(best, default=base) <= base:
        return None
    least = base + _LEAST_SHARE * (max(best) - base)
    return min(accuracy for accuracy in best if accuracy >= least)


def _pick(trials: Sequence[TrialRecord], level: float) -> TrialRecord:
    reaching = [trial for trial in trials if _accuracy(trial) >= level]
    if not reaching:
        return max(trials, key=_accuracy)
    return min(reaching, key=lambda trial: (_forgetting(trial), -_accuracy(trial)))


def _order(trial: TrialRecord, level: float) -> tuple[bool, float, float]:
    accuracy = _accuracy(trial)
    return accuracy < level, _forgetting(trial) if accuracy >= level else 0.0, -accuracy


def _accuracy(trial: TrialRecord) -> float:
    return trial.metric(IN_DOMAIN_ACC) or 0.0


def _forgetting(trial: TrialRecord) -> float:
    return trial.metric(FORGETTING_MEAN) or 0.0


def _row(
    results: Results, trial: TrialRecord, first: TrialRecord, level: float, pairs: int
) -> MatchedRow:
    count = _candidates(results, trial)
    return MatchedRow(
        trial.config.recipe_title + results.whose(results.sweep(trial)),
        level,
        trial,
        _accuracy(trial) >= level,
        count,
        _forgetting(trial),
        results.items.interval(trial, FORGETTING_MEAN, picked_from=count),
        _forgets_more(results, trial, first, count * _candidates(results, first) * pairs),
        _accuracy(trial),
        *(trial.metric(key) for key in (OOD_ACC, TRAINABLE_PARAMETERS, TOKENS_SEEN, TRAIN_SECONDS)),
    )


def _candidates(results: Results, trial: TrialRecord) -> int:
    own = results.of(results.sweep(trial), results.candidates)
    return sum(record.config.recipe == trial.config.recipe for record in own)


def _forgets_more(
    results: Results, trial: TrialRecord, first: TrialRecord, picked_from: int
) -> bool:
    if trial is first:
        return False
    tasks = list(results.tasks("retention"))
    found = results.items.compare(trial, first, tasks, picked_from)
    return found is not None and found.runs_differ and found.difference.estimate < 0
