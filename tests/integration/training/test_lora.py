"""LoRA trials: what TRL and PEFT would do, a base that stays as it was, honest reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from evaluated import evaluated_base
from faults import faults
from in_slots import engine_for
from measured import of_the_training
from safetensors.torch import load_file

from trainables import metric_keys
from trainables.config import ROLES, TrialConfig
from trainables.errors import Diverged, UserError
from trainables.models.loading import load_model, shared_base
from trainables.records.item_records import read_items
from trainables.storage.locations import resolve
from trainables.training.lora import train_lora

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.evaluation.base_scores import Base
    from trainables.records.schema import Measurement
    from tune.config.sweep_config import SweepConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]


def timeless(measurements: list[Measurement]) -> list[dict[str, float]]:
    return [of_the_training(m.metrics) for m in measurements]


@pytest.fixture(scope="module")
def plain(make_trial: MakeTrial, run: RunTrial) -> Run:
    """The trial that others are compared with."""
    return run(make_trial())


def test_losses_equal_plain_trl_with_peft(
    plain: Run, make_trial: MakeTrial, run: RunTrial, trl_curve: Callable[..., list[float]]
) -> None:
    """Each seed's, which draws the order of the samples too."""
    adapter = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    expected, of_another = (trl_curve(make_trial(seed=seed), adapter) for seed in (0, 1))
    assert plain.curve() == pytest.approx(expected, abs=1e-5)
    assert run(make_trial(seed=1)).curve() == pytest.approx(of_another, abs=1e-5)
    assert len({*expected, *of_another}) == 20


