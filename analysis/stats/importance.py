"""How much each hyperparameter matters for a metric: Optuna's evaluators on our records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainables.records import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FEWEST_TRIALS = 10
_FEW_VALUES = 8
# Half of Optuna's default: twice as fast, and shares of 200 trials differ in the third digit.
_TREES = 32


def importances(records: Sequence[TrialRecord], metric: str, *, seed: int = 0) -> dict[str, float]:
    """Share of a metric's variance that each searched parameter explains (fANOVA, Hutter 2014).

    Args:
        records: trials of one method, which have the same parameters.
        metric: key of what is explained.
        seed: of the random forest.

    Returns:
        Shares that sum to 1, largest first; empty for fewer than `FEWEST_TRIALS` trials, or where
        no parameter or the metric itself never varies.
    """
    measured = [(r, value) for r in records if (value := r.metric(metric)) is not None]
    spaces = _distributions([record for record, _ in measured])
    if len(measured) < FEWEST_TRIALS or not spaces or len({value for _, value in measured}) < 2:
        return {}
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        study.add_trials(
            optuna.trial.create_trial(
                value=value,
                params={name: record.params[name] for name in spaces},
                distributions=spaces,
            )
            for record, value in measured
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=evaluator
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return found


def _distributions(records: Sequence[TrialRecord]) -> dict[str, BaseDistribution]:
    """The space that the trials came from, as far as they tell: what varies, within what it did.

    Few distinct values are choices, many are a range, on a logarithmic scale where it allows one.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    spaces: dict[str, BaseDistribution] = {}
    common = set.intersection(*(set(r.params) for r in records)) if records else set()
    for name in sorted(common):
        values = {record.params[name] for record in records}
        if len(values) < 2:
            continue
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < len(values) or len(values) <= _FEW_VALUES:
            spaces[name] = CategoricalDistribution(sorted(values, key=lambda v: (str(type(v)), v)))
        else:
            low, high = min(numbers), max(numbers)
            spaces[name] = FloatDistribution(low, high, log=low > 0)
    return spaces
