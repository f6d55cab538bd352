"""Groups of workers: they train what one worker trains, stay warm, and are replaced when broken."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from ray.exceptions import RayActorError
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
from worker_group import group_of, values

from trainables.config import EvalTask, ModelConfig
from trainables.errors import Diverged
from trainables.evaluation.drift import kl_drift
from trainables.training.checkpoint_files import checkpoint_dir, newest_valid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Run
    from worker_group import Train

    from trainables.config import TrialConfig
    from trainables.evaluation.base_scores import Base

pytestmark = pytest.mark.usefixtures("cluster")

EMBEDDED = "package://trainables/embedded/eval_tasks"
TASK = """
task: deadly
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
process_results: !function deadly.results
metric_list: [{{metric: acc}}]
"""
FAILING = """
import os
import time
from trainables.training import checkpoint

write = checkpoint.write

def slowly(*arguments, **named):
    time.sleep(6)  # for longer than a group waits for the last words of its workers
    write(*arguments, **named)

checkpoint.write = slowly

def results(doc, likelihoods):
    if os.environ.get("RANK") == "1":
        raise ValueError("no luck")
    return {"acc": 1.0}
"""
# A model's own code, whose experts are modules and run only where they get tokens.
LISTED = """
import torch
from transformers import LlamaForCausalLM

class Mixture(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.gate = torch.nn.Linear(size, 16, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(size, size) for _ in range(16))

    def forward(self, hidden):
        tokens = hidden.flatten(0, -2)
        weights, chosen = self.gate(tokens).softmax(-1).max(-1)
        mixed = torch.zeros_like(tokens)
        for number in chosen.unique().tolist():
            (own,) = torch.where(chosen == number)
            mixed = mixed.index_add(0, own, self.experts[number](tokens[own]) * weights[own, None])
        return mixed.view_as(hidden)

class Listed(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Mixture(config.hidden_size)
        self.post_init()
"""
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


def with_task(folder: Path, results: str) -> dict[str, Any]:
    """A suite with a task whose results are found by this module, in this folder."""
    items = folder / "items.jsonl"
    items.write_text('{"question": "max 4 7 2 =", "choices": ["7", "2"], "answer": 0}\n' * 4)
    (folder / "deadly.py").write_text(results)
    (folder / "deadly.yaml").write_text(TASK.format(items=items))
    tasks = tuple(EvalTask(task=task) for task in ("deadly", "target_relay"))
    return {"in_domain": tasks, "task_dirs": (EMBEDDED, str(folder))}


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


@pytest.mark.parametrize(
    "stage", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)), 2, 3]
)
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


@pytest.fixture(scope="module")
def mixture(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A small mixture of experts with code of its own."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "listed.py").write_text(LISTED)
    spec = importlib.util.spec_from_file_location("listed", folder / "listed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    set_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer)} | SHAPE
    own = AutoConfig.for_model("llama", **sizes, auto_map={"AutoModelForCausalLM": "listed.Listed"})
    module.Listed(own).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(name=str(folder), dtype="float32", trust_remote_code=True)


@pytest.mark.slow
def test_two_workers_train_a_mixture_of_which_each_runs_other_experts(
    train: Train,
    mixture: ModelConfig,
    make_group_trial: Callable[..., TrialConfig],
    make_trial: Callable[..., TrialConfig],
    run: Callable[..., Run],
) -> None:
    """Else DeepSpeed waits forever for what the other worker does not send."""
    short = {"steps": 3, "report_every": 3, "save_weights": False}
    model = {"model": mixture}
    alone = make_trial("full", learning_rate=1e-3, train=TRAIN | short | {"micro_batch_size": 8})
    expected = run(alone.model_copy(update=model)).curve()
    trial = make_group_trial(3, learning_rate=1e-3, train=TRAIN | short)
    measurements, error = train(trial.model_copy(update=model))
    assert error is None
    assert [m.metrics["train/loss"] for m in measurements] == pytest.approx(expected, abs=1e-3)


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


def test_a_group_is_ended_only_once_its_checkpoint_is_written(
    train: Train, make_group_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    """The evaluation beside it fails in another worker; a retry would train its steps again."""
    trial = make_group_trial(eval=with_task(tmp_path, FAILING))
    _, error = train(trial)
    assert "no luck" in str(error)
    newest = newest_valid([Path(trial.output_dir)])
    assert newest == checkpoint_dir(Path(trial.output_dir), 3)
