"""The training function of a trial's method."""

from __future__ import annotations

from collections.abc import Callable

from trainables.config import TrialConfig
from trainables.gc_pause import gc_paused
from trainables.records.schema import TrialResult
from trainables.training.reporter import Reporter


@gc_paused()
def trial_function(trial: TrialConfig) -> Callable[[TrialConfig, Reporter], TrialResult]:
    """The function that trains with the trial's method."""
    if trial.method.changes_base:
        from trainables.training.full_sft import train_full_sft

        return train_full_sft
    from trainables.training.adapter_sft import train_adapter

    return train_adapter
