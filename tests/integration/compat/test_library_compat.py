"""What is private of the other libraries does what we use it for, and is still needed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from trainables.compat import deepspeed as compat_deepspeed
from trainables.compat import lm_eval as compat_lm_eval
from trainables.compat import torch as compat_torch
from trainables.compat import transformers as compat_transformers
from trainables.compat import wandb as compat_wandb

PROJECT = Path(__file__).parents[3]
MODEL = PROJECT / "trainables" / "embedded" / "model"


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL)


def test_a_view_is_found_again_by_its_address() -> None:
    import wandb_workspaces.workspaces as ws

    first, second = (ws.Workspace(entity="me", project="p") for _ in range(2))
    assert first._internal_name == "", "a view has an address of its own now"
    for workspace in (first, second):
        compat_wandb.set_address(workspace, "abc")
    assert first._internal_name == second._internal_name


def test_chat_templates_print_the_date_that_is_set() -> None:
    from transformers.utils import chat_template_utils

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}"
    before = vars(chat_template_utils)["datetime"]

    def chat() -> str:
        return str(tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False))

    try:
        vars(chat_template_utils)["datetime"] = datetime
        assert chat() == datetime.now().date().isoformat()
        compat_transformers.freeze_chat_date(datetime(2024, 7, 26))
        assert chat() == "2024-07-26"
    finally:
        vars(chat_template_utils)["datetime"] = before


def test_a_model_says_how_it_attends_and_recomputes(model: Any, tmp_path: Path) -> None:
    assert compat_transformers.attention_kind(model.config) == "sdpa"
    assert not hasattr(model.config, "attn_implementation"), "it has a public name now"
    assert not compat_transformers.recomputes_by_hook(AutoModelForCausalLM.from_pretrained(MODEL))
    recomputing = AutoModelForCausalLM.from_pretrained(MODEL)
    recomputing.gradient_checkpointing_enable()
    assert compat_transformers.recomputes_by_hook(recomputing)


def test_a_loaded_adapter_is_noticed(model: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(MODEL)
    assert not compat_transformers.has_adapter(base)
    base.save_pretrained(tmp_path)
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path)
    assert compat_transformers.has_adapter(AutoModelForCausalLM.from_pretrained(tmp_path))


def test_peft_takes_no_names_of_others() -> None:
    from peft import PeftConfig, PeftModel
    from peft.utils import register_peft_method

    with pytest.raises(ValueError, match="add an entry to"):
        register_peft_method(name="some_of_ours", config_cls=PeftConfig, model_cls=PeftModel)


def test_a_trainer_takes_one_gpu_and_logs_from_the_step_it_resumes_at(tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, max_steps=5, logging_steps=1,
        save_strategy="no", disable_tqdm=True, per_device_train_batch_size=1, learning_rate=0.0,
    )  # fmt: skip
    arguments._n_gpu = 4
    assert arguments.n_gpu == 4, "the number of GPUs is kept elsewhere now"
    compat_transformers.use_one_gpu(arguments)
    assert arguments.n_gpu == min(1, torch.cuda.device_count() or 1)

    losses = []
    for restores in (False, True):

        class Resume(TrainerCallback):
            def on_train_begin(self, *args: Any, **named: Any) -> None:
                trainer.state.global_step = 4  # noqa: B023
                if restores:  # noqa: B023
                    compat_transformers.continue_logging_at(trainer, 4)  # noqa: B023

        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(MODEL),
            args=arguments,
            train_dataset=[{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8,
            callbacks=[Resume()],
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    spread, whole = losses
    assert whole == pytest.approx(5 * spread, rel=1e-3), "the trainer knows where it goes on now"


def test_forward_hooks_are_removed_whoever_added_them() -> None:
    layer, calls = torch.nn.Linear(2, 2), []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    layer(torch.zeros(2))
    compat_torch.remove_forward_hooks(layer)
    layer(torch.zeros(2))
    assert calls == ["hook"]


def test_a_task_shows_its_yaml() -> None:
    from lm_eval.tasks import TaskManager

    folder = PROJECT / "trainables" / "embedded" / "eval_tasks"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    spec = compat_lm_eval.task_spec(manager.task_index["target_relay"].yaml_path)
    assert spec["task"] == "target_relay"
    assert "include" not in spec


def test_zero_keeps_modules_until_they_are_forgotten() -> None:
    from deepspeed.runtime.zero import parameter_offload

    module = torch.nn.Linear(2, 2)
    parameter_offload.FWD_MODULE_STACK.append(module)
    compat_deepspeed.forget_modules()
    assert list(parameter_offload.FWD_MODULE_STACK) == []
    assert not compat_deepspeed.is_partitioned(module.weight)
    compat_deepspeed.link_optimizer_states(torch.optim.SGD(module.parameters()))  # is no wrapper
