"""What trials must have in common to share an engine, and with it each pass."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

from trainables.config import ModelConfig, TrialConfig
from trainables.packing.packable import NotPackable


@dataclass(frozen=True)
class Shared:
    """The base of an engine and how it is used.

    Methods, their other settings, losses and schedules are each trial's own.

    Attributes:
        model: the base.
        modules: the layers that are adapted.
        recomputes: activations in the backward pass, `train.gradient_checkpointing`.
        longest: tokens of a sample at most, `data.max_length`.
    """

    model: ModelConfig
    modules: Literal["all-linear"] | tuple[str, ...] | None
    recomputes: bool
    longest: int

    @classmethod
    def of(cls, trial: TrialConfig) -> Self:
        """What this trial needs."""
        recomputes, longest = trial.train.gradient_checkpointing, trial.data.max_length
        return cls(trial.model, trial.method.modules, recomputes, longest)

    def check(self, trial: TrialConfig) -> None:
        """Check that the trial needs the same.

        Raises:
            NotPackable: it does not; names what differs.
        """
        wanted = self.of(trial)
        differing = [
            field.name
            for field in fields(self)
            if getattr(self, field.name) != getattr(wanted, field.name)
        ]
        if differing:
            raise NotPackable(f"trials of one base differ in {', '.join(differing)}")
