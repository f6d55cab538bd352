"""Repairs one trial's weights, and evaluates what comes of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from trainables import metric_keys
from trainables.config import TrialConfig
from trainables.data.tokenized import trial_inputs
from trainables.errors import CannotInspect, CannotRepair, error_text
from trainables.evaluation.base_scores import Base, compare_with_base
from trainables.evaluation.drift import token_nll
from trainables.evaluation.evaluator import shared_evaluator
from trainables.models.adapter import Adapted
from trainables.models.loading import changed, device, hollow_model, load_model
from trainables.post_steps.no_intruders import repair_adapter, repair_model
from trainables.post_steps.seed_mean import mean_adapter, mean_model
from trainables.records.item_records import items_file, without_texts, write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, Repair, TrialRecord
from trainables.storage.disk import is_disk_full, whole_folder


def repair_trial(
    sweep_dir: Path, number: int, repair: Repair, repeats: Sequence[int] = ()
) -> Measurement:
    """Write a trial's repaired weights beside its own, and measure them as its last step was.

    Its costs and what is measured in training alone stay those of the trial.

    Args:
        sweep_dir: the sweep's folder.
        number: of the trial.
        repair: what to do.
        repeats: trials of the same setting with other seeds, for their mean.

    Raises:
        CannotRepair: a trial has no weights, or they cannot be repaired so.
        UserError: the base model cannot be loaded, or a record is damaged.
    """
    ledger = Ledger(sweep_dir)
    trial = ledger.trial(number)
    if change := changed(trial.config.model, ledger.sweep().inputs):
        raise CannotRepair(change)
    weights = [_weights(ledger, ledger.trial(each)) for each in (number, *repeats)]
    target = weights[0].parent / repair
    shutil.rmtree(target, ignore_errors=True)  # of a start that was interrupted
    try:
        with whole_folder(target) as unfinished:
            _write(trial.config, repair, weights, unfinished)
    except (CannotInspect, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        if is_disk_full(error):
            raise
        raise CannotRepair(error_text(error)) from error  # files that do not match
    return _measure(ledger, trial, repair, target)


def _weights(ledger: Ledger, trial: TrialRecord) -> Path:
    weights = ledger.weights(trial)
    if weights is None:
        raise CannotRepair(f"the weights of trial {trial.number} are gone")
    return weights


def _write(trial: TrialConfig, repair: Repair, weights: Sequence[Path], target: Path) -> None:
    is_model = trial.method.changes_base
    match repair:
        case "no_intruders":
            (repair_model if is_model else repair_adapter)(trial, weights[0], target)
        case "seed_mean":
            (mean_model if is_model else mean_adapter)(weights, target)


def _measure(ledger: Ledger, trial: TrialRecord, repair: Repair, weights: Path) -> Measurement:
    assert trial.last is not None  # noqa: S101 - it is complete
    config = trial.config.model_copy(update={"base_dir": str(ledger.folder.base)})
    base, model = Base.load(ledger.folder.base), _tuned(config, weights)
    evaluator = shared_evaluator(config.model, config.eval)
    evaluation, metrics = compare_with_base(base, model, evaluator)
    _, tokenized = trial_inputs(config)
    if tokenized.validation:
        loss = token_nll(model, tokenized.validation, config.eval.batch_size)
        metrics[metric_keys.VALIDATION_LOSS] = loss
    changes = {"repair": repair, "metrics": trial.metrics | metrics, "time": time.time()}
    point = trial.last.model_copy(update=changes)
    attempt = ledger.folder.attempt(trial.number, point.attempt)
    write_items(items_file(attempt, point.name), without_texts(evaluation.items))
    return point


def _tuned(config: TrialConfig, weights: Path) -> Any:
    if not config.method.changes_base:
        return Adapted.saved(load_model(config.model).to(device()), weights).model.eval()
    # The base's class reads the weights: code beside them is not trusted.
    own = {"name": str(weights.absolute()), "revision": None, "eos_token": None}
    whole = config.model.model_copy(update=own | {"trust_remote_code": False})
    return load_model(whole, architecture=type(hollow_model(config.model))).to(device()).eval()
