"""Which trials can share a base, and why others cannot. Loads no heavy library."""

from __future__ import annotations

from trainables.config import TrialConfig


def reason_against(trial: TrialConfig) -> str | None:
    """Why a trial must train alone; None if it can have a slot."""
    if trial.lora is None:
        return "full fine-tuning changes the base"
    if trial.lora.dora:
        return "DoRA's norms are not batched"
    if trial.workers > 1:
        return "resources.lora.workers is above 1"
    return None
