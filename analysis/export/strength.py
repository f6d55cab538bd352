"""Saved weights with a strength of their update built in: base + strength x update."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from analysis.library_logging import quiet_libraries
from trainables.config import TrialConfig
from trainables.records.schema import TrialRecord


def set_strength(folder: Path, record: TrialRecord) -> None:
    """Rewrite the weights in a folder, a copy of a trial's, at the strength of the record.

    They become those that were evaluated, bit by bit: numbers are computed as in training. One
    file is in memory at a time.

    Raises:
        UserError: the base, which the update is counted from, cannot be loaded.
    """
    if record.strength == 1:
        return
    with redirect_stdout(sys.stderr), quiet_libraries():
        from safetensors.torch import load_file, save_file

        method = record.config.method
        start = _start(record, folder) if method.needs_start else {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors = load_file(file)
            changed = method.at_strength(tensors, start, record.strength)
            whole = {name: changed.get(name, values) for name, values in tensors.items()}
            contiguous = {name: values.contiguous() for name, values in whole.items()}
            save_file(contiguous, file, metadata={"format": "pt"})


def _start(record: TrialRecord, folder: Path) -> Mapping[str, Any]:
    """What the trained tensors were before training, by the names that they are saved under."""
    from trainables.inspection.saved_weights import SavedWeights, base_weights
    from trainables.models.loading import load_model

    config = record.config
    if config.method.changes_base:
        base = base_weights(config.model)
        if base.keys() >= SavedWeights(folder).keys():
            return base
        return dict(load_model(config.model).state_dict())  # its files have other names
    assert record.last is not None  # noqa: S101 - it is complete
    assert record.last.total_steps is not None  # noqa: S101
    return _fresh_adapter(config, record.last.total_steps)


def _fresh_adapter(config: TrialConfig, steps: int) -> Mapping[str, Any]:
    """The adapter as the trial began with it, from the trial's seed."""
    from peft import get_peft_model_state_dict
    from transformers import set_seed

    from trainables.models.adapter import Adapted
    from trainables.models.loading import load_model

    # Neither changes an adapter, and what they name may be missing here.
    base = load_model(config.model.model_copy(update={"chat_template": None, "attention": None}))
    set_seed(config.seed)
    adapted = Adapted(base, config.method, steps).model
    fresh: Mapping[str, Any] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return fresh
