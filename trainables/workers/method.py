"""The training function of each method."""

from __future__ import annotations

from collections.abc import Callable

from trainables.config import TrialConfig
from trainables.gc_pause import gc_paused
from trainables.records.schema import TrialResult
from trainables.training.reporter import Reporter


@gc_paused()
def trial_function(trial: TrialConfig) -> Callable[[TrialConfig, Reporter], TrialResult]:
    """The function that trains with the trial's method."""
    if trial.method == "lora":
        from trainables.training.lora import train_lora

        return train_lora
    from trainables.training.full_sft import train_full_sft

    return train_full_sft
