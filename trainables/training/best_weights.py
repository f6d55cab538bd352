"""The weights at the best evaluation of a training, kept beside the final ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainables.config import Objective, TrialConfig
from trainables.process.collectives import agreed, is_first_worker
from trainables.records.schema import Measurement
from trainables.storage.disk import whole_folder
from trainables.training.attempt_folder import is_scratch
from trainables.training.checkpoint_files import (
    BEST_EVALUATION,
    BestEvaluation,
    best_dir,
    best_weights,
    remove_best,
)


class BestWeights:
    """Keeps the weights of the best evaluation so far, by the trial's objective.

    Checkpoints record which evaluation that is: if its weights are lost, those of a worse
    evaluation do not become the best.

    Attributes:
        save: writes the weights into a folder; every worker calls it.
    """

    def __init__(self, config: TrialConfig, save: Callable[[Path], None]) -> None:
        self._objective = config.objective if config.train.save_weights else None
        self._attempts = config.attempt_dirs
        self.save = save
        self._is_scratch = is_scratch(config)
        self._best: BestEvaluation | None = None

    def carry(self) -> dict[str, Any] | None:
        """The best evaluation so far, for a checkpoint."""
        return self._best.model_dump() if self._best else None

    def restore(self, carried: dict[str, Any] | None) -> None:
        """Continue from what `carry` gave in an earlier attempt."""
        self._best = BestEvaluation.model_validate(carried) if carried else None

    def offer(self, measurement: Measurement) -> None:
        """Save the weights if the evaluation is the best so far; every worker calls it."""
        objective = self._objective
        if objective is None:
            return
        value = measurement.metrics.get(objective.metric)
        best = self._to_beat(objective)
        is_best = value is not None and (best is None or objective.is_better(value, best.value))
        if not agreed(is_best):
            return
        folder, is_first = best_dir(self._attempts[-1]), is_first_worker()
        with whole_folder(folder, is_first, self._is_scratch) as unfinished:
            self.save(unfinished)
            if is_first and value is not None:
                best = BestEvaluation(step=measurement.step, metric=objective.metric, value=value)
                (unfinished / BEST_EVALUATION).write_text(best.model_dump_json())
        if is_first:
            self._best = best
            remove_best(self._attempts[:-1])

    def settle(self, last: Measurement) -> Path | None:
        """The folder of weights better than the last; if the last are the best, removes all others.

        Only the first worker calls it.
        """
        if self._objective is None:
            return None
        best, value = self._to_beat(self._objective), last.metrics.get(self._objective.metric)
        if best is None or (value is not None and not self._objective.is_better(best.value, value)):
            remove_best(self._attempts)
            return None
        kept = best_weights(self._attempts)
        return next((folder for folder, evaluation in kept if evaluation == best), None)

    def _to_beat(self, objective: Objective) -> BestEvaluation | None:
        """The best evaluation so far, unless the sweep's objective has changed since."""
        return self._best if self._best and self._best.metric == objective.metric else None
