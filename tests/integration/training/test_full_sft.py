"""Full fine-tuning trials under DeepSpeed, one process: every stage is plain training."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from trainables.config import DeepSpeedConfig
from trainables.errors import Diverged, UserError
from trainables.models.loading import load_model
from trainables.storage.locations import resolve
from trainables.training import full_sft
from trainables.training import run as training
from trainables.training.checkpoint_files import newest_valid
from trainables.training.run import sft_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]


STAGES = (0, 1, 2, 3)
# Small enough for ten steps to go down without leaping.
RATE = 1e-4
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def plain(make_trial: MakeTrial, trl_curve: Callable[..., list[float]]) -> list[float]:
    """Losses of full fine-tuning by TRL, without DeepSpeed."""
    return trl_curve(make_trial("full", learning_rate=RATE))


class Stage:
    """A trial at one ZeRO stage, and its model's logits right after the training."""

    def __init__(self, trial: TrialConfig, run: Run, logits: torch.Tensor) -> None:
        self.trial, self.run, self.logits = trial, run, logits


@pytest.fixture(scope="module")
def at_stage(
    make_trial: MakeTrial,
    run: RunTrial,
    logits: Callable[[Any, Any], torch.Tensor],
    tokenizer: Any,
) -> Callable[[int], Stage]:
    done: dict[int, Stage] = {}

    def at(stage: int) -> Stage:
        if stage not in done:
            trial = make_trial("full", learning_rate=RATE, deepspeed={"zero_stage": stage})
            seen: list[torch.Tensor] = []

            def spy(*arguments: Any) -> Any:
                _, _, model, _, _, settings, _ = arguments
                filled_in = settings.hf_deepspeed_config.config
                assert filled_in["zero_optimization"]["stage"] == stage
                result = training.run_training(*arguments)
                seen.append(logits(model, tokenizer))
                return result

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(full_sft, "run_training", spy)
                done[stage] = Stage(trial, run(trial), seen[0])
        return done[stage]

    return at


@pytest.mark.parametrize("stage", STAGES)
def test_losses_equal_plain_trl(
    stage: int, at_stage: Callable[[int], Stage], plain: list[float]
) -> None:
    curve = at_stage(stage).run.curve()
    assert curve == pytest.approx(plain, abs=1e-3)
    assert curve[-1] < curve[0]


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_on_the_way_change_no_number(
    stage: int, at_stage: Callable[[int], Stage], make_trial: MakeTrial, run: RunTrial
) -> None:
    """Of the trial at this stage there is but one, at its end."""
    often = {"train": {"report_every": 4}, "deepspeed": {"zero_stage": stage}}
    trial = make_trial("full", learning_rate=RATE, **often)
    assert run(trial).curve() == at_stage(stage).run.curve()


@pytest.mark.parametrize("stage", STAGES)
def test_saved_weights_are_the_trained_model(
    stage: int,
    at_stage: Callable[[int], Stage],
    logits: Callable[[Any, Any], torch.Tensor],
    tokenizer: Any,
    base_model: Any,
) -> None:
    trained = at_stage(stage)
    folder = trained.run.result.weights_dir
    assert folder == trained.trial.weights_dir
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.allclose(logits(loaded, tokenizer), trained.logits, atol=1e-5)
    assert not torch.allclose(logits(base_model, tokenizer), trained.logits, atol=1e-2)
    names = {path.name for path in Path(folder).iterdir()}
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt"))}
    saved, own = load_file(Path(folder) / "model.safetensors"), base_model.named_parameters()
    assert set(saved) == {name for name, _ in own}  # what is tied is there once


