"""Which weights are kept as the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import measurement, trial_config

from trainables.config import Objective, TrialConfig
from trainables.training.best_weights import BestWeights
from trainables.training.checkpoint_files import best_dir

GAIN, LOSS = Objective(metric="gain", mode="max"), Objective(metric="loss", mode="min")


def keeper(trial: TrialConfig, resumed: BestWeights | None = None) -> BestWeights:
    """Saves a file in place of weights."""
    best = BestWeights(trial, lambda folder: (folder / "weights").touch())
    best.restore(resumed.carry() if resumed else None)
    return best


def offer(best: BestWeights, step: int, **metrics: float) -> None:
    best.offer(measurement(step, metrics))


@pytest.fixture
def trial(tmp_path: Path) -> TrialConfig:
    return trial_config(output_dir=str(tmp_path / "attempt_1"), objective=GAIN)


@pytest.fixture
def second(trial: TrialConfig, tmp_path: Path) -> TrialConfig:
    """The trial's second attempt."""
    places = {"output_dir": str(tmp_path / "attempt_2"), "earlier_attempts": (trial.output_dir,)}
    return trial.model_copy(update=places)


@pytest.mark.parametrize(("last", "is_kept"), [(0.5, True), (0.6, False), (0.7, False)])
def test_none_are_kept_if_the_last_are_the_best(
    trial: TrialConfig, second: TrialConfig, last: float, is_kept: bool
) -> None:
    before = keeper(trial)
    offer(before, 3, gain=0.6)
    after = keeper(second, before)
    offer(after, 6, gain=0.4)
    folder = best_dir(Path(trial.output_dir))
    assert after.settle(measurement(9, {"gain": last})) == (folder if is_kept else None)
    assert folder.exists() == is_kept


def test_weights_are_not_compared_by_values_of_two_objectives(
    trial: TrialConfig, second: TrialConfig
) -> None:
    before = keeper(trial)
    offer(before, 3, gain=0.6, loss=0.9)
    after = keeper(second.model_copy(update={"objective": LOSS}), before)
    offer(after, 6, gain=0.4, loss=0.8)
    left: Any = after.settle(measurement(9, {"gain": 0.7, "loss": 0.9}))
    assert left == best_dir(Path(second.output_dir))
    assert not best_dir(Path(trial.output_dir)).exists()
