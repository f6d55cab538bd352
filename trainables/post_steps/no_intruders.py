"""Intruder dimensions, taken out of a trained model's matrices (2410.21228, section 5).

An intruder is one of the first 10 left singular vectors of W = W0 + dW that has a cosine below 0.5
with every one of W0. Its part s u v^T of W is scaled by 0.75. As PEFT's `reduce_intruder_dimension`
does it, which does it here for LoRA: what is left of dW is cut to the adapter's rank.

Shapes: O outputs, I inputs, K singular vectors.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft.tuners.lora.intruders import reduce_intruder_dimension

from trainables.config import TrialConfig
from trainables.errors import CannotRepair
from trainables.inspection.saved_weights import SavedWeights, base_weights, read_config
from trainables.inspection.updates import INPUTS_FIRST, decoder_matrices, updates
from trainables.models.adapter import Adapted
from trainables.models.loading import device, hollow_model, load_model
from trainables.post_steps.weights_folder import rewrite, take_over

MOST_COSINE = 0.5
FIRST_VECTORS = 10
KEPT = 0.75
_REDUCED = "reduced"


def without_intruders(base_OI: torch.Tensor, tuned_OI: torch.Tensor) -> torch.Tensor:
    """A tuned matrix with less of its intruders; itself if it has none.

    Computed in float64. `base_OI` is W0, `tuned_OI` W; the result is in the dtype of W.
    """
    base_OK, _, _ = torch.linalg.svd(base_OI.double(), full_matrices=False)
    left_OK, values_K, right_KI = torch.linalg.svd(tuned_OI.double(), full_matrices=False)
    cosines_K = (base_OK.T @ left_OK[:, :FIRST_VECTORS]).abs().amax(0)
    found = torch.nonzero(cosines_K < MOST_COSINE).flatten()
    if not len(found):
        return tuned_OI
    intruders_OI = left_OK[:, found] * values_K[found] @ right_KI[found]
    return (tuned_OI.double() - (1 - KEPT) * intruders_OI).to(tuned_OI.dtype)


def repair_adapter(trial: TrialConfig, weights: Path, target: Path) -> None:
    """Write a LoRA without its intruders.

    Raises:
        CannotRepair: its base is not stored as plain matrices (O, I).
    """
    if trial.model.load_in_4bit:
        raise CannotRepair("the base is in 4 bits, which has no singular vectors of its own")
    if read_config(weights / "adapter_config.json").get("fan_in_fan_out"):
        raise CannotRepair("PEFT does it only for layers that store outputs first")
    model = Adapted.saved(load_model(trial.model).to(device()), weights).model
    reduce_intruder_dimension(
        model,
        new_adapter_name=_REDUCED,
        top_k=FIRST_VECTORS,
        threshold_epsilon=MOST_COSINE,
        mitigation_lambda=KEPT,
        logging_sink=None,
    )
    with TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, selected_adapters=[_REDUCED], save_embedding_layers=False)
        shutil.copytree(Path(scratch) / _REDUCED, target, dirs_exist_ok=True)


def repair_model(trial: TrialConfig, weights: Path, target: Path) -> None:
    """Write a fully fine-tuned model without the intruders of its decoder's matrices."""
    saved, hollow = SavedWeights(weights), hollow_model(trial.model)
    in_files = decoder_matrices(hollow, saved)
    inputs_first = read_config(weights / "config.json").get("model_type") in INPUTS_FIRST

    def changed() -> Iterator[tuple[str, torch.Tensor]]:
        base = base_weights(trial.model)
        for update in updates(trial, weights, base, hollow, device()):
            tuned_OI = without_intruders(update.base_OI, update.tuned())
            name = in_files[update.name]
            yield name, tuned_OI.T if inputs_first else tuned_OI

    take_over(weights, target)
    rewrite(target, dict(changed()))
