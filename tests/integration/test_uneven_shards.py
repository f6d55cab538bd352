"""ZeRO-3 on three workers, by whom no parameter divides: its checkpoints and its evaluations."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from worker_group import group_of, values

from trainables.base_evaluation import evaluate_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Run
    from worker_group import Train

    from trainables.config import TrialConfig
    from tune.sweep_config import SweepConfig

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cluster")]

TRAIN = {"steps": 4, "batch_size": 6, "micro_batch_size": 2, "report_every": 2}
# DeepSpeed's default; its small parameters stay whole on every worker between the steps.
SMALL_ONES_STAY, NONE_STAYS = 100_000, 0


@pytest.fixture(scope="module")
def train(cluster: None) -> Iterator[Train]:
    with group_of(3, cpus_each=0.5) as train:
        yield train


@pytest.fixture(scope="module")
def make_sharded_trial(
    make_trial: Callable[..., TrialConfig],
    load: Callable[..., SweepConfig],
    base_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., TrialConfig]:
    """A trial at stage 3 that is evaluated by likelihoods and by answers that it generates."""
    config = load(
        "eval.in_domain=[target_relay_generate]",
        "eval.retention=[list_last]",
        "eval.ood=[target_longer]",
        "eval.limit=4",
    )
    base = evaluate_base(config.model, config.data, config.eval, config.seed, base_cache)

    def make(most_elements: int, **changes: Any) -> TrialConfig:
        file = tmp_path_factory.mktemp("own") / "deepspeed.json"
        zero = {"stage": 3, "stage3_param_persistence_threshold": most_elements}
        batches = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        }
        file.write_text(
            json.dumps(
                {**batches, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
            )
        )
        fields = {"learning_rate": 1e-4, "train": TRAIN, "workers": 3, "cpus_per_worker": 0.5}
        trial = make_trial("full", deepspeed={"config_file": str(file)}, **fields | changes)
        return trial.model_copy(update={"eval": config.eval, "base_dir": str(base)})

    return make


@pytest.fixture(scope="module")
def undisturbed(
    train: Train, make_sharded_trial: Callable[..., TrialConfig]
) -> Callable[[int], dict[int, dict[str, float]]]:
    """What a trial measures that nothing interrupts."""

    @cache
    def undisturbed(most_elements: int) -> dict[int, dict[str, float]]:
        measurements, error = train(make_sharded_trial(most_elements))
        assert error is None
        return values(measurements)

    return undisturbed


@pytest.mark.parametrize("most_elements", [SMALL_ONES_STAY, NONE_STAYS])
def test_a_trial_resumes_though_its_workers_have_unequal_parts(
    most_elements: int,
    train: Train,
    undisturbed: Callable[[int], dict[int, dict[str, float]]],
    make_sharded_trial: Callable[..., TrialConfig],
) -> None:
    stopped = make_sharded_trial(most_elements)
    assert isinstance(train(stopped, stops_at=2)[1], SystemExit)
    again = make_sharded_trial(most_elements, earlier_attempts=(stopped.output_dir,))
    resumed, error = train(again)
    assert error is None
    expected = undisturbed(most_elements)
    assert values(resumed) == {step: expected[step] for step in (2, 3, 4)}


def test_where_no_parameter_stays_whole_a_trial_measures_what_one_worker_does(
    undisturbed: Callable[[int], dict[int, dict[str, float]]],
    make_sharded_trial: Callable[..., TrialConfig],
    run: Callable[..., Run],
) -> None:
    alone = run(make_sharded_trial(NONE_STAYS, workers=1))
    for step, expected in values(alone.measurements).items():
        assert undisturbed(NONE_STAYS)[step] == pytest.approx(expected, abs=1e-3)
    assert "in_domain/target_relay_generate/exact_match" in alone.last
