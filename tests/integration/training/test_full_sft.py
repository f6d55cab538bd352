"""Full fine-tuning trials under DeepSpeed, one process: every stage is plain training."""

from __future__ import annotations

import gc
import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from measured import by_step
from safetensors.torch import load_file
from tiny_decoder import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from trainables.errors import UserError
from trainables.models.loading import load_model
from trainables.training import full_sft
from trainables.training.checkpoint_files import newest_valid
from trainables.training.run import sft_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]
    RunTrial = Callable[[TrialConfig], Run]
    AtStage = Callable[[str], tuple[TrialConfig, Run]]


STAGES: dict[str, dict[str, Any]] = {
    **{str(stage): {"zero_stage": stage} for stage in range(4)},
    "3, offloaded": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
}
# Small enough for ten steps to go down without leaping.
RATE = 1e-4
EMBEDDING = "model.embed_tokens.weight"


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


def test_a_saved_model_has_the_padding_and_sampling_of_its_base(
    make_trial: MakeTrial, run: RunTrial, tokenizer: Any, tmp_path: Path
) -> None:
    """Youtu's embedding of its padding is loaded as zeros, and no model's is trained further.

    Transformers saves no temperature that is not said to be for sampling.
    """
    latent = {"kv_lora_rank": 4, "q_lora_rank": 4, "qk_rope_head_dim": 8, "num_key_value_heads": 2}
    sizes = SHAPE | latent | {"vocab_size": len(tokenizer), "pad_token_id": None}
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("youtu", **sizes))
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.9}))
    trial = make_trial("full", model={"name": str(tmp_path)}, train={"steps": 1})
    folder = Path(str(run(trial).result.weights_dir))
    embedding = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings()
    assert embedding.padding_idx is None
    assert torch.equal(embedding.weight, load_file(folder / "model.safetensors")[EMBEDDING])
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
    }
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
    assert trial.deepspeed
    assert trial.deepspeed.config == own
    sharded = make_trial("full", deepspeed={"config": {"zero_optimization": {"stage": 3}}})
    zero = full_sft.deepspeed_settings(sharded)["zero_optimization"]
    assert zero["stage3_gather_16bit_weights_on_model_save"]  # else no weights could be saved


class Fails:
    def report(self, measurement: Any) -> None:
        raise RuntimeError("no more")


def test_the_process_is_fit_for_the_next_trial(make_trial: MakeTrial, run: RunTrial) -> None:
    """After a sharded trial that failed, LoRA trains as before it."""
    before = run(make_trial())
    sharded = {"learning_rate": RATE, "deepspeed": {"zero_stage": 3}}
    with pytest.raises(RuntimeError, match="no more"):
        full_sft.train_full_sft(make_trial("full", **sharded), Fails())
    assert torch.nn.functional.linear is torch._C._nn.linear  # DeepSpeed's own takes more memory
    assert by_step(run(make_trial()).measurements) == by_step(before.measurements)


def test_nothing_of_a_sharded_trial_stays_in_the_process(
    at_stage: AtStage, make_trial: MakeTrial, run: RunTrial
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

    at_stage("3")  # the first of a process leaves what all others share
    before, virtual = left(), psutil.Process().memory_info().vms
    run(make_trial("full", deepspeed={"zero_stage": 3}))
    assert left() == before
    # ZeRO-3's buckets are of 2 GB whatever the model's size; most of it is never touched here.
    assert psutil.Process().memory_info().vms - virtual < 1e9


@pytest.mark.parametrize("stage", [0, 3])
def test_in_bfloat16_too_the_first_step_is_the_optimizer_s_first(
    make_trial: MakeTrial, run: RunTrial, stage: int
) -> None:
    """DeepSpeed's stage 0 makes one before, after which Adam's first is 0.74 of the rate."""
    train = {"steps": 1, "report_every": 1, "weight_decay": 0.0, "max_grad_norm": 0.05}
    parts: dict[str, Any] = {"model": {"dtype": "bfloat16"}, "deepspeed": {"zero_stage": stage}}
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


def test_a_module_for_each_expert_needs_stage_3_on_several_workers(make_trial: MakeTrial) -> None:
    model = torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    own = make_trial("full", deepspeed={"config": {"zero_optimization": {"stage": 2}}}).deepspeed
    assert own is not None
    with pytest.raises(UserError, match=r"deepspeed\.config\.zero_optimization\.stage: must be 3"):
        full_sft._gather_experts_together(model, own)
