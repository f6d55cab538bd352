"""How much each hyperparameter matters for a metric, by Optuna's evaluator on our records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.results.trial_columns import setting_columns
from trainables.records.schema import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Settings = dict[str, Any]

_SHARED_AXES = (
    "learning_rate",
    "batch_size",
    "epochs",
    "warmup",
    "weight_decay",
    "replay_share",
    "replay_control",
)
FEWEST_TRIALS = 10
_FEW_VALUES = 8
_TREES = 16  # a quarter of Optuna's default: twice as many change no share by more than 0.01


def importances(records: Sequence[TrialRecord], metric: str) -> dict[str, float]:
    """Importance of each setting for a metric, relative to the others (fANOVA, Hutter 2014).

    A forest of regression trees fits noise as well: the fractions sum to 1 even where no setting
    has an effect. The settings are those that the trials were run with.

    Args:
        records: trials of one recipe, which have the same settings.
        metric: key of the metric to explain.

    Returns:
        Fractions that sum to 1, largest first; empty for fewer than `FEWEST_TRIALS` trials, or if
        no setting varies or the metric does not.
    """
    known = [(record, value) for record in records if (value := record.metric(metric)) is not None]
    if len(known) < FEWEST_TRIALS or len({value for _, value in known}) < 2:
        return {}
    trials = _on_log_scales([_settings(record) for record, _ in known])
    config = known[0][0].config
    spaces = _distributions(trials)
    for ratio in config.method.ratios:
        # Two of rank, alpha and their ratio determine the third; if alpha is constant, rank does.
        if spaces.pop(f"{config.recipe}/{ratio.field}", None) is None:
            spaces.pop(f"{config.recipe}/{ratio.axis}", None)
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
            for settings, (_, value) in zip(trials, known, strict=True)
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=evaluator
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return found


def _settings(record: TrialRecord) -> Settings:
    """The settings that a search can vary, under its names.

    Of the loss they are those of its fields, beside its name.
    """
    config, method = record.config, record.config.method
    columns: dict[str, Any] = setting_columns(record)
    found = {axis: columns[axis] for axis in _SHARED_AXES}
    found |= {field: columns[f"{method.name}/{field}"] for field in type(method).model_fields}
    for ratio in method.ratios:
        # Rounded, as division does not exactly recover the ratio that the search used.
        found[ratio.axis] = round(getattr(method, ratio.field) / getattr(method, ratio.of), 9)
    found["loss"] = ", ".join(filter(None, (config.loss.name, config.loss.label)))
    return {f"{config.recipe}/{axis}": value for axis, value in found.items()}


def _on_log_scales(trials: Sequence[Settings]) -> list[Settings]:
    """The settings with logarithms of what had a range, which a search takes on a log scale.

    Optuna's evaluator weighs the values of a range evenly, even if its distribution is logarithmic.
    """
    values = {name: {settings[name] for settings in trials} for name in trials[0]}
    ranges = [name for name, own in values.items() if _is_range(own) and min(own) > 0]
    return [settings | {name: math.log(settings[name]) for name in ranges} for settings in trials]


def _is_range(values: set[Any]) -> bool:
    return len(values) > _FEW_VALUES and all(isinstance(value, int | float) for value in values)


def _distributions(trials: Sequence[Settings]) -> dict[str, BaseDistribution]:
    """The search space as inferred from the trials: the settings that vary, within their range.

    Few distinct values become choices, many numbers a range.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    spaces: dict[str, BaseDistribution] = {}
    for name in sorted(trials[0]):
        values = {settings[name] for settings in trials}
        if len(values) < 2:
            continue
        if _is_range(values):
            spaces[name] = FloatDistribution(min(values), max(values))
        else:
            spaces[name] = CategoricalDistribution(sorted(values, key=lambda v: (str(type(v)), v)))
    return spaces