def test_weights_are_saved_of_a_model_that_does_not_say_that_its_temperature_is_to_sample(
    make_trial: MakeTrial, run: RunTrial, tmp_path: Path
) -> None:
    """Transformers saves no such settings once they were changed, as TRL does with the padding."""
    folder = shutil.copytree(resolve(make_trial().model.name), tmp_path / "model")
    settings = {"temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    weights = Path(str(run(make_trial("full", model={"name": str(folder)})).result.weights_dir))
    assert (weights / "model.safetensors").is_file()
    saved = json.loads((weights / "generation_config.json").read_text())
    assert settings | {"do_sample": True} == {key: saved[key] for key in (*settings, "do_sample")}


def test_a_saved_model_has_the_padding_of_its_base(
    make_trial: MakeTrial, run: RunTrial, tokenizer: Any, tmp_path: Path
) -> None:
    """Youtu's embedding of it is loaded as zeros, and no model's is trained further."""
    latent = {"kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 8, "num_key_value_heads": 2}
    sizes = SHAPE | latent | {"vocab_size": len(tokenizer), "pad_token_id": None}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("youtu", **sizes))
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path)
    trial = make_trial("full", model={"name": str(tmp_path)}, train={"steps": 1})
    folder = Path(str(run(trial).result.weights_dir))
    embedding = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings()
    assert embedding.padding_idx is None
    assert torch.equal(embedding.weight, load_file(folder / "model.safetensors")[EMBEDDING])


@pytest.mark.parametrize("stage", STAGES)
def test_measurements_agree_over_the_stages(stage: int, at_stage: Callable[[int], Stage]) -> None:
    reference, here = at_stage(2).run.last, at_stage(stage).run.last
    for key in ("kl/base_to_tuned", "forgetting/nll", "validation/loss", "in_domain/acc_mean"):
        assert here[key] == pytest.approx(reference[key], abs=1e-3)
    assert all(math.isfinite(value) for value in here.values())


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_is_counted_as_trainable(
    stage: int, at_stage: Callable[[int], Stage], base_model: Any
) -> None:
    parameters = sum(parameter.numel() for parameter in base_model.parameters())
    assert at_stage(stage).run.last["params/trainable"] == parameters


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_norm_is_logged_where_deepspeed_tells_it(
    stage: int, at_stage: Callable[[int], Stage]
) -> None:
    """Stage 0 in float32 clips by a norm that DeepSpeed keeps to itself: no number, not a zero."""
    if stage == 0:
        assert "train/grad_norm" not in at_stage(stage).run.last
    else:
        norms = at_stage(stage).run.curve("train/grad_norm")
        assert norms == pytest.approx(at_stage(2).run.curve("train/grad_norm"), rel=1e-3)
        assert min(norms) > 0


def test_a_loss_that_is_no_number_is_told_also_without_a_norm(
    make_trial: MakeTrial, run: RunTrial
) -> None:
    trial = make_trial("full", learning_rate=1e30, deepspeed={"zero_stage": 0})
    with pytest.raises(Diverged, match=r"step \d+: loss nan, gradient norm None"):
        run(trial)


@pytest.mark.slow
def test_a_lora_trial_is_the_same_after_a_sharded_one(
    make_trial: MakeTrial, run: RunTrial, at_stage: Callable[[int], Stage]
) -> None:
    before = run(make_trial())
    fresh = make_trial("full", learning_rate=RATE, deepspeed={"zero_stage": 3})
    sharded = run(fresh)
    assert torch.nn.functional.linear is torch._C._nn.linear  # DeepSpeed's own keeps more memory
    assert "LOCAL_RANK" not in os.environ  # with it the trainer distributes what has a GPU
    after = run(make_trial())
    assert after.curve() == before.curve()
    for key in ("kl/base_to_tuned", "forgetting/nll", "validation/loss", "train/grad_norm"):
        assert after.last[key] == before.last[key]
    assert sharded.curve() == pytest.approx(at_stage(3).run.curve(), abs=1e-6)


