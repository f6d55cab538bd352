"""Inspects one trial's model and saves the record."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainables.config import ModelConfig, TrialConfig
from trainables.errors import CannotInspect, error_text
from trainables.inspection.activations import activation_drift, choose_prompts
from trainables.inspection.inspection_records import (
    MOST_SINGULAR_VALUES,
    InspectionFolder,
    InspectionRecord,
    MatrixChange,
)
from trainables.inspection.saved_weights import base_weights, save_whole
from trainables.inspection.spectra import (
    COMPARED_VECTORS,
    DIRECTIONS,
    Spectrum,
    dense_spectrum,
    effective_rank,
    left_vectors,
    rank_90,
    stable_rank,
    update_spectrum,
    vector_change,
)
from trainables.inspection.updates import MatrixUpdate, updates
from trainables.metric_keys import FORGETTING_NLL, KL_BASE_TO_TUNED
from trainables.models.loading import changed, device, fingerprint, hollow_model
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus

_VERSION = 2  # raise it when the code no longer reproduces the numbers of an old record


def inspect_trial(sweep_dir: Path, number: int) -> InspectionRecord:
    """Inspect a trial's model, as far as no record of the same model has the results.

    Writes the record and the main directions of each matrix's update below `SWEEP/inspection`. The
    record of a trial without weights, or with damaged ones, says so; an earlier record of deleted
    weights stays.

    Cost: one decomposition per matrix, and one of the base's matrix once per node; a forward pass
    of base and tuned model over 64 prompts.

    Raises:
        UserError: the base model cannot be loaded, the trial's record is damaged, or the results
            cannot be written.
        FileNotFoundError: there is no such trial.
    """
    ledger, folder = Ledger(sweep_dir), InspectionFolder(sweep_dir)
    trial = ledger.trial(number)
    weights_dir, earlier = ledger.weights(trial), folder.read(number)
    if weights_dir is None:
        if earlier and earlier.matrices and earlier.is_for(trial):
            return earlier
        reason = "it kept no weights" if trial.weights_dir is None else "its weights are gone"
        if trial.status is not TrialStatus.COMPLETE:
            reason = f"it is {trial.status.in_words}, and only complete trials keep weights"
        record = _record(trial, reason=reason)
        folder.write(record)
        return record
    base = ledger.base()
    key = _content_key(weights_dir, base.key)
    is_current = earlier and earlier.key == key and earlier.is_for(trial)
    known = earlier if is_current and folder.directions(number).exists() else None
    if known and not known.reason:
        return known
    started = time.time()
    results: dict[str, Any] = {"key": key, "matrices": known.matrices if known else ()}
    try:
        if change := changed(trial.config.model, ledger.sweep().inputs):
            raise CannotInspect(change)
        results["matrices"] = results["matrices"] or _inspect_matrices(
            trial.config, weights_dir, folder.directions(number)
        )
        # They can take hours: keep them if the rest is interrupted.
        reason = "the inspection of its activations was interrupted"
        folder.write(_record(trial, **results, reason=reason))
        prompts = choose_prompts(base, ledger.folder.base_items)
        results |= vars(activation_drift(trial.config, weights_dir, prompts))
    except (CannotInspect, OSError, ModuleNotFoundError) as error:  # the last: a package's base
        results["reason"] = str(error)
    except (RuntimeError, ValueError, KeyError) as error:
        # PyTorch's and PEFT's, if memory runs out or files do not match.
        results["reason"] = error_text(error)
    record = _record(trial, **results, seconds=time.time() - started)
    folder.write(record)
    return record


def matrix_changes(
    config: TrialConfig, weights_dir: Path
) -> Iterator[tuple[str, MatrixChange, torch.Tensor]]:
    """Each matrix' name, change, and top left singular vectors of its update (O, K <= 8)."""
    base_key = f"{fingerprint(config.model)}-{config.model.dtype}-OI"
    base_key += "-4bit" if config.model.load_in_4bit else ""
    base, hollow = base_weights(config.model), hollow_model(config.model)
    for update in updates(config, weights_dir, base, hollow, device()):
        spectrum = update_spectrum(update)
        change = describe(update, spectrum)
        if len(spectrum.values_K) and update.base_OI.any():
            moved = vector_change(
                left_vectors(base_key, update.name, update.base_OI),
                dense_spectrum(update.tuned(), top=COMPARED_VECTORS).left_OK,
            )
            change = change.model_copy(update=vars(moved))
        yield update.name, change, spectrum.left_OK[:, :DIRECTIONS].float().cpu()


def describe(update: MatrixUpdate, spectrum: Spectrum) -> MatrixChange:
    """The part of the change that needs the update's spectrum, but not that of W0 or W."""
    values_K = spectrum.values_K
    outputs, inputs = update.base_OI.shape
    before = float(update.base_OI.norm())
    change = MatrixChange(
        layer=update.layer,
        module=update.module,
        shape=(outputs, inputs),
        rank_limit=update.rank_limit,
        relative_norm=float(values_K.norm()) / before if before else None,
    )
    if not len(values_K):
        return change
    return change.model_copy(
        update={
            "stable_rank": stable_rank(values_K),
            "effective_rank": effective_rank(values_K),
            "rank_90": rank_90(values_K),
            "singular_values": tuple(values_K[:MOST_SINGULAR_VALUES].tolist()),
        }
    )


def _record(trial: TrialRecord, **found: Any) -> InspectionRecord:
    return InspectionRecord(
        number=trial.number,
        trial_id=trial.config.trial_id,
        ended=trial.ended,
        kl_base_to_tuned=trial.metric(KL_BASE_TO_TUNED),
        forgetting_nll=trial.metric(FORGETTING_NLL),
        **found,
    )


def _content_key(weights_dir: Path, base_key: str) -> str:
    weights = fingerprint(ModelConfig(name=str(weights_dir.absolute())))
    content = f"{_VERSION}:{weights}:{base_key}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _inspect_matrices(
    config: TrialConfig, weights_dir: Path, file: Path
) -> tuple[MatrixChange, ...]:
    """Every matrix' change; saves the directions to the file."""
    changes, directions = [], {}
    for name, change, left_OK in matrix_changes(config, weights_dir):
        changes.append(change)
        directions[name] = left_OK
    save_whole(file, directions)
    return tuple(changes)
