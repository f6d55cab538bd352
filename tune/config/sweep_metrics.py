"""The metrics of a sweep: which ones its file names, and which ones its trials log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables import metric_keys
from trainables.errors import Fault, UserError

if TYPE_CHECKING:
    from trainables.records.schema import BaseRecord
    from tune.config.sweep_config import SweepConfig

_OF_RETENTION = (
    metric_keys.RETENTION_ACC,
    metric_keys.RETENTION_RATIO,
    metric_keys.FORGETTING_MEAN,
    metric_keys.FORGETTING_MAX,
    metric_keys.FORGETTING_POSITIVE,
)
_OF_OOD = (metric_keys.OOD_ACC, metric_keys.OOD_GAP)
# Metrics of the evaluation: the base's evaluation has those that a trial's will have.
_EVALUATED = (
    metric_keys.IN_DOMAIN_ACC,
    *_OF_RETENTION,
    *_OF_OOD,
    metric_keys.FORGETTING_NLL,
    metric_keys.KL_BASE_TO_TUNED,
)


def named_metrics(config: SweepConfig) -> list[tuple[str, str]]:
    """The metrics that the sweep file names, as (field, metric)."""
    named = [(f"objectives.{i}.metric", o.metric) for i, o in enumerate(config.objectives)]
    named += [(f"constraints.{i}", c.metric) for i, c in enumerate(config.constraints)]
    if config.early_stopping:
        named += [("early_stopping.metrics", m) for m in config.early_stopping.metrics or ()]
    return named


def logged_metrics(config: SweepConfig) -> set[str]:
    """Keys that a trial of this sweep logs at its end, except scores of single tasks."""
    return {key for key in defined_metrics(config) if not lacking(config, key)}


def defined_metrics(config: SweepConfig) -> dict[str, metric_keys.Metric]:
    """Metrics whose better direction is known: all but scores of single tasks."""
    defined = dict(metric_keys.METRICS)
    for task in config.eval.retention:
        defined |= metric_keys.retention_metrics(task.label)
    return defined


def lacking(config: SweepConfig, metric: str) -> str | None:
    """What the sweep file lacks for a metric to be logged, if anything."""
    data, suite = config.data, config.eval
    needs: tuple[tuple[str, object, tuple[str, ...]], ...] = (
        (
            "tasks in eval.in_domain; without any, name validation/loss, the lower the better",
            suite.in_domain,
            (metric_keys.IN_DOMAIN_ACC,),
        ),
        ("tasks in eval.in_domain", suite.in_domain, (metric_keys.OOD_GAP,)),
        ("tasks in eval.retention", suite.retention, _OF_RETENTION),
        ("tasks in eval.ood", suite.ood, _OF_OOD),
        ("eval.general_text", suite.general_text, (metric_keys.FORGETTING_NLL,)),
        ("eval.kl_prompts above 0", suite.kl_prompts, (metric_keys.KL_BASE_TO_TUNED,)),
        (
            "resources.lora.slots: 0, as trials in slots share their memory",
            config.search.lora is None or config.resources.lora.slots == 0,
            (metric_keys.MAX_RESERVED,),
        ),
        (
            "data.validation_path or data.validation_fraction above 0",
            data.validation_path or data.validation_fraction,
            (metric_keys.VALIDATION_LOSS,),
        ),
    )
    for name, given, metrics in needs:
        if metric in metrics and not given:
            return name
    return None


def may_be_logged(config: SweepConfig, metric: str) -> bool:
    """Whether it may be a score of a task; only the base's evaluation can tell for sure."""
    return any(
        metric.startswith(metric_keys.task_score(role, task.label, ""))
        for role, task in config.eval.tasks()
    )


def check_metrics(config: SweepConfig, base: BaseRecord) -> None:
    """Check that all metrics that the sweep file names are logged.

    The base's evaluation shows which scores the tasks yield.

    Raises:
        UserError: nothing logs a metric.
    """
    of_training = set(metric_keys.METRICS) & logged_metrics(config) - set(_EVALUATED)
    if base.validation_samples == 0:
        of_training -= {metric_keys.VALIDATION_LOSS}
    known = of_training | set(base.metrics)
    faults = [
        Fault(field, f"nothing logs {metric}", f"known: {', '.join(sorted(known))}")
        for field, metric in named_metrics(config)
        if metric not in known
    ]
    if faults:
        raise UserError(faults)