@pytest.mark.parametrize("offload", ["offload_optimizer", "offload_parameters"])
def test_offloading_at_stage_3_changes_no_number(
    offload: str,
    make_trial: MakeTrial,
    run: RunTrial,
    plain: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor compiles anything, as DeepSpeed's optimizer for offloading would."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    monkeypatch.setattr(OpBuilder, "load", None)
    trial = make_trial("full", learning_rate=RATE, deepspeed={"zero_stage": 3, offload: True})
    assert run(trial).curve() == pytest.approx(plain, abs=1e-3)


def test_accumulated_micro_batches_equal_one_batch(
    make_trial: MakeTrial, run: RunTrial, plain: list[float]
) -> None:
    trial = make_trial(
        "full",
        learning_rate=RATE,
        deepspeed={"zero_stage": 2},
        train={"micro_batch_size": 2},
    )
    assert run(trial).curve() == pytest.approx(plain, abs=1e-3)


def test_the_user_s_own_deepspeed_file_is_used(
    make_trial: MakeTrial,
    run: RunTrial,
    trl_curve: Callable[..., list[float]],
    plain: list[float],
) -> None:
    own = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "SGD", "params": {"lr": "auto"}},
        "zero_allow_untested_optimizer": True,
    }
    trial = make_trial(
        "full",
        learning_rate=0.05,
        deepspeed={"config": own},
        train={"max_grad_norm": 0.5, "schedule": "linear"},
    )
    expected = trl_curve(trial, optim="sgd", max_grad_norm=0.5)
    trained = run(trial)
    assert trained.curve() == pytest.approx(expected, abs=1e-3)
    rates = [0.05 * (1 - step / 10) for step in range(10)]
    assert trained.curve("train/learning_rate") == pytest.approx(rates)
    assert expected != pytest.approx(plain, abs=1e-2)


@pytest.mark.parametrize("stated", [{}, {"train_batch_size": 8}], ids=str)
def test_micro_batches_that_a_deepspeed_file_leaves_out_are_the_trial_s(
    stated: dict[str, int], make_trial: MakeTrial, run: RunTrial, plain: list[float]
) -> None:
    own = {"zero_optimization": {"stage": 2}, **stated}
    parts: dict[str, Any] = {"deepspeed": {"config": own}, "train": {"micro_batch_size": 2}}
    trial = make_trial("full", learning_rate=RATE, **parts)
    assert trial.train.batch_size == 8
    assert run(trial).curve() == pytest.approx(plain, abs=1e-3)


