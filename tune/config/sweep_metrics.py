"""The metrics that a sweep file names, and those that its trials log."""

from __future__ import annotations

from trainables import metric_keys
from trainables.errors import Fault, UserError
from trainables.records.schema import BaseRecord
from tune.config.sweep_config import SweepConfig

# Evaluated metrics, which the base's evaluation has too; all others are of training.
_EVALUATED = ("in_domain/", "retention/", "forgetting/", "ood/", "kl/")


def named_metrics(config: SweepConfig) -> list[tuple[str, str]]:
    """The metrics that the sweep file names, as (field, metric)."""
    named = [(f"objectives.{i}.metric", o.metric) for i, o in enumerate(config.objectives)]
    named += [(f"constraints.{i}", c.metric) for i, c in enumerate(config.constraints)]
    if config.early_stopping:
        named += [("early_stopping.metrics", m) for m in config.early_stopping.metrics or ()]
    return named


def defined_metrics(config: SweepConfig) -> dict[str, metric_keys.Metric]:
    """Metrics whose better direction is known: all but scores of single tasks."""
    defined = dict(metric_keys.METRICS)
    for task in config.eval.retention:
        defined |= metric_keys.retention_metrics(task.label)
    return defined


def missing_input(config: SweepConfig, metric: str) -> str | None:
    """What the sweep file lacks for a metric to be logged; None if nothing."""
    data, suite = config.data, config.eval
    if metric == metric_keys.VALIDATION_LOSS:
        given = data.validation_path or data.validation_fraction
        return None if given else "data.validation_path or data.validation_fraction above 0"
    if metric in (metric_keys.IN_DOMAIN_ACC, metric_keys.OOD_GAP) and not suite.in_domain:
        return "tasks in eval.in_domain; without any, name validation/loss"
    if metric in (metric_keys.OOD_ACC, metric_keys.OOD_GAP) and not suite.ood:
        return "tasks in eval.ood"
    if metric == metric_keys.FORGETTING_NLL:
        return None if suite.general_text else "eval.general_text"
    if metric == metric_keys.KL_BASE_TO_TUNED:
        return None if suite.kl_prompts else "eval.kl_prompts above 0"
    if metric == metric_keys.MAX_RESERVED:
        packed = [each for each in config.search.recipes if config.recipe_resources(each).slots]
        slots = f"{config.resources_field(packed[0])}.slots: 0" if packed else ""
        return f"{slots}, as trials in slots share their memory" if packed else None
    is_retention = metric.startswith(("forgetting/", "retention/"))
    if is_retention and metric in metric_keys.METRICS and not suite.retention:
        return "tasks in eval.retention"
    return None


def unlogged_metrics(config: SweepConfig) -> list[tuple[str, str, set[str]]]:
    """Named metrics that no trial will log, as (field, metric, all that are logged).

    A score of a task passes: only the base's evaluation shows which scores a task yields.
    """
    logged = {key for key in defined_metrics(config) if not missing_input(config, key)}
    scores = tuple(metric_keys.task_score(role, t.label, "") for role, t in config.eval.tasks())
    return [
        (field, metric, logged)
        for field, metric in named_metrics(config)
        if metric not in logged and not (scores and metric.startswith(scores))
    ]


def check_metrics(config: SweepConfig, base: BaseRecord) -> None:
    """Check that all metrics that the sweep file names are logged.

    The base's evaluation shows which scores the tasks yield.

    Raises:
        UserError: nothing logs a metric.
    """
    training = [key for key in metric_keys.METRICS if not key.startswith(_EVALUATED)]
    known = {key for key in training if not missing_input(config, key)} | set(base.metrics)
    if base.validation_samples == 0:
        known -= {metric_keys.VALIDATION_LOSS}
    faults = [
        Fault(field, f"nothing logs {metric}", f"known: {', '.join(sorted(known))}")
        for field, metric in named_metrics(config)
        if metric not in known
    ]
    if faults:
        raise UserError(faults)
