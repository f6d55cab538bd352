"""ZeRO-3 on three workers, by whom no parameter divides: its checkpoints and its evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from evaluated import evaluated_base
from transformers import AutoModelForCausalLM
from worker_group import group_of, values

from trainables.evaluation.evaluator import Evaluator
from trainables.records.item_records import items_file, read_items, without_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from small_trials import Run
    from worker_group import Train

    from trainables.config import TrialConfig
    from tune.config.sweep_config import SweepConfig

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]

TRAIN = {"steps": 4, "batch_size": 6, "micro_batch_size": 2, "report_every": 2}
# Parameters up to this stay whole on every worker between the steps. By DeepSpeed's default all of
# so small a model do; so the norms do, and the matrices do not.
MOST_ELEMENTS_KEPT = 1000


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
    base = evaluated_base(config, base_cache)

    def make(**changes: Any) -> TrialConfig:
        zero = {"stage": 3, "stage3_param_persistence_threshold": MOST_ELEMENTS_KEPT}
        batches = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
        }
        own = {**batches, "zero_optimization": zero, "zero_allow_untested_optimizer": True}
        fields = {"learning_rate": 1e-4, "train": TRAIN, "workers": 3, "cpus_per_worker": 0.5}
        trial = make_trial("full", deepspeed={"config": own}, **fields | changes)
        return trial.model_copy(update={"eval": config.eval, "base_dir": str(base)})

    return make


@pytest.fixture(scope="module")
def undisturbed(
    train: Train, make_sharded_trial: Callable[..., TrialConfig]
) -> dict[int, dict[str, float]]:
    """What a trial measures that nothing interrupts."""
    measurements, error = train(make_sharded_trial())
    assert error is None
    return values(measurements)


def test_a_trial_resumes_though_its_workers_have_unequal_parts(
    train: Train,
    undisturbed: dict[int, dict[str, float]],
    make_sharded_trial: Callable[..., TrialConfig],
) -> None:
    stopped = make_sharded_trial()
    assert isinstance(train(stopped, stops_at=2)[1], SystemExit)
    resumed, error = train(make_sharded_trial(earlier_attempts=(stopped.output_dir,)))
    assert error is None
    assert values(resumed) == {step: undisturbed[step] for step in (2, 3, 4)}


def test_its_measurements_are_those_of_one_worker(
    undisturbed: dict[int, dict[str, float]],
    make_sharded_trial: Callable[..., TrialConfig],
    run: Callable[..., Run],
) -> None:
    alone = run(make_sharded_trial(workers=1))
    for step, expected in values(alone.measurements).items():
        assert undisturbed[step] == pytest.approx(expected, abs=1e-3)
    assert "in_domain/target_relay_generate/exact_match" in alone.last


def test_workers_share_an_evaluation_though_a_forward_pass_takes_them_all(
    train: Train, make_sharded_trial: Callable[..., TrialConfig], tokenizer: Any
) -> None:
    """Also where one of them has less to generate than the others."""
    trial = make_sharded_trial(learning_rate=1e-3)
    suite = trial.eval.model_copy(update={"batch_size": 1})
    measurements, error = train(trial.model_copy(update={"eval": suite}))
    assert error is None
    tuned = AutoModelForCausalLM.from_pretrained(trial.weights_dir).eval()
    evaluation = Evaluator(suite, tokenizer).evaluate(tuned)
    last = measurements[-1]
    items = read_items(items_file(Path(trial.output_dir), last.name))
    assert items == without_texts(evaluation.items)
    assert {key: last.metrics[key] for key in evaluation.metrics} == evaluation.metrics
    lengths = [len(item.answer) for item in evaluation.items if "generate" in item.task]
    assert len(set(lengths)) > 1, lengths
