"""Names, settings and summaries of the runs at W&B, of trials and of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.results.wandb_names import (
    BASE_GROUP,
    SETTING_GROUP,
    STRENGTH,
    over_strength,
    setting_group,
)
from trainables.config import Frozen, ModelConfig, TrialConfig
from trainables.metric_keys import METRICS
from trainables.records.schema import BaseRecord, TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord


def trial_config(record: TrialRecord) -> dict[str, Any]:
    """The trial's configuration under flat keys, by which W&B's tables filter."""
    config = record.config
    return {
        "recipe": config.recipe,
        "method": config.method.name,
        "loss": config.loss.name,
        "capacity": config.capacity and config.capacity.number,
        "capacity_name": config.capacity and config.capacity.name,
        **group_of(record),
        "trial/number": config.number,
        "trial/attempt": record.attempt,
        "trial/confirms": record.confirms,
        "seed": config.seed,
        "data/path": config.data.path,
        "data/replay_share": config.data.replay_share,
        "data/replay_control": config.data.replay_control,
        **_flat("model", config.model),
        **_flat("train", config.train),
        "train/learning_rate": config.learning_rate,
        **_flat("deepspeed", config.deepspeed),
        **_prefixed(config.method.name, config.method.columns),
        **_prefixed(config.loss.name, config.loss.model_dump(exclude={"name"})),
        **{f"search/{key}": value for key, value in record.params.items()},
    }


def group_of(record: TrialRecord) -> dict[str, str]:
    """The group of trials over which W&B averages."""
    return {SETTING_GROUP: setting_group(record)}


def _flat(name: str, part: Frozen | None) -> dict[str, Any]:
    return _prefixed(name, part.model_dump(mode="json") if part else {})


def _prefixed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}/{key}": value for key, value in values.items()}


def trial_name(config: TrialConfig) -> str:
    """Such as `lora rank 8 alpha 16 lr=3e-4 #7`."""
    labels = f"{config.method.label} {config.loss.label}".replace(",", "").split()
    mantissa, exponent = f"{config.learning_rate:.2e}".split("e")
    rate = f"{float(mantissa):g}e{int(exponent)}"
    return " ".join([config.recipe, *labels, f"lr={rate}", f"#{config.number}"])


def best_values(record: TrialRecord) -> dict[str, float]:
    """The trial's best values, under the summary's keys."""
    return {f"best/{key}": value for key, value in record.best.items()}


def strength_curve(record: TrialRecord) -> list[dict[str, float]]:
    """What the trial's weights score at each strength, by strength, their own among them.

    Empty unless they were evaluated at another strength. Costs and settings are left out.
    """
    scaled = [view.metrics for view in record.curve if view.strength != 1]
    scores = {key for metrics in scaled for key in metrics if _is_score(key)}
    return [
        {STRENGTH: view.strength}
        | {over_strength(key): value for key, value in view.metrics.items() if key in scores}
        for view in (record.curve if scaled else ())
    ]


def _is_score(key: str) -> bool:
    """Whether a metric tells how good a model is; those of single tasks do."""
    metric = METRICS.get(key)
    return metric is None or (metric.better != "none" and not metric.adds_up)


def base_config(sweep: SweepRecord, base: BaseRecord) -> dict[str, Any]:
    """The base's configuration, under the keys of a trial's."""
    model = base.pinned(ModelConfig.model_validate(sweep.config["model"]))
    return {
        "recipe": "base",
        "method": "base",
        SETTING_GROUP: BASE_GROUP,
        **_flat("model", model),
        "model/parameters": base.parameters,
    }


def base_summary(sweep: SweepRecord, base: BaseRecord) -> dict[str, Any]:
    """The base's metrics, the size of its data, and the warnings of the newest start."""
    counts = ("parameters", "train_samples", "skipped_samples", "general_nll", "seconds")
    return {
        **base.metrics,
        **{f"base/{key}": getattr(base, key) for key in counts},
        "base/warnings": "\n".join(sweep.provenance.warnings_with(base)),
        "status": TrialStatus.COMPLETE.value,
    }
