"""A full fine-tuning trial, sharded by DeepSpeed ZeRO."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)
from trl import SFTConfig

from trainables.config import DeepSpeedConfig, TrialConfig
from trainables.data.chats import without_nulls
from trainables.data.tokenized import trial_inputs
from trainables.models.adapter import text_decoder
from trainables.models.loading import load_model, shared_base
from trainables.process.collectives import is_first_worker
from trainables.process.out_of_memory import free_memory
from trainables.records.schema import TrialResult
from trainables.training.reporter import Reporter
from trainables.training.sharding import shard
from trainables.training.training_loop import run_training, sft_config

_SINGLE_WORKER = {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",  # any that is free
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
}


def train_full_sft(config: TrialConfig, reporter: Reporter) -> TrialResult:
    """Fine-tune all parameters that text passes through; saves a Hugging Face folder.

    Runs in every worker of the trial; a single worker creates its own process group. Checkpoints
    and errors are those of `run_training`.
    """
    tokenizer, tokenized = trial_inputs(config)
    if torch.cuda.is_available():  # an earlier LoRA trial's base may be there
        shared_base.cache_clear()
        free_memory()
    with deepspeed_process():
        # Before DeepSpeed's settings are known to Transformers, which would shard it.
        base = load_model(config.model).eval() if config.loss.needs_base else None
        model, arguments = prepare(config, len(tokenized.train), deepspeed_settings(config))
        padding = getattr(model.config.get_text_config(), "pad_token_id", None)
        save = partial(_save, padding=padding)
        return run_training(config, reporter, model, tokenizer, tokenized, arguments, save, base)


def prepare(config: TrialConfig, samples: int, settings: dict[str, Any]) -> tuple[Any, SFTConfig]:
    """The base model, sharded if DeepSpeed's settings say so, and TRL's configuration."""
    is_sharded = settings.get("zero_optimization", {}).get("stage") == 3
    # The model comes first: after the arguments Transformers would shard it in loading.
    model = load_model(config.model, is_hollow=is_sharded and os.environ["RANK"] != "0")
    arguments = sft_config(config, samples, settings)
    if is_sharded:
        shard(model, getattr(torch, config.model.dtype))
    _freeze_unread(model)
    return model, arguments


def _freeze_unread(model: Any) -> None:
    """Freeze what text does not pass through, such as an encoder of images.

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


def _save(trainer: Any, folder: Path, padding: int | None) -> None:
    """Save a standard Hugging Face folder; under ZeRO-3 every worker contributes its shard.

    Its configuration gets the base's padding token back, which TRL replaced by the tokenizer's: a
    padding token's embedding is not trained any further, and some models load it as zeros.
    """
    is_first = is_first_worker()
    if is_first or is_deepspeed_zero3_enabled():
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if is_first:
        for name in trainer.model.all_tied_weights_keys:  # below stage 3 copies of their sources
            weights.pop(name, None)
        trainer.model.config.get_text_config().pad_token_id = padding
        trainer.model.save_pretrained(folder, state_dict=weights)
        trainer.processing_class.save_pretrained(folder)


def deepspeed_settings(config: TrialConfig) -> dict[str, Any]:
    """DeepSpeed's JSON: the user's own, or one for the requested stage and offloads.

    Transformers fills in `auto` values. The optimizer is the trainer's AdamW, as for LoRA, so that
    methods are compared under one optimizer and nothing is compiled.
    """
    deepspeed = config.deepspeed or DeepSpeedConfig()
    own = without_nulls(deepspeed.config)  # a copy
    settings = _stage_settings(deepspeed) if own is None else own
    zero = settings.get("zero_optimization", {})
    if zero.get("stage") == 3:  # else no weights could be saved
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    # Omitted settings come from the trial, not from DeepSpeed's defaults, which nobody chose.
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        settings.setdefault(name, "auto")
    settings.setdefault("gradient_clipping", "auto")
    settings.setdefault("bf16", {}).setdefault("enabled", "auto")
    if "optimizer" in settings:
        parameters = settings["optimizer"].setdefault("params", {})
        parameters.setdefault("lr", "auto")
        parameters.setdefault("weight_decay", "auto")
        if not zero.get("stage"):  # DeepSpeed's own Adam keeps one tensor for all parameters
            parameters.setdefault("torch_adam", True)
    return settings


def _stage_settings(deepspeed: DeepSpeedConfig) -> dict[str, Any]:
    """The requested stage and offloads, with an optimizer that needs no compiling."""
    zero: dict[str, Any] = {"stage": deepspeed.zero_stage}
    if deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if deepspeed.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    return {"zero_optimization": zero, "zero_force_ds_cpu_optimizer": False}


@contextmanager
def deepspeed_process() -> Iterator[None]:
    """Set up the process for DeepSpeed, and undo what would affect a later LoRA trial.

    The process group stays: DeepSpeed caches its sub-groups for the life of the process.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
        _compile_nothing()
    linear = torch.nn.functional.linear
    alone = "RANK" not in os.environ  # a group of workers sets all of this
    if alone:
        os.environ |= _SINGLE_WORKER
    try:
        yield
    finally:
        # ZeRO-3 leaves its own, which keeps the inputs even of frozen layers.
        torch.nn.functional.linear = linear
        unset_hf_deepspeed_config()
        for name in (*(_SINGLE_WORKER if alone else ()), "ACCELERATE_USE_DEEPSPEED"):
            os.environ.pop(name, None)


def _compile_nothing() -> None:
    """Keep DeepSpeed from building its shared-memory kernel, which training never calls.

    The build takes half a minute, and a process killed meanwhile leaves a lock for all later ones.
    """
    from deepspeed import ops
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
