"""Groups of workers: they train what one worker trains, stay warm, and are replaced when broken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from ray.exceptions import RayActorError
from transformers import AutoModelForCausalLM
from worker_group import group_of, values

from trainables.errors import Diverged
from trainables.evaluation.drift import kl_drift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from small_trials import Run
    from worker_group import Train

    from trainables.config import TrialConfig
    from trainables.evaluation.base_scores import Base

pytestmark = pytest.mark.usefixtures("cluster")

RATE = 1e-4
SCHEDULE = {"schedule": "cosine", "warmup": 0.3}
TRAIN = {"steps": 6, "micro_batch_size": 4, "report_every": 3, **SCHEDULE}
# Two steps up from 0, and four down to it.
RATES = [RATE * share for share in (0.0, 0.5, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5)]


def workers() -> set[int]:
    """Processes of all groups of this session's cluster."""
    return {
        process.pid
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::Worker") and process.status() != psutil.STATUS_ZOMBIE
    }


@pytest.fixture(scope="module")
def train(cluster: None) -> Iterator[Train]:
    with group_of(2, cpus_each=1) as train:
        yield train


@pytest.fixture
def make_group_trial(make_trial: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    def make(stage: int = 2, **changes: Any) -> TrialConfig:
        fields = {"learning_rate": RATE, "train": TRAIN, "workers": 2} | changes
        return make_trial("full", deepspeed={"zero_stage": stage}, **fields)

    return make


@pytest.fixture(scope="module")
def alone(make_trial: Callable[..., TrialConfig], run: Callable[..., Run]) -> Any:
    """The same training in this process, the whole batch at once."""
    train = TRAIN | {"micro_batch_size": 8}
    trial = make_trial("full", learning_rate=RATE, deepspeed={"zero_stage": 2}, train=train)
    return trial, run(trial)


@pytest.fixture(scope="module")
def cold(
    train: Train, make_trial: Callable[..., TrialConfig]
) -> tuple[dict[int, dict[str, float]], set[int]]:
    """What the first trial of a group measures, and the group's processes."""
    trial = make_trial(
        "full", learning_rate=RATE, train=TRAIN, workers=2, deepspeed={"zero_stage": 2}
    )
    measurements, error = train(trial)
    assert error is None
    assert len(workers()) == 2
    return values(measurements), workers()


@pytest.mark.parametrize("stage", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2)), 3])
def test_two_workers_train_the_model_that_one_trains(
    stage: int,
    cold: Any,
    train: Train,
    make_group_trial: Callable[..., TrialConfig],
    alone: tuple[TrialConfig, Run],
    base: Base,
) -> None:
    trial = make_group_trial(stage)
    measurements, error = train(trial)
    assert error is None
    one, expected = alone
    curve = [m.metrics["train/loss"] for m in measurements]
    assert curve == pytest.approx(expected.curve(), abs=1e-3)
    assert [m.metrics["train/learning_rate"] for m in measurements] == pytest.approx(RATES)
    last = measurements[-1].metrics
    for key in ("kl/base_to_tuned", "forgetting/nll", "validation/loss", "in_domain/acc_mean"):
        assert last[key] == pytest.approx(expected.last[key], abs=1e-3)
    for key in ("train/tokens_seen", "params/trainable", "train/global_step"):
        assert last[key] == expected.last[key]
    loaded, wanted = (
        AutoModelForCausalLM.from_pretrained(folder).eval()
        for folder in (trial.weights_dir, one.weights_dir)
    )
    for mine, other in zip(loaded.parameters(), wanted.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-3)
    assert base.kl_reference is not None
    drift = kl_drift(loaded, base.kl_reference, batch_size=16)
    assert last["kl/base_to_tuned"] == pytest.approx(drift, abs=1e-5)
    logs = sorted(path.name for path in Path(trial.output_dir).glob("*.log"))
    assert logs == ["worker_0.log", "worker_1.log"]
    assert workers() == cold[1]


def test_a_trial_that_is_stopped_or_diverges_leaves_the_group_warm(
    cold: Any, train: Train, make_group_trial: Callable[..., TrialConfig]
) -> None:
    """The trials that follow measure what the group's first one did."""
    expected, processes = cold
    measurements, error = train(make_group_trial(), stops_at=3)
    assert isinstance(error, SystemExit)
    assert max(values(measurements)) == 3
    _, error = train(make_group_trial(learning_rate=1e30))
    assert isinstance(error, Diverged)
    assert re.fullmatch(r"step \d+: loss \S+, gradient norm \S+", str(error))
    measurements, error = train(make_group_trial())
    assert error is None
    assert values(measurements) == expected
    assert workers() == processes


def test_a_group_that_lost_a_worker_is_replaced_and_goes_on(
    cold: Any, train: Train, make_group_trial: Callable[..., TrialConfig]
) -> None:
    expected, _ = cold
    before = workers()
    killed = make_group_trial()
    _, error = train(killed, dies_at=4)
    assert isinstance(error, RayActorError)
    assert "of 2: " in str(error)  # it says which worker was lost
    resumed = make_group_trial(earlier_attempts=(killed.output_dir,))
    measurements, error = train(resumed)
    assert error is None
    assert values(measurements) == {step: expected[step] for step in (4, 5, 6)}
    assert len(workers()) == 2
    assert workers().isdisjoint(before)
