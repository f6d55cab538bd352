"""The loss of supervised fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from trainables.losses.base import Loss


class Sft(Loss):
    """Cross-entropy of the labelled tokens: sum nll / N."""

    name: ClassVar[str] = "sft"
    title: ClassVar[str] = "SFT"
    source: ClassVar[str] = "cross-entropy"
