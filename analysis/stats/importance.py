"""How much each hyperparameter matters for a metric: Optuna's evaluators on our records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainables.config import TrialConfig
from trainables.results.records import TrialRecord

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Settings = dict[str, float | int | str | bool]

FEWEST_TRIALS = 10
_FEW_VALUES = 8
# Half of Optuna's default: twice as fast, and shares of 200 trials differ in the third digit.
_TREES = 32


def importances(records: Sequence[TrialRecord], metric: str, *, seed: int = 0) -> dict[str, float]:
    """Share of a metric's variance that each setting explains (fANOVA, Hutter 2014).

    The settings are those that the trials were run with. What the search suggested lacks those
    that it did not search from the start, and their share would go to the others.

    Args:
        records: trials of one method, which have the same settings.
        metric: key of what is explained.
        seed: of the random forest.

    Returns:
        Shares that sum to 1, largest first; empty for fewer than `FEWEST_TRIALS` trials, or where
        no setting or the metric itself never varies.
    """
    measured = [
        (_settings(r.config), value) for r in records if (value := r.metric(metric)) is not None
    ]
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
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
        found: dict[str, float] = optuna.importance.get_param_importances(
            study, evaluator=evaluator
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return found


def _settings(config: TrialConfig) -> Settings:
    """What a search can vary, under the search's names."""
    found: Settings = {
        "learning_rate": config.learning_rate,
        "batch_size": config.train.batch_size,
        "epochs": config.train.epochs,
    }
    if lora := config.lora:
        modules = lora.target_modules
        found |= {
            "rank": lora.rank,
            "alpha": lora.alpha,
            # Rounded, as it is not quite the number that the search multiplied the rank by.
            "alpha_ratio": round(lora.alpha / lora.rank, 9),
            "target_modules": modules if isinstance(modules, str) else "+".join(modules),
            "dropout": lora.dropout,
            "rslora": lora.rslora,
            "dora": lora.dora,
        }
    return {f"{config.method}/{axis}": value for axis, value in found.items()}


def _distributions(trials: Sequence[Settings]) -> dict[str, BaseDistribution]:
    """The space that the trials came from, as far as they tell: what varies, within what it did.

    Few distinct values are choices, many are a range, on a logarithmic scale where it allows one.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    spaces: dict[str, BaseDistribution] = {}
    common = set.intersection(*map(set, trials)) if trials else set()
    for name in sorted(common):
        values = {settings[name] for settings in trials}
        if len(values) < 2:
            continue
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < len(values) or len(values) <= _FEW_VALUES:
            spaces[name] = CategoricalDistribution(sorted(values, key=lambda v: (str(type(v)), v)))
        else:
            low, high = min(numbers), max(numbers)
            spaces[name] = FloatDistribution(low, high, log=low > 0)
    # Of rank, alpha and their ratio two say all; where alpha is always the same, the rank does.
    if spaces.pop("lora/alpha", None) is None:
        spaces.pop("lora/alpha_ratio", None)
    return spaces
