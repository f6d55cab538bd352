"""How much each hyperparameter matters for a metric, by Optuna's evaluator on our records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainables.config import LoraConfig
from trainables.records.schema import TrialRecord
from trainables.results.settings import settings_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Settings = dict[str, Any]

_SHARED_AXES = ("learning_rate", "batch_size", "epochs", "warmup", "weight_decay")
_LORA_AXES = tuple(LoraConfig.model_fields)
FEWEST_TRIALS = 10
_FEW_VALUES = 8
# Half of Optuna's default: twice as fast, and for 200 trials only the third digit changes.
_TREES = 32


def importances(records: Sequence[TrialRecord], metric: str) -> dict[str, float]:
    """Importance of each setting for a metric, relative to the others (fANOVA, Hutter 2014).

    It is a fraction of what a forest of regression trees makes of all settings, which fits noise as
    well: where no setting has an effect, the fractions sum to 1 all the same.

    The settings are those that the trials were run with, not those that the search suggested:
    these lack what it did not search from the start, whose share would go to the others.

    Args:
        records: trials of one method, which have the same settings.
        metric: key of the metric to explain.

    Returns:
        Fractions that sum to 1, largest first; empty for fewer than `FEWEST_TRIALS` trials, or if
        no setting varies or the metric does not.
    """
    measured = [(_settings(r), value) for r in records if (value := r.metric(metric)) is not None]
    spaces = _distributions([settings for settings, _ in measured])
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
                params={name: settings[name] for name in spaces},
                distributions=spaces,
            )
            for settings, value in measured
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=evaluator
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return found


def _settings(record: TrialRecord) -> Settings:
    """The settings that a search can vary, under its names."""
    columns: dict[str, Any] = settings_of(record)
    found = {f"{record.config.method}/{axis}": columns[axis] for axis in _SHARED_AXES}
    if lora := record.config.lora:
        found |= {f"lora/{axis}": columns[f"lora/{axis}"] for axis in _LORA_AXES}
        # Rounded, as division does not exactly recover the ratio that the search used.
        found["lora/alpha_ratio"] = round(lora.alpha / lora.rank, 9)
    return found


def _distributions(trials: Sequence[Settings]) -> dict[str, BaseDistribution]:
    """The search space as inferred from the trials: the settings that vary, within their range.

    Few distinct values become choices, many a range, logarithmic if all are positive.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    spaces: dict[str, BaseDistribution] = {}
    for name in sorted(trials[0]) if trials else ():
        values = {settings[name] for settings in trials}
        if len(values) < 2:
            continue
        numbers = [v for v in values if isinstance(v, int | float)]
        if len(numbers) < len(values) or len(values) <= _FEW_VALUES:
            spaces[name] = CategoricalDistribution(sorted(values, key=lambda v: (str(type(v)), v)))
        else:
            low, high = min(numbers), max(numbers)
            spaces[name] = FloatDistribution(low, high, log=low > 0)
    # Two of rank, alpha and their ratio determine the third; if alpha is constant, rank suffices.
    if spaces.pop("lora/alpha", None) is None:
        spaces.pop("lora/alpha_ratio", None)
    return spaces
