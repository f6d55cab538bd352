"""LoRA trials: what TRL and PEFT would do, a base that stays as it was, honest reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import peft
import pytest
import torch
from measured import by_step
from safetensors.torch import load_file

from trainables import metric_keys
from trainables.config import ROLES, TrialConfig
from trainables.data.dataset import training_order
from trainables.data.tokenized import trial_inputs
from trainables.errors import Diverged
from trainables.models.loading import load_model, shared_base
from trainables.records.item_records import read_items
from trainables.training.adapter_sft import train_adapter

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_trials import Run

    from trainables.evaluation.base_scores import Base
    from trainables.records.schema import Measurement
    from tune.config.sweep_config import SweepConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]


@pytest.fixture(scope="module")
def plain(make_trial: MakeTrial, run: RunTrial) -> Run:
    """The trial that others are compared with."""
    return run(make_trial())


def test_losses_equal_plain_trl_with_peft(
    plain: Run, make_trial: MakeTrial, run: RunTrial, trl_curve: Callable[..., list[float]]
) -> None:
    """Each seed's, which draws the order of the samples too; and the tokens are those trained."""
    adapter = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    first, second = (trl_curve(make_trial(seed=seed), adapter) for seed in (0, 1))
    assert plain.curve() == pytest.approx(first, abs=1e-5)
    assert run(make_trial(seed=1)).curve() == pytest.approx(second, abs=1e-5)
    assert len({*first, *second}) == 20
    samples = trial_inputs(make_trial())[1].train
    order = training_order(len(samples), 80, seed=0)
    tokens = sum(len(samples[row]["input_ids"]) for row in order)
    assert plain.last["train/tokens_seen"] == tokens
    assert plain.last["train/epoch"] == 80 / len(samples)


class Fails:
    def report(self, measurement: Measurement) -> None:
        raise RuntimeError("no more")


@pytest.mark.parametrize("ending", ["checkpointing", "raises"])
def test_the_base_is_left_as_it_was(
    ending: str, make_trial: MakeTrial, run: RunTrial, plain: Run
) -> None:
    """Gradient checkpointing changes no number."""
    base = shared_base(make_trial().model)
    if ending == "raises":
        with pytest.raises(RuntimeError, match="no more"):
            train_adapter(make_trial(learning_rate=1e-2), Fails())
    else:
        checkpointed = run(make_trial(train={"gradient_checkpointing": True}))
        assert checkpointed.curve() == pytest.approx(plain.curve(), abs=1e-5)
    fresh = load_model(make_trial().model).to(base.device)
    expected = fresh.state_dict()
    assert list(base.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in base.state_dict().items())
    assert {(p.requires_grad, p.grad) for p in base.parameters()} == {(True, None)}
    for before, after in zip(fresh.named_modules(), base.named_modules(), strict=True):
        assert (after[0], type(after[1])) == (before[0], type(before[1]))
        assert len(after[1]._forward_hooks) == len(before[1]._forward_hooks)
        assert not getattr(after[1], "gradient_checkpointing", False)
    assert base.forward.__func__ is type(base).forward
    assert by_step(run(make_trial()).measurements) == by_step(plain.measurements)


def test_adapter_options_reach_the_adapter(make_trial: MakeTrial, run: RunTrial) -> None:
    modules = ("embed_tokens", "q_proj")
    lora = {"rank": 2, "rslora": True, "dora": True, "dropout": 0.5, "target_modules": modules}
    trial = make_trial(lora=lora, train={"steps": 2, "report_every": 2})
    trained = run(trial)
    config = json.loads(Path(trial.weights_dir, "adapter_config.json").read_text())
    wanted = {"r": 2, "use_rslora": True, "use_dora": True, "lora_dropout": 0.5}
    assert config | wanted == config
    assert sorted(config["target_modules"]) == sorted(modules)
    weights = load_file(Path(trial.weights_dir, "adapter_model.safetensors"))
    assert all("lora_" in name for name in weights)  # the embedding's update, not the embedding
    assert any("lora_embedding_A" in name for name in weights)
    trainable = sum(tensor.numel() for tensor in weights.values())
    assert trained.last["params/trainable"] == trainable


@pytest.mark.parametrize(
    ("method", "norm"),
    [("lora", "nan"), ("full", "None")],  # which DeepSpeed does not reveal at stage 0
)
def test_a_loss_that_is_not_finite_ends_the_trial_as_diverged(
    make_trial: MakeTrial, run: RunTrial, method: str, norm: str
) -> None:
    with pytest.raises(Diverged, match=rf"step \d+: loss nan, gradient norm {norm}"):
        run(make_trial(method, learning_rate=1e30, deepspeed={"zero_stage": 0}))


def test_every_metric_is_documented_and_finite(plain: Run, sweep_config: SweepConfig) -> None:
    documented = set(metric_keys.METRICS)
    for role in ROLES:
        for task in getattr(sweep_config.eval, role):
            names = ("acc", "acc_stderr")
            documented |= {metric_keys.task_score(role, task.label, name) for name in names}
    per_task = (
        metric_keys.task_forgetting,
        metric_keys.task_forgetting_adjusted,
        metric_keys.task_retention_ratio,
    )
    for task in sweep_config.eval.retention:
        flips = (metric_keys.task_flips(task.label, name) for name in ("forgotten", "gained"))
        documented |= {*flips, *(key(task.label) for key in per_task)}
    assert set(plain.last) == documented
    for measurement in plain.measurements:
        assert set(measurement.metrics) <= documented
        assert all(math.isfinite(value) for value in measurement.metrics.values())


def test_items_on_disk_are_the_scores_that_were_reported(
    make_trial: MakeTrial, run: RunTrial, sweep_config: SweepConfig, base: Base
) -> None:
    trial = make_trial(learning_rate=3e-2)
    last = run(trial).last
    items = read_items(Path(trial.output_dir) / "items" / "step_00000010.jsonl")
    for role in ROLES:
        for task in getattr(sweep_config.eval, role):
            scores = [item.score for item in items if item.task == task.label]
            assert last[f"{role}/{task.label}/acc"] == sum(scores) / len(scores)
    assert last["in_domain/target_relay/acc"] > 0
    assert last["kl/base_to_tuned"] > 0.1
    of_base = {(item.task, item.doc_hash, item.filter): item for item in base.items}
    for item in items:  # the questions are stored with the base's items alone
        assert item.prompt == item.target == ""
        assert of_base[item.task, item.doc_hash, item.filter].prompt