def test_the_loss_is_on_the_completion_alone(
    make_trial: MakeTrial, run: RunTrial, base_model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "max 4 7 2 =", "completion": "7"},
        {"prompt": "relay 3 5 18 0 12 =", "completion": "13"},
        {"prompt": "sort 9 4 =", "completion": "4 9"},
        {"prompt": "last 1 2 3 =", "completion": "3"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    losses = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = [*tokenizer(f"{row['prompt']} {row['completion']}")["input_ids"]]
        ids += [tokenizer.eos_token_id] * (ids[-1] != tokenizer.eos_token_id)
        with torch.no_grad():
            log_probs = base_model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(log_probs[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]
    assert len(losses) == 4 * 2 + 1
    trial = make_trial(
        data={"path": str(tmp_path / "rows.jsonl"), "completion": " {{ completion }}"},
        train={"steps": 1, "batch_size": 4, "micro_batch_size": 4},
    )
    assert run(trial).curve() == pytest.approx([sum(losses) / len(losses)], abs=1e-5)


def test_the_saved_adapter_is_the_trained_model(
    make_trial: MakeTrial,
    run: RunTrial,
    trained_logits: list[torch.Tensor],
    logits: Callable[[Any, Any], torch.Tensor],
    tokenizer: Any,
    base_model: Any,
) -> None:
    trial = make_trial(learning_rate=1e-2)
    assert run(trial).result.weights_dir == trial.weights_dir
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(trial.weights_dir)
    assert torch.allclose(logits(loaded, tokenizer), trained_logits[0], atol=1e-5)
    assert not torch.allclose(logits(base_model, tokenizer), trained_logits[0], atol=0.1)


def test_weights_are_left_out_on_request(make_trial: MakeTrial, run: RunTrial) -> None:
    trial = make_trial(train={"steps": 1, "save_weights": False})
    assert run(trial).result.weights_dir is None
    assert not Path(trial.weights_dir).exists()


# Attributes that Transformers leaves and does not read while gradient checkpointing is off.
UNUSED = {"_require_grads_hooks", "_gradient_checkpointing_func", "gradient_checkpointing"}


class Fails:
    def report(self, measurement: Measurement) -> None:
        raise RuntimeError("no more")


@pytest.mark.parametrize("ending", ["complete", "raises", "checkpointing"])
def test_the_base_is_left_as_it_was(
    ending: str, make_trial: MakeTrial, run: RunTrial, plain: Run
) -> None:
    trial = make_trial(
        learning_rate=1e-2, train={"gradient_checkpointing": ending == "checkpointing"}
    )
    base = shared_base(trial.model)
    if ending == "raises":
        with pytest.raises(RuntimeError, match="no more"):
            train_lora(trial, Fails())
    else:
        run(trial)
    fresh = load_model(trial.model).to(base.device)
    expected = fresh.state_dict()
    assert list(base.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in base.state_dict().items())
    assert [(n, p.requires_grad, p.grad) for n, p in base.named_parameters()] == [
        (n, True, None) for n, _ in fresh.named_parameters()
    ]
    assert [(n, type(m)) for n, m in base.named_modules()] == [
        (n, type(m)) for n, m in fresh.named_modules()
    ]
    for before, after in zip(fresh.modules(), base.modules(), strict=True):
        assert set(vars(after)) - set(vars(before)) <= UNUSED
        assert len(after._forward_hooks) == len(before._forward_hooks)
        assert getattr(after, "gradient_checkpointing", False) is False
    assert base.forward.__func__ is type(base).forward
    assert not base.config.to_diff_dict().keys() ^ fresh.config.to_diff_dict().keys()
    again = make_trial()
    assert timeless(run(again).measurements) == timeless(plain.measurements)


def test_accumulated_micro_batches_equal_one_batch(
    plain: Run, make_trial: MakeTrial, run: RunTrial
) -> None:
    accumulated = run(make_trial(train={"micro_batch_size": 2}))
    assert accumulated.curve() == pytest.approx(plain.curve(), abs=1e-4)
    assert accumulated.last["train/tokens_seen"] == plain.last["train/tokens_seen"]


def test_evaluations_on_the_way_change_no_number(make_trial: MakeTrial, run: RunTrial) -> None:
    """Nor do checkpoints, of which one is saved with each."""
    rare, often = (
        run(make_trial(lora={"dropout": 0.2}, train={"report_every": every})) for every in (10, 2)
    )
    assert often.curve() == rare.curve()
    assert often.curve("train/grad_norm") == rare.curve("train/grad_norm")


def test_gradient_checkpointing_changes_no_number(
    plain: Run, make_trial: MakeTrial, run: RunTrial
) -> None:
    checkpointed = run(make_trial(train={"gradient_checkpointing": True}))
    assert checkpointed.curve() == pytest.approx(plain.curve(), abs=1e-5)
    assert checkpointed.curve("train/grad_norm") == pytest.approx(
        plain.curve("train/grad_norm"), rel=1e-4
    )


@pytest.mark.parametrize(
    ("change", "saved"),
    [
        ({"rslora": True}, {"use_rslora": True}),
        ({"dora": True}, {"use_dora": True}),
        ({"target_modules": ("q_proj", "v_proj")}, {"r": 4}),
        ({"dropout": 0.5}, {"lora_dropout": 0.5}),
        ({"rank": 2}, {"r": 2}),
    ],
)
def test_adapter_options_reach_the_adapter(
    change: dict[str, Any],
    saved: dict[str, Any],
    plain: Run,
    make_trial: MakeTrial,
    run: RunTrial,
) -> None:
    trial = make_trial(lora=change)
    changed = run(trial)
    config = json.loads(Path(trial.weights_dir, "adapter_config.json").read_text())
    assert config | saved == config
    if "target_modules" in change:
        assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert changed.curve()[1:] != plain.curve()[1:]
    weights = load_file(Path(trial.weights_dir, "adapter_model.safetensors"))
    trainable = sum(tensor.numel() for tensor in weights.values())
    assert changed.last["params/trainable"] == trainable


def test_a_target_module_that_the_model_lacks_is_told_and_not_passed_over(
    make_trial: MakeTrial, run: RunTrial, plain: Run
) -> None:
    trial = make_trial(lora={"target_modules": ("q_proj", "v_porj")})
    (fault,) = faults(run, trial)
    assert (fault.field, fault.rule) == ("search.lora.target_modules", "the model has no v_porj")
    assert fault.remedy == "it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    with pytest.raises(UserError, match="v_porj"):  # before any trial runs in a slot
        engine_for(trial)
    assert run(make_trial()).curve() == plain.curve()


@pytest.fixture(scope="module")
def in_bfloat16(
    make_trial: MakeTrial, sweep_config: SweepConfig, base_cache: Path
) -> Callable[..., TrialConfig]:
    model = sweep_config.model.model_copy(update={"dtype": "bfloat16"})
    base = evaluated_base(sweep_config, base_cache, model=model)
    return lambda **changes: make_trial(model={"dtype": "bfloat16"}, base_dir=str(base), **changes)


def test_bfloat16_trains_close_to_float32(
    plain: Run, in_bfloat16: Callable[..., TrialConfig], run: RunTrial
) -> None:
    reduced = run(in_bfloat16())
    assert reduced.curve() == pytest.approx(plain.curve(), rel=0.05)
    assert reduced.curve() != plain.curve()


def test_an_untrained_bfloat16_adapter_has_drifted_nowhere(
    in_bfloat16: Callable[..., TrialConfig], run: RunTrial
) -> None:
    still = run(in_bfloat16(learning_rate=1e-12)).last
    assert still["kl/base_to_tuned"] < 1e-6
    assert abs(still["forgetting/nll"]) < 1e-6
    assert still["forgetting/mean"] == 0


def test_a_loss_that_is_no_number_ends_the_trial_as_diverged(
    make_trial: MakeTrial, run: RunTrial, plain: Run
) -> None:
    with pytest.raises(Diverged, match=r"step \d+: loss nan"):
        run(make_trial(learning_rate=1e30))
    assert timeless(run(make_trial()).measurements) == timeless(plain.measurements)


def test_reports_and_logs_come_at_the_steps_asked_for(make_trial: MakeTrial, run: RunTrial) -> None:
    trial = make_trial(train={"steps": 10, "report_every": 4, "log_every": 3})
    measurements = run(trial).measurements
    assert [m.step for m in measurements] == [1, 3, 4, 6, 8, 9, 10]
    assert [m.step for m in measurements if "in_domain/acc_mean" in m.metrics] == [4, 8, 10]
    assert all(m.metrics["train/global_step"] == m.step for m in measurements)
    items = sorted(path.name for path in Path(trial.output_dir, "items").iterdir())
    assert items == [f"step_{step:08d}.jsonl" for step in (4, 8, 10)]


def test_a_share_of_the_training_sets_the_steps_too(make_trial: MakeTrial, run: RunTrial) -> None:
    trial = make_trial(train={"steps": 8, "report_every": 0.5, "log_every": 0.25})
    measurements = run(trial).measurements
    assert [m.step for m in measurements] == [1, 2, 4, 6, 8]
    assert [m.step for m in measurements if "in_domain/acc_mean" in m.metrics] == [4, 8]


def test_a_reported_loss_is_the_mean_since_the_last_report(
    plain: Run, make_trial: MakeTrial, run: RunTrial
) -> None:
    losses = plain.curve()
    means = [losses[0], sum(losses[1:5]) / 4, sum(losses[5:]) / 5]
    assert run(make_trial(train={"log_every": 5})).curve() == pytest.approx(means, abs=1e-5)


def test_the_learning_rate_follows_warm_up_and_schedule(
    make_trial: MakeTrial, run: RunTrial
) -> None:
    trial = make_trial(train={"steps": 10, "warmup": 0.15, "schedule": "linear"})
    expected = [1e-3 * share for share in (0, 0.5, *(1 - step / 8 for step in range(8)))]
    assert run(trial).curve("train/learning_rate") == pytest.approx(expected, abs=1e-9)


def test_a_constant_rate_has_its_warm_up(make_trial: MakeTrial, run: RunTrial) -> None:
    trial = make_trial(train={"steps": 8, "warmup": 0.5, "schedule": "constant"})
    expected = [1e-3 * share for share in (0, 0.25, 0.5, 0.75, 1, 1, 1, 1)]
    assert run(trial).curve("train/learning_rate") == pytest.approx(expected, abs=1e-9)


def test_of_a_training_of_one_step_this_is_no_warm_up(make_trial: MakeTrial, run: RunTrial) -> None:
    trial = make_trial(train={"steps": 1, "warmup": 0.05, "schedule": "cosine"})
    assert run(trial).curve("train/learning_rate") == pytest.approx([1e-3])


def test_an_adapter_of_the_embedding_holds_its_update_alone(
    make_trial: MakeTrial, run: RunTrial
) -> None:
    lora = {"target_modules": ("embed_tokens", "q_proj")}
    trained = run(make_trial(lora=lora, train={"steps": 1}))
    names = load_file(Path(str(trained.result.weights_dir), "adapter_model.safetensors")).keys()
    assert all("lora_" in name for name in names)
    assert any("lora_embedding_A" in name for name in names)


def test_every_metric_is_documented_and_finite(plain: Run, sweep_config: SweepConfig) -> None:
    documented = set(metric_keys.METRICS)
    for role in ROLES:
        for task in getattr(sweep_config.eval, role):
            documented |= {
                metric_keys.task_score(role, task.label, name) for name in ("acc", "acc_stderr")
            }
    for task in sweep_config.eval.retention:
        documented |= {
            metric_keys.task_forgetting(task.label),
            metric_keys.task_forgetting_adjusted(task.label),
            metric_keys.task_retention_ratio(task.label),
            metric_keys.task_flips(task.label, "forgotten"),
            metric_keys.task_flips(task.label, "gained"),
        }
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
    of_base = {(item.task, item.doc_hash, item.filter): item for item in base.items}
    for item in items:  # what was asked stands with the base's alone
        assert item.prompt == item.target == ""
        assert of_base[item.task, item.doc_hash, item.filter].prompt


def test_harder_training_forgets_more(make_trial: MakeTrial, run: RunTrial) -> None:
    gentle, harsh = (
        run(
            make_trial(
                learning_rate=rate,
                lora={"rank": 8, "alpha": alpha},
                train={"steps": 30, "report_every": 30},
            )
        ).last
        for rate, alpha in ((1e-4, 8), (3e-2, 32))
    )
    assert harsh["kl/base_to_tuned"] > 2 * gentle["kl/base_to_tuned"] > 0
    assert harsh["forgetting/nll"] > gentle["forgetting/nll"] + 0.1
    assert harsh["forgetting/mean"] > gentle["forgetting/mean"]
    assert gentle["forgetting/mean"] == pytest.approx(0, abs=0.05)


def test_tokens_seen_are_the_tokens_of_the_rows(
    make_trial: MakeTrial, run: RunTrial, tokenizer: Any, tmp_path: Path, sweep_config: SweepConfig
) -> None:
    lines = Path(resolve(sweep_config.data.path)).read_text().splitlines()[:16]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    texts = [" ".join(json.loads(line).values()) for line in lines]
    ids = tokenizer(texts)["input_ids"]
    tokens = sum(len(row) + (row[-1] != tokenizer.eos_token_id) for row in ids)
    trial = make_trial(
        data={"path": str(tmp_path / "rows.jsonl")},
        train={"steps": None, "epochs": 2.0, "micro_batch_size": 4},
    )
    last = run(trial).last
    assert last["train/tokens_seen"] == 2 * tokens
    assert last["train/global_step"] == 4
    assert last["train/epoch"] == 2
