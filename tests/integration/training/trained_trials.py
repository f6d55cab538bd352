"""The trials that several modules here compare others with; each is trained once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainables.training.reporter import ListReporter
from trainables.workers.method import trial_function

if TYPE_CHECKING:
    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement, TrialResult

TRAIN = {
    "steps": 9,
    "batch_size": 8,
    "micro_batch_size": 4,
    "warmup": 0.25,
    "schedule": "cosine",
    "report_every": 3,
    "log_every": 1,
}
_BFLOAT16 = {"method": "full", "model": {"dtype": "bfloat16"}}
_FP32_GRADIENTS = {
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"dropout": 0.2}},
    "full, stage 0": {"method": "full", "deepspeed": {"zero_stage": 0}},
    "full, stage 0, bfloat16": _BFLOAT16 | {"deepspeed": {"zero_stage": 0}},
    "full, stage 2, bfloat16": _BFLOAT16 | {"deepspeed": {"zero_stage": 2}},
    "full, stage 3, bfloat16": _BFLOAT16 | {"deepspeed": {"zero_stage": 3}},
    "full, gradients in float32": _BFLOAT16 | {"deepspeed": {"config": _FP32_GRADIENTS}},
}


def train(config: TrialConfig, reporter: ListReporter) -> TrialResult:
    return trial_function(config)(config, reporter)


def measured(config: TrialConfig) -> list[Measurement]:
    reporter = ListReporter()
    train(config, reporter)
    return reporter.measurements
