"""Full fine-tuning trials under DeepSpeed, one process: every stage is plain training."""

from __future__ import annotations

import json
import math
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from trainables.losses.kl import Kl
from trainables.losses.l2 import L2
from trainables.models.loading import load_model
from trainables.storage.locations import resolve
from trainables.training import full_sft
from trainables.training.checkpoint_files import newest_valid

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_trials import Run

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]
    AtStage = Callable[[str], tuple[TrialConfig, Run]]


STAGES: dict[str, dict[str, Any]] = {
    **{str(stage): {"zero_stage": stage} for stage in (0, 2)},
    "3, offloaded": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
}
# Small enough for ten steps to go down without leaping.
RATE = 1e-4


@pytest.fixture(scope="module")
def plain(make_trial: MakeTrial, trl_curve: Callable[..., list[float]]) -> list[float]:
    """Losses of full fine-tuning by TRL, without DeepSpeed."""
    return trl_curve(make_trial("full", learning_rate=RATE))


@pytest.fixture(scope="module")
def at_stage(make_trial: MakeTrial, run: RunTrial) -> AtStage:
    """A trial at a ZeRO stage with checkpoints on the way, and its run."""

    @cache
    def trained(stage: str) -> tuple[TrialConfig, Run]:
        parts = {"deepspeed": STAGES[stage], "train": {"report_every": 4}}
        trial = make_trial("full", learning_rate=RATE, **parts)
        return trial, run(trial)

    return trained


@pytest.mark.parametrize("stage", STAGES)
def test_a_trial_measures_what_plain_trl_does(
    stage: str, at_stage: AtStage, plain: list[float], base_model: Any
) -> None:
    (_, run), (_, reference) = at_stage(stage), at_stage("2")
    assert run.curve() == pytest.approx(plain, abs=1e-3)
    assert plain[-1] < plain[0]
    for key in ("kl/base_to_tuned", "forgetting/nll", "validation/loss", "in_domain/acc_mean"):
        assert run.last[key] == pytest.approx(reference.last[key], abs=1e-3)
    assert all(math.isfinite(value) for value in run.last.values())
    parameters = sum(parameter.numel() for parameter in base_model.parameters())
    assert run.last["params/trainable"] == parameters
    if stage == "0":  # DeepSpeed keeps that norm to itself in float32
        assert "train/grad_norm" not in run.last
    else:
        norms = run.curve("train/grad_norm")
        assert norms == pytest.approx(reference.curve("train/grad_norm"), rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "stage"), [(Kl, "2"), (Kl, "3, offloaded"), (L2, "0")], ids=["kl", "kl, 3", "l2"]
)
def test_a_loss_holds_the_model_at_the_base_beside_it(
    loss: type[Kl] | type[L2], stage: str, make_trial: MakeTrial, run: RunTrial, plain: list[float]
) -> None:
    def trained(beta: float) -> Run:
        held = {"loss": loss(beta=beta), "deepspeed": STAGES[stage]}
        return run(make_trial("full", learning_rate=RATE, **held))

    free, held = trained(0), trained(100)
    assert free.curve() == pytest.approx(plain, abs=1e-3)
    assert held.last["kl/base_to_tuned"] < 0.8 * free.last["kl/base_to_tuned"]


@pytest.mark.parametrize("stage", STAGES)
def test_saved_weights_are_the_trained_model(
    stage: str, at_stage: AtStage, base_model: Any
) -> None:
    trial, run = at_stage(stage)
    folder = Path(str(run.result.weights_dir))
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt"))}
    loaded = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    state = load_file(Path(trial.output_dir, "checkpoints/step_00000010/training.safetensors"))
    for name, before in base_model.named_parameters():
        assert torch.equal(loaded[name], state[f"parameter/{name}"])
        assert not torch.equal(loaded[name], before)
    # A tied weight is saved once.
    assert load_file(folder / "model.safetensors").keys() == loaded.keys()


def test_a_saved_model_has_the_padding_and_temperature_of_its_base(
    make_trial: MakeTrial, run: RunTrial, tmp_path: Path
) -> None:
    """TRL changes the padding, whose embedding some models load as zeros.

    Transformers saves no temperature that is not said to be for sampling.
    """
    base = shutil.copytree(resolve(make_trial().model.name), tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"pad_token_id": None}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.9}))
    trial = make_trial("full", model={"name": str(base)}, train={"steps": 1})
    folder = Path(str(run(trial).result.weights_dir))
    assert json.loads((folder / "config.json").read_text())["pad_token_id"] is None
    saved = json.loads((folder / "generation_config.json").read_text())
    assert (saved["temperature"], saved["do_sample"]) == (0.9, True)


def test_the_user_s_own_deepspeed_file_is_used(
    make_trial: MakeTrial,
    run: RunTrial,
    trl_curve: Callable[..., list[float]],
    plain: list[float],
) -> None:
    """The micro-batches that it leaves out are the trial's."""
    own = {
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "SGD", "params": {"lr": "auto"}},
        "zero_allow_untested_optimizer": True,
    }
    trial = make_trial(
        "full",
        learning_rate=0.05,
        deepspeed={"config": own},
        train={"max_grad_norm": 0.5, "schedule": "linear", "micro_batch_size": 4},
    )
    expected = trl_curve(trial, optim="sgd", max_grad_norm=0.5)
    trained = run(trial)
    assert trained.curve() == pytest.approx(expected, abs=1e-3)
    rates = [0.05 * (1 - step / 10) for step in range(10)]
    assert trained.curve("train/learning_rate") == pytest.approx(rates)
    assert expected != pytest.approx(plain, abs=1e-2)


def test_what_the_user_s_deepspeed_file_leaves_out_is_the_trial_s(make_trial: MakeTrial) -> None:
    """And not DeepSpeed's, whose learning rate would be 1e-3 whatever the search drew."""
    own = {
        "optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95], "weight_decay": None}},
        "bf16": None,
        "zero_optimization": {"stage": 3},
    }
    settings = full_sft.deepspeed_settings(make_trial("full", deepspeed={"config": own}))
    rate = {"lr": "auto", "betas": [0.9, 0.95], "weight_decay": "auto"}
    assert settings["optimizer"] == {"type": "AdamW", "params": rate}
    assert settings["bf16"] == {"enabled": "auto"}
    assert settings["gradient_clipping"] == "auto"
    # Otherwise no weights could be saved.
    assert settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]


def test_in_bfloat16_too_the_first_step_is_the_optimizer_s_first(
    make_trial: MakeTrial, run: RunTrial
) -> None:
    """DeepSpeed's stage 0 makes one before, after which Adam's first is 0.74 of the rate."""
    train = {"steps": 1, "report_every": 1, "weight_decay": 0.0, "max_grad_norm": 0.05}
    parts: dict[str, Any] = {"model": {"dtype": "bfloat16"}, "deepspeed": {"zero_stage": 0}}
    trial = make_trial("full", **parts, train=train)
    run(trial)
    taken = newest_valid([Path(trial.output_dir)])
    assert taken is not None
    state = load_file(taken / "training.safetensors")
    assert int(state["steps"]) == 1
    name = "parameter/model.layers.0.mlp.up_proj.weight"
    before = load_model(trial.model).get_parameter(name.removeprefix("parameter/")).detach()
    update = (state[name].float() - before.float()).abs()
    assert float(update.max()) == pytest.approx(trial.learning_rate, rel=0.01)
    # A tenth of the clipped gradient is in Adam's first moment.
    squares = sum(float(v.square().sum()) for name, v in state.items() if "exp_avg/" in name)
    assert math.sqrt(squares) == pytest.approx(0.1 * 0.05, rel=0.01)
