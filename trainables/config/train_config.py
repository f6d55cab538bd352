"""Settings of the training run and of DeepSpeed."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from trainables.frozen import Frozen

# Keys of `train` that affect when to measure, memory and what is saved, but no result.
CHANGES_NO_RESULT = {
    "micro_batch_size",
    "gradient_checkpointing",
    "report_every",
    "log_every",
    "save_weights",
}


class TrainConfig(Frozen):
    """The training run, the same for every method.

    Attributes:
        epochs, steps: length; `steps` (optimizer steps) wins if both are given. Epochs are rounded
            up to whole steps over the whole training, where TRL rounds up each epoch.
        batch_size: samples per optimizer step over all workers.
        micro_batch_size: samples per forward pass of one worker.
        warmup: length of the warm-up, as a share of the steps.
        schedule: of the learning rate after the warm-up.
        max_grad_norm: gradients are clipped to this norm; 0 turns clipping off.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them;
            LoRA on an 8 B model in 24 GB needs it for all but short samples.
        report_every: optimizer steps (>= 1) or a share of the training (< 1) between evaluations; 1
            means every step, a number above the total means once, at the end.
        log_every: the same, between points of the training curve.
        save_weights: keep the final adapter or model.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: float = Field(default=1.0, gt=0)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=16, ge=1)
    micro_batch_size: int = Field(default=4, ge=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    gradient_checkpointing: bool = False
    report_every: float = Field(default=0.25, gt=0)
    log_every: float = Field(default=0.05, gt=0)
    save_weights: bool = True

    @model_validator(mode="after")
    def _measures_after_whole_steps(self) -> TrainConfig:
        for name in ("report_every", "log_every"):
            every = getattr(self, name)
            if every >= 1 and every != int(every):
                raise ValueError(
                    f"{name} must be a whole number of steps or a share below 1, got {every}"
                )
        return self

    def total_steps(self, samples: int) -> int:
        """Optimizer steps it takes to train on this many samples."""
        return self.steps or max(1, math.ceil(self.epochs * samples / self.batch_size))

    def report_steps(self, total: int) -> frozenset[int]:
        """Steps after which the model is evaluated, always including the last."""
        return _every(self.report_every, total)

    def evaluations(self, samples: int) -> int:
        """How often the model is evaluated."""
        return len(self.report_steps(self.total_steps(samples)))

    def log_steps(self, total: int) -> frozenset[int]:
        """Steps shown in the training curve: the first, every `log_every`, the last."""
        return _every(self.log_every, total) | {1}


def step_at(share: float, total: int) -> int:
    """The step at which this share of the training is done; at least one.

    Rounded twice, so that a share computed in two ways ends at one step.
    """
    return max(1, round(round(share * total, 6)))


def _every(interval: float, total: int) -> frozenset[int]:
    if interval >= 1:
        return frozenset(range(int(interval), total, int(interval))) | {total}
    share = max(interval, 1 / total)  # no more often than after every step
    return frozenset(step_at(n * share, total) for n in range(1, shares_in_all(share))) | {total}


def shares_in_all(share: float) -> int:
    """How many such shares the whole training is; the last may be smaller."""
    return math.ceil(1 / share - 1e-9)


class DeepSpeedConfig(Frozen):
    """How full fine-tuning is sharded.

    Attributes:
        zero_stage: 0 none, 1 optimizer states, 2 also gradients, 3 also parameters.
        offload_optimizer: keep optimizer states in host memory (stage 1 and up) and compute on the
            CPU: raise `resources.full.cpus_per_worker`.
        offload_parameters: keep parameters in host memory (stage 3).
        config_file: the user's own DeepSpeed JSON, replacing the above, with `auto` filled in.
        config: the same settings in the sweep file, without null keys.
    """

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False
    config_file: str | None = None
    config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _offload_fits_the_stage(self) -> DeepSpeedConfig:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage >= 1, got 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, got {self.zero_stage}")
        return self

    @property
    def stage_field(self) -> str:
        """The key of the sweep file that sets the stage."""
        own = "config.zero_optimization.stage"
        return f"deepspeed.{'zero_stage' if self.config is None else own}"
