"""One point of the search, complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from trainables.config.eval_config import EvalSuite
from trainables.config.model_and_data import DataConfig, ModelConfig
from trainables.config.objectives import Objective
from trainables.config.train_config import DeepSpeedConfig, TrainConfig
from trainables.frozen import Frozen
from trainables.losses import AnyLoss
from trainables.losses.sft import Sft
from trainables.methods import AnyMethod
from trainables.methods.base import Capacity


class BaseRequirements(Frozen):
    """What the sweep needs from the base model.

    Attributes:
        adapters: recipe and a small adapter for each combination of modules and options that is
            searched.
        recomputes: whether it must support gradient checkpointing.
        deepspeed: the user's own settings for full fine-tuning, which DeepSpeed must accept.
    """

    adapters: tuple[tuple[str, AnyMethod], ...] = ()
    recomputes: bool = False
    deepspeed: dict[str, Any] | None = None

    def are_met_by(self, other: BaseRequirements) -> bool:
        """Whether a base that meets the other requirements meets these too."""
        return (
            {method for _, method in self.adapters} <= {method for _, method in other.adapters}
            and self.recomputes <= other.recomputes
            and self.deepspeed in (None, other.deepspeed)
        )


class TrialConfig(Frozen):
    """One point of the search, complete: the same config and seed give the same trial.

    Attributes:
        trial_id: unique over all sweeps; the W&B run's id.
        number: position in the sweep, from 0.
        seed: of weights, dropout and data order.
        data_seed: of the train/validation split, the same for every trial of a sweep.
        recipe: its name in the sweep file; a method and a loss make a recipe.
        learning_rate: peak of the schedule.
        deepspeed: where the method trains the base's own weights.
        workers: processes training this trial together.
        gpus_per_worker, cpus_per_worker: resources each of them holds.
        output_dir: folder of this attempt; weights, checkpoints and per-item results go there.
        published_dir: object store address that `output_dir` is published to.
        earlier_attempts: their folders; the trial resumes from the newest checkpoint there.
        strengths: at which it is evaluated once it is trained, beside 1: base + strength x update.
        objective: selects the best evaluation, whose weights are kept beside the final ones.
        minutes_per_report: a trial silent for this long ends its process.
        base_dir: folder with the base model's evaluation (see `evaluation.base`).
    """

    trial_id: str
    number: int = Field(ge=0)
    seed: int
    data_seed: int
    recipe: str
    method: AnyMethod
    loss: AnyLoss = Sft()
    learning_rate: float = Field(gt=0)
    deepspeed: DeepSpeedConfig | None = None
    model: ModelConfig
    data: DataConfig
    eval: EvalSuite
    train: TrainConfig
    strengths: tuple[float, ...] = ()
    workers: int = Field(default=1, ge=1)
    gpus_per_worker: float = Field(default=0, ge=0)
    cpus_per_worker: float = Field(default=1, gt=0)
    output_dir: str
    published_dir: str | None = None
    earlier_attempts: tuple[str, ...] = ()
    objective: Objective | None = None
    minutes_per_report: float | None = Field(default=None, gt=0)
    base_dir: str

    @property
    def attempt_dirs(self) -> list[Path]:
        """Folders of all attempts, this one last; each may hold the newest checkpoint."""
        return [*map(Path, self.earlier_attempts), Path(self.output_dir)]

    @property
    def weights_dir(self) -> str:
        """Where the final adapter or model is saved, a folder or an object store's address."""
        return f"{self.output_dir}/weights"

    @property
    def capacity(self) -> Capacity | None:
        """The method's capacity; None if it has one size only."""
        return self.method.capacity

    @property
    def recipe_title(self) -> str:
        """What labels call the recipe: its name, or the method's title if it bears its name."""
        return self.method.title if self.recipe == self.method.name else self.recipe

    @property
    def group_label(self) -> str:
        """Recipe and capacity, by which trials are grouped, such as `LoRA, rank 8`."""
        return ", ".join(map(str, filter(None, (self.recipe_title, self.capacity))))

    @property
    def step_size(self) -> float | None:
        """Learning rate x the method's scale, comparable across settings; None if nothing is."""
        return None if self.method.scale is None else self.learning_rate * self.method.scale

    @property
    def accumulation_steps(self) -> int:
        """Forward passes of one worker per optimizer step."""
        return self.train.batch_size // (self.train.micro_batch_size * self.workers)

    def in_micro_batches(self, most: int) -> Iterator[TrialConfig]:
        """The trial with smaller micro-batches, from `most` down, at the same batch size."""
        per_worker = self.train.batch_size // self.workers
        for size in range(most, 0, -1):
            if per_worker % size == 0:
                train = self.train.model_copy(update={"micro_batch_size": size})
                yield self.model_copy(update={"train": train})

    def with_eval_batch(self, size: int) -> TrialConfig:
        """The same trial with another evaluation batch size."""
        suite = self.eval.model_copy(update={"batch_size": size})
        return self.model_copy(update={"eval": suite})
