"""A trial in an object store that was stopped resumes on another node."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from chosen_scores import OBJECTIVE, scores
from measured import by_step
from trained_trials import KINDS, TRAIN, train

from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.storage.locations import node_cache
from trainables.storage.storage import open_storage
from trainables.training.attempt_folder import on_this_node, publish_rest
from trainables.training.reporter import ListReporter, StopTrial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Run

    from trainables.config import TrialConfig


class Stopping(ListReporter):
    """Asks the trial to stop after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def stop_requested(self) -> bool:
        return self.measurements[-1].step == self._step


@pytest.mark.parametrize("stop", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_stopped_and_resumed_elsewhere_equals_undisturbed(
    make_trial: Callable[..., TrialConfig],
    undisturbed: Callable[[str], tuple[TrialConfig, Run]],
    bucket: str,
    base_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    """The best weights are the first attempt's; no step is evaluated twice."""
    expected = by_step(undisturbed("lora")[1].measurements)
    sweep = f"{bucket}/{tmp_path.name}"
    open_storage(sweep).publish(base_dir, "base", last="base.json")
    first, second = (f"{sweep}/trials/0000/attempt_{number}" for number in (1, 2))

    def attempt(address: str, *earlier: str) -> TrialConfig:
        shutil.rmtree(node_cache() / "attempts", ignore_errors=True)  # another node
        places = {"base_dir": f"{sweep}/base", "output_dir": address, "earlier_attempts": earlier}
        return on_this_node(make_trial(**KINDS["lora"], train=TRAIN, objective=OBJECTIVE, **places))

    scores(monkeypatch, {3: 0.9, 6: 0.8, 9: 0.7})
    trial = attempt(first)
    with pytest.raises(StopTrial):
        train(trial, Stopping(stop))
    publish_rest(trial)
    trial, reporter = attempt(second, first), ListReporter()
    result = train(trial, reporter)
    publish_rest(trial)
    assert result.best_weights_dir == f"{first}/best"
    assert "adapter_model.safetensors" in open_storage(f"{first}/best").children("")
    resumed = by_step(reporter.measurements)
    assert sorted(resumed) == list(range(stop + 1, 10))
    for step, metrics in resumed.items():
        own = {key: value for key, value in expected[step].items() if key != IN_DOMAIN_ACC}
        assert {key: metrics[key] for key in own} == own