def test_a_trial_that_fails_leaves_the_process_fit_for_the_next(
    make_trial: MakeTrial, plain: list[float], run: RunTrial
) -> None:
    class Fails:
        def report(self, measurement: Any) -> None:
            raise RuntimeError("no more")

    trial = make_trial("full", learning_rate=RATE, deepspeed={"zero_stage": 3})
    with pytest.raises(RuntimeError, match="no more"):
        full_sft.train_full_sft(trial, Fails())
    again = make_trial("full", learning_rate=RATE, deepspeed={"zero_stage": 3})
    assert run(again).curve() == pytest.approx(plain, abs=1e-3)
    assert run(make_trial()).curve()[0] == pytest.approx(plain[0], abs=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_a_trial_stays_in_a_process_that_goes_on(
    stage: int, at_stage: Callable[[int], Stage], make_trial: MakeTrial, run: RunTrial
) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    def left() -> tuple[int, int]:
        """Engines, and bytes of tensors."""
        gc.collect()
        things = gc.get_objects()
        tensors = [thing for thing in things if issubclass(type(thing), torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        engines = sum(issubclass(type(thing), DeepSpeedEngine) for thing in things)
        return engines, sum(storages.values())

    at_stage(stage)  # the first of a process leaves what all others share
    before = left()
    run(make_trial("full", deepspeed={"zero_stage": stage}))
    assert left() == before


def test_the_buckets_of_a_sharded_trial_do_not_stay_either(
    make_trial: MakeTrial, run: RunTrial
) -> None:
    """Each is of 2 GB, whatever the model's size; most of it is never touched here."""

    def virtual_bytes() -> int:
        gc.collect()
        return int(psutil.Process().memory_info().vms)

    run(make_trial("full", deepspeed={"zero_stage": 3}))
    before = virtual_bytes()
    run(make_trial("full", deepspeed={"zero_stage": 3}))
    assert virtual_bytes() - before < 1e9


def test_weights_can_be_saved_whatever_the_user_s_own_settings(
    make_trial: MakeTrial,
) -> None:
    own = {"zero_optimization": {"stage": 3, "overlap_comm": False}, "bf16": None}
    trial = make_trial(method="full", deepspeed={"config": own})
    settings = full_sft.deepspeed_settings(trial)
    assert trial.deepspeed
    assert trial.deepspeed.config == own
    assert settings["bf16"] == {"enabled": "auto"}
    assert settings["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
    }


@pytest.mark.parametrize(
    "deepspeed",
    [*({"zero_stage": stage} for stage in STAGES), {"config": {"zero_optimization": {"stage": 3}}}],
    ids=str,
)
def test_in_bfloat16_too_the_first_step_is_the_optimizer_s_first(
    make_trial: MakeTrial, run: RunTrial, deepspeed: dict[str, Any]
) -> None:
    """DeepSpeed's stage 0 makes one more before, after which Adam's first is but 0.74 of it."""
    train = {"steps": 1, "report_every": 1, "warmup": 0.0, "weight_decay": 0.0}
    trial = make_trial("full", model={"dtype": "bfloat16"}, deepspeed=deepspeed, train=train)
    run(trial)
    taken = newest_valid([Path(trial.output_dir)])
    assert taken is not None
    state = load_file(taken / "training.safetensors")
    assert int(state["steps"]) == 1
    name = "parameter/model.layers.0.mlp.up_proj.weight"
    before = load_model(trial.model).get_parameter(name.removeprefix("parameter/")).detach()
    update = (state[name].float() - before.float()).abs()
    assert float(update.max()) == pytest.approx(trial.learning_rate, rel=0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_clipped_to_the_trial_s_norm(
    make_trial: MakeTrial, run: RunTrial, stage: int
) -> None:
    """A tenth of them is in Adam's first moment after the first step; the step shows no scale."""
    train = {"steps": 1, "report_every": 1, "max_grad_norm": 0.05}
    trial = make_trial("full", deepspeed={"zero_stage": stage}, train=train)
    run(trial)
    taken = newest_valid([Path(trial.output_dir)])
    assert taken is not None
    state = load_file(taken / "training.safetensors")
    squares = sum(float(v.square().sum()) for name, v in state.items() if "exp_avg/" in name)
    assert math.sqrt(squares) == pytest.approx(0.1 * 0.05, rel=1e-3)


def test_what_the_user_s_own_settings_leave_out_is_the_trial_s(
    make_trial: MakeTrial,
) -> None:
    """And not DeepSpeed's, whose learning rate would be 1e-3 whatever the search drew."""
    params = {"betas": [0.9, 0.95], "weight_decay": None}
    own = {"optimizer": {"type": "AdamW", "params": params}}
    parts = {"deepspeed": {"config": own}, "train": {"weight_decay": 0.05}}
    trial = make_trial(method="full", learning_rate=3e-5, **parts)
    config = HfTrainerDeepSpeedConfig(full_sft.deepspeed_settings(trial))
    arguments = sft_config(trial, 16, deepspeed={"zero_optimization": {"stage": 0}})
    config.trainer_config_process(arguments)
    assert config.get_value("optimizer.params.lr") == 3e-5
    assert config.get_value("optimizer.params.weight_decay") == 0.05
    assert config.get_value("optimizer.params.betas") == [0.9, 0.95]
    assert config.get_value("optimizer.params.torch_adam")  # there is no other at stage 0
    assert config.get_value("gradient_clipping") == trial.train.max_grad_norm


@pytest.mark.parametrize(
    ("deepspeed", "field"),
    [
        (DeepSpeedConfig(), "deepspeed.zero_stage"),
        (
            DeepSpeedConfig(config={"zero_optimization": {"stage": 2}}),
            "deepspeed.config.zero_optimization.stage",
        ),
    ],
)
def test_experts_that_need_stage_3_name_the_key_that_sets_it(
    deepspeed: DeepSpeedConfig, field: str
) -> None:
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with pytest.raises(UserError) as caught:
        full_sft._gather_experts_together(model, deepspeed)
    assert caught.value.faults[0].field == field


def test_workers_meet_before_they_train(
    make_trial: MakeTrial, run: RunTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever each has loaded: what DeepSpeed then exchanges may take minutes, and not hours."""
    met: list[bool] = []

    def train(trainer: Any) -> None:
        assert met
        raise InterruptedError

    monkeypatch.setattr(training, "barrier", lambda: met.append(True))
    monkeypatch.setattr(training.SFTTrainer, "train", train)
    with pytest.raises(InterruptedError):
        run(make_trial("full"))
