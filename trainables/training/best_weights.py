"""The weights at the best evaluation of a training, kept beside the final ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from trainables.config import TrialConfig
from trainables.files.disk import whole_folder
from trainables.results.records import Measurement
from trainables.training.attempt_folder import is_scratch
from trainables.training.checkpoint import agreed
from trainables.training.checkpoint_files import (
    BestEvaluation,
    best_dir,
    find_best,
    remove_best,
    write_best,
)


class BestWeights:
    """Keeps the weights of the best evaluation so far, by the trial's objective.

    The kept weights record their evaluation, so a later attempt knows the value to beat.

    Args:
        config: the trial.
        save: writes the weights into a folder; every worker calls it.
        is_first: whether this is the worker of rank 0.
    """

    def __init__(self, config: TrialConfig, save: Callable[[Path], None], is_first: bool) -> None:
        self._objective = config.objective if config.train.save_weights else None
        self._attempts = config.attempt_dirs
        self._workers = config.workers
        self._save = save
        self._is_first = is_first
        self._is_scratch = is_scratch(config)

    def offer(self, measurement: Measurement) -> None:
        """Save the weights if the evaluation is the best so far; every worker calls it."""
        objective = self._objective
        if objective is None:
            return
        value = measurement.metrics.get(objective.metric)
        kept = find_best(self._attempts)
        is_best = value is not None and (
            kept is None
            or kept[1].metric != objective.metric  # the sweep's objective has changed since
            or objective.is_better(value, kept[1].value)
        )
        if not agreed(is_best, self._workers):
            return
        folder = best_dir(self._attempts[-1])
        with whole_folder(folder, self._is_first, self._is_scratch) as unfinished:
            self._save(unfinished)
            if self._is_first and value is not None:
                best = BestEvaluation(step=measurement.step, metric=objective.metric, value=value)
                write_best(unfinished, best)
        if self._is_first and kept is not None and kept[0] != folder:
            shutil.rmtree(kept[0], ignore_errors=True)

    def settle(self, last: Measurement) -> str | None:
        """Where weights better than the last are; if the last are the best, none are kept.

        For the first worker only.
        """
        kept = find_best(self._attempts)
        if self._objective is None or kept is None:
            return None
        folder, best = kept
        if best.metric != self._objective.metric:  # the sweep's objective has changed since
            remove_best(self._attempts)
            return None
        value = last.metrics.get(self._objective.metric)
        if value is not None and not self._objective.is_better(best.value, value):
            remove_best(self._attempts)
            return None
        return str(folder)
