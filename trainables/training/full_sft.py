"""A full fine-tuning trial: every parameter that text meets, sharded by DeepSpeed ZeRO."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)
from trl import SFTConfig

from trainables.config import DeepSpeedConfig, TrialConfig
from trainables.data.chats import without_nulls
from trainables.data.tokenized import trial_inputs
from trainables.errors import Fault, UserError
from trainables.models.loading import load_model, shared_base
from trainables.models.lora_adapter import text_decoder
from trainables.process.collectives import is_first_worker
from trainables.process.out_of_memory import free_memory
from trainables.records.schema import TrialResult
from trainables.training.reporter import Reporter
from trainables.training.run import run_training, sft_config
from trainables.training.sharding import shard

_SINGLE_WORKER = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",  # any that is free
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
}


def train_full_sft(config: TrialConfig, reporter: Reporter) -> TrialResult:
    """Fine-tune all parameters that text meets; saves a Hugging Face folder with safetensors.

    Runs in every worker of the trial. A single worker needs no launcher: it creates its own process
    group. Checkpoints stay, and errors are raised, as by `run_training`.
    """
    tokenizer, tokenized = trial_inputs(config)
    if torch.cuda.is_available():  # a LoRA trial in this process may have left its base there
        shared_base.cache_clear()
        free_memory()
    with deepspeed_process():
        model, arguments = prepare(config, len(tokenized.train), deepspeed_settings(config))
        if config.workers > 1:
            _gather_experts_together(model, config.deepspeed or DeepSpeedConfig())
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        save = partial(_save, padding=padding)
        return run_training(config, reporter, model, tokenizer, tokenized, arguments, save)


def prepare(config: TrialConfig, samples: int, settings: dict[str, Any]) -> tuple[Any, SFTConfig]:
    """The base model, sharded if DeepSpeed's settings say so, and how it is to be trained."""
    is_sharded = settings.get("zero_optimization", {}).get("stage") == 3
    # The model comes first: after the arguments Transformers would shard it while loading it.
    model = load_model(config.model, is_hollow=is_sharded and os.environ["RANK"] != "0")
    arguments = sft_config(config, samples, settings)
    if is_sharded:
        shard(model, getattr(torch, config.model.dtype))
    _freeze_unread(model)
    return model, arguments


def _freeze_unread(model: Any) -> None:
    """Leave what text does not pass through, such as an encoder of images, as it is.

    DeepSpeed gives unused parameters gradients of zero, and weight decay would shrink them.
    """
    decoder, head = text_decoder(model), model.get_output_embeddings()
    if decoder is None or head is None:
        return
    trained = (model.get_input_embeddings(), model.get_submodule(decoder), head)
    read = {id(parameter) for module in trained for parameter in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in read:
            parameter.requires_grad_(False)


def _gather_experts_together(model: Any, deepspeed: DeepSpeedConfig) -> None:
    """Have every worker gather and reduce all experts of a layer, not only those that it runs.

    Models with code of their own may have a module for each expert, which a worker runs if it has
    tokens for it: DeepSpeed would wait for ever, or add up gradients of different experts.

    Raises:
        UserError: it has such modules, and below stage 3 DeepSpeed has no way to.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and "expert" in name.rpartition(".")[2]
    }
    trained = [
        name
        for name, experts in lists.items()
        if any(parameter.requires_grad for parameter in experts.parameters())
    ]
    if trained and not is_deepspeed_zero3_enabled():
        rule = f"must be 3 on several workers: the model has a module for each expert, {trained[0]}"
        raise UserError([Fault(deepspeed.stage_field, rule, "or set resources.full.workers: 1")])
    from deepspeed.utils import set_z3_leaf_module

    for name in lists:
        set_z3_leaf_module(model.get_submodule(name.rpartition(".")[0]), True)


def _save(trainer: Any, folder: Path, padding: int | None) -> None:
    """A standard Hugging Face folder; under ZeRO-3 every worker contributes its shard.

    Its configuration has the base's padding token, where TRL has put the tokenizer's, which may end
    texts, too: of a model that is loaded with it that token's embedding is not trained any further,
    and Youtu's is loaded as zeros.
    """
    is_first = is_first_worker()
    if is_first or is_deepspeed_zero3_enabled():
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if is_first:
        for name in trainer.model.all_tied_weights_keys:  # at other stages a copy of its source
            weights.pop(name, None)
        trainer.model.config.get_text_config().pad_token_id = padding
        trainer.model.save_pretrained(folder, state_dict=weights)
        trainer.processing_class.save_pretrained(folder)


def deepspeed_settings(config: TrialConfig) -> dict[str, Any]:
    """DeepSpeed's JSON: the user's own, or one for the requested stage and offloads.

    `auto` values are filled in by Transformers. The optimizer is the trainer's AdamW, as for LoRA,
    so that methods are compared under one optimizer and nothing needs compiling.
    """
    deepspeed = config.deepspeed or DeepSpeedConfig()
    own = without_nulls(deepspeed.config)  # a copy
    settings = _of_stage(deepspeed) if own is None else own
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") == 3:  # else no weights could be saved
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    # What is left out comes from the trial, not from DeepSpeed defaults that nobody chose.
    settings.setdefault("train_micro_batch_size_per_gpu", "auto")
    settings.setdefault("gradient_accumulation_steps", "auto")
    settings.setdefault("gradient_clipping", "auto")
    settings.setdefault("bf16", {}).setdefault("enabled", "auto")
    if "optimizer" in settings:
        of_optimizer = settings["optimizer"].setdefault("params", {})
        of_optimizer.setdefault("lr", "auto")
        of_optimizer.setdefault("weight_decay", "auto")
        if not zero.get("stage"):  # there its own one on a GPU has one tensor for all parameters
            of_optimizer.setdefault("torch_adam", True)
    return settings


def _of_stage(deepspeed: DeepSpeedConfig) -> dict[str, Any]:
    """The requested stage and offloads, whose optimizer is not exchanged for one to compile."""
    zero: dict[str, Any] = {"stage": deepspeed.zero_stage}
    if deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if deepspeed.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}


@contextmanager
def deepspeed_process() -> Iterator[None]:
    """Set up the process for DeepSpeed, and undo what would affect a later LoRA trial.

    The process group itself stays: DeepSpeed caches its sub-groups for the life of the process.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        _compile_nothing()
    linear = torch.nn.functional.linear
    alone = "RANK" not in os.environ  # else a group of workers, or a launcher, has set all of this
    if alone:
        os.environ |= _SINGLE_WORKER
    try:
        yield
    finally:
        # ZeRO-3's own stays for the life of the process; it keeps the inputs even of frozen layers.
        torch.nn.functional.linear = linear
        unset_hf_deepspeed_config()
        for name in (*(_SINGLE_WORKER if alone else ()), "ACCELERATE_USE_DEEPSPEED"):
            os.environ.pop(name, None)


def _compile_nothing() -> None:
    """Keep DeepSpeed from building its shared-memory kernel, which training never calls.

    The build takes half a minute and a compiler, and a process killed meanwhile leaves a lock that
    every later one waits for.
    """
    from deepspeed import ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
