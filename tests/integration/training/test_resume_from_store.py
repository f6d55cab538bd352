"""A trial in an object store, stopped on request, goes on elsewhere as if nothing had happened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chosen_scores import OBJECTIVE, scores

from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.storage.locations import node_cache
from trainables.storage.storage import open_storage
from trainables.training.attempt_folder import on_this_node, publish_rest
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter, StopTrial

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeAttempt = Callable[[int], TrialConfig]


TRAIN = {"steps": 9, "micro_batch_size": 4, "report_every": 3, "log_every": 1}


class Stopping(ListReporter):
    """Asks the trial to stop after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def stop_requested(self) -> bool:
        return self.measurements[-1].step == self._step


@pytest.fixture
def make_attempt(
    make_trial: Callable[..., TrialConfig], bucket: str, base_dir: Path, tmp_path: Path
) -> MakeAttempt:
    """Attempts of a trial whose sweep lies in the store, on a node with nothing of it."""
    sweep = f"{bucket}/{tmp_path.name}"
    open_storage(sweep).publish(base_dir, "base", last="base.json")
    attempts = [f"{sweep}/trials/0000/attempt_{number}" for number in (1, 2, 3)]

    def make(number: int) -> TrialConfig:
        shutil.rmtree(node_cache() / "attempts", ignore_errors=True)
        trial = make_trial(
            train=TRAIN,
            objective=OBJECTIVE,
            base_dir=f"{sweep}/base",
            output_dir=attempts[number - 1],
            earlier_attempts=tuple(attempts[: number - 1]),
        )
        return on_this_node(trial)

    return make


def stop_after(trial: TrialConfig, step: int) -> None:
    with pytest.raises(StopTrial):
        train_lora(trial, Stopping(step))
    publish_rest(trial)


@pytest.mark.parametrize("step", [4, 6])
def test_nothing_is_evaluated_that_was_or_that_belongs_to_no_report_step(
    make_attempt: MakeAttempt, step: int
) -> None:
    stop_after(make_attempt(1), step)
    reporter = ListReporter()
    train_lora(make_attempt(2), reporter)
    assert [m.step for m in reporter.measurements] == list(range(step + 1, 10))
    evaluated = [m.step for m in reporter.measurements if IN_DOMAIN_ACC in m.metrics]
    assert evaluated == [s for s in (6, 9) if s > step]


def best_weights_address(trial: TrialConfig) -> str | None:
    """Trains to the end; where others find the best weights, if these are not the last."""
    address = train_lora(trial, ListReporter()).best_weights_dir
    publish_rest(trial)
    assert address is None or "adapter_model.safetensors" in open_storage(address).children("")
    return address


@pytest.mark.parametrize(("stop", "value", "attempt"), [(4, 0.8, 1), (4, 0.95, 2), (6, 0.95, 1)])
def test_the_best_weights_of_an_earlier_attempt_count(
    make_attempt: MakeAttempt,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    value: float,
    attempt: int,
) -> None:
    scores(monkeypatch, {3: 0.9, 6: value, 9: 0.7})
    stop_after(make_attempt(1), stop)
    second = make_attempt(2)
    address = best_weights_address(second)
    sweep, _, _ = str(second.published_dir).rpartition("/")
    assert address == f"{sweep}/attempt_{attempt}/best"


def test_where_the_best_weights_are_lost_worse_ones_do_not_take_their_place(
    make_attempt: MakeAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, {3: 0.9, 6: 0.8, 9: 0.7})
    first = make_attempt(1)
    stop_after(first, 4)
    open_storage(str(first.published_dir)).remove("best")
    second = make_attempt(2)
    assert best_weights_address(second) is None
    assert "best" not in open_storage(str(second.published_dir)).children("")
