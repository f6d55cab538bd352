"""Which weights are kept as the best, where the trial or its sweep asks for others than before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import measurement, trial_config

from trainables.config import Objective, TrialConfig
from trainables.training.best_weights import BestWeights
from trainables.training.checkpoint_files import best_dir

GAIN, LOSS = Objective(metric="gain", mode="max"), Objective(metric="loss", mode="min")


def keeper(trial: TrialConfig) -> BestWeights:
    """Saves a file in place of weights."""
    return BestWeights(trial, lambda folder: (folder / "weights").touch())


def offer(best: BestWeights, step: int, **metrics: float) -> None:
    best.offer(measurement(step, metrics))


@pytest.fixture
def trial(tmp_path: Path) -> TrialConfig:
    return trial_config(output_dir=str(tmp_path / "attempt_1"), objective=GAIN)


def test_none_are_kept_of_a_trial_that_saves_no_weights(trial: TrialConfig) -> None:
    train = trial.train.model_copy(update={"save_weights": False})
    best = keeper(trial.model_copy(update={"train": train}))
    offer(best, 3, gain=0.6)
    assert not best_dir(Path(trial.output_dir)).exists()
    assert best.settle(measurement(6, {"gain": 0.5})) is None


def test_those_of_another_objective_are_not_the_best(trial: TrialConfig, tmp_path: Path) -> None:
    """Its values are of another kind: a start of the sweep may ask for another."""
    before = keeper(trial)
    offer(before, 3, gain=0.6, loss=0.9)
    changes: dict[str, Any] = {
        "objective": LOSS,
        "output_dir": str(tmp_path / "attempt_2"),
        "earlier_attempts": (trial.output_dir,),
    }
    after = keeper(trial.model_copy(update=changes))
    after.restore(before.carry())
    offer(after, 6, gain=0.4, loss=0.8)
    left = after.settle(measurement(9, {"gain": 0.7, "loss": 0.9}))
    assert left == best_dir(tmp_path / "attempt_2")
    assert not best_dir(Path(trial.output_dir)).exists()
