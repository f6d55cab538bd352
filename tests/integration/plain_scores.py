"""What an exported model scores when plain libraries load it, against what was recorded of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trainables.evaluation.base_scores import Base, compare_with_base
from trainables.evaluation.evaluator import shared_evaluator
from trainables.models.loading import load_model

if TYPE_CHECKING:
    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement


def loaded(trial: TrialConfig, folder: Path) -> Any:
    if trial.method.changes_base:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return PeftModel.from_pretrained(load_model(trial.model), folder).eval()


def assert_scores(point: Measurement, model: Any, trial: TrialConfig, base: Base) -> None:
    evaluator = shared_evaluator(trial.model, trial.eval)
    _, found = compare_with_base(base, model, evaluator)
    roles = ("in_domain/", "ood/", "retention/", "forgetting/")
    scores = {key: value for key, value in found.items() if key.startswith(roles)}
    assert len(scores) > 10
    assert {key: point.metrics[key] for key in scores} == scores
