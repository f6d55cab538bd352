"""A user's own DeepSpeed settings: their form, what they must leave to the sweep, what they decide.

DeepSpeed passes over a key that it does not know, and a section that is none ends every trial in a
Python error that names no field. Importing DeepSpeed, to ask it, takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trainables.data.chats import without_nulls
from trainables.errors import Fault, did_you_mean, nearest
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_errors import shown

_FIELD = "deepspeed.config"
# All that `DeepSpeedConfig` in DeepSpeed 0.19.8's runtime/config.py reads, and what it calls, but
# for features that it has removed.
_SECTIONS = (
    "aio",
    "autotuning",
    "bf16",
    "checkpoint",
    "comet",
    "comms_logger",
    "compile",
    "csv_monitor",
    "data_efficiency",
    "data_types",
    "datastates_ckpt",
    "expert_parallel",
    "flops_profiler",
    "fp16",
    "hybrid_engine",
    "optimizer",
    "pipeline",
    "scheduler",
    "tensor_parallel",
    "tensorboard",
    "timers",
    "torch_autocast",
    "wandb",
    "weight_quantization",
    "zero_optimization",
)
_VALUES = (
    "communication_data_type",
    "data_parallel_size",
    "dataloader_drop_last",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "gradient_accumulation_steps",
    "gradient_allreduce_op",
    "gradient_clipping",
    "gradient_predivide_factor",
    "log_level",
    "managed_gradient_accumulation",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "sequence_parallel_size",
    "steps_per_print",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "use_data_before_expert_parallelism",
    "vocabulary_size",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)
_KNOWN = (*_SECTIONS, *_VALUES)
# Those that shard, and those that only print or log.
_DECIDE_NOTHING = {
    "comet",
    "comms_logger",
    "csv_monitor",
    "dump_state",
    "flops_profiler",
    "log_level",
    "memory_breakdown",
    "steps_per_print",
    "tensorboard",
    "timers",
    "wall_clock_breakdown",
    "wandb",
    "zero_optimization",
}
_OF_ADAMW = ("lr", "betas", "eps", "weight_decay", "adam_w_mode", "amsgrad", "torch_adam")
_STAGE = "such as {stage: 2}"
# Sections in sections, of which Transformers asks for keys.
_INNER = (
    "optimizer.params",
    "zero_optimization.offload_optimizer",
    "zero_optimization.offload_param",
)
# What to write where nothing fills in DeepSpeed's `auto`.
_IN_FULL = {
    "optimizer.params.amsgrad": "false",
    "optimizer.params.adam_w_mode": "true",
    "torch_autocast.enabled": "false",
    "sequence_parallel_size": "1",
}


def deciding_settings(settings: dict[str, Any] | None) -> dict[str, Any]:
    """What a user's own settings, if any, decide of a trial's results, as sharding does not."""
    given, deciding = without_nulls(settings or {}), {*_KNOWN} - _DECIDE_NOTHING
    return {key: value for key, value in given.items() if key in deciding}


def faults_of_deepspeed(config: SweepConfig) -> list[Fault]:
    """What DeepSpeed would not read of a sweep's own settings for it, or not as the sweep means."""
    if config.deepspeed.config is None:
        return []
    settings = without_nulls(config.deepspeed.config)
    return [
        *_unknown(settings),
        *_secret(settings),
        *_malformed(settings),
        *_stage(settings),
        *_optimizer(settings),
        *_against_the_trainer(config, settings),
    ]


def _unknown(settings: dict[str, Any]) -> Iterator[Fault]:
    for key in settings:
        if key == "activation_checkpointing":
            rule = "has no effect, as Transformers does not use it"
            yield Fault(f"{_FIELD}.{key}", rule, "leave it out; set train.gradient_checkpointing")
        elif key not in _KNOWN:
            remedy = did_you_mean(key, _KNOWN) or "leave it out"
            yield Fault(f"{_FIELD}.{key}", "is no key of DeepSpeed's", remedy)


def _secret(settings: dict[str, Any]) -> Iterator[Fault]:
    if _found(settings, "comet.api_key"):
        rule = "must be left out, as the sweep would record it and send it to W&B"
        yield Fault(f"{_FIELD}.comet.api_key", rule, "export COMET_API_KEY in place of it")


def _malformed(settings: dict[str, Any]) -> Iterator[Fault]:
    for key in (*_SECTIONS, *_INNER):
        value = _found(settings, key)
        if value is not None and not isinstance(value, dict):
            rule = f"must be a section with keys of its own, got {shown(value)}"
            remedy = _STAGE if key == "zero_optimization" else "fill it in or leave it out"
            yield Fault(f"{_FIELD}.{key}", rule, remedy)


def _stage(settings: dict[str, Any]) -> Iterator[Fault]:
    key = "zero_optimization"
    if key not in settings:
        if key not in (nearest(written, _KNOWN) for written in settings):
            yield Fault(f"{_FIELD}.{key}", "is required and absent", _STAGE)
    elif isinstance(section := settings[key], dict):
        stage = section.get("stage")
        if type(stage) is not int or stage not in range(4):
            yield Fault(f"{_FIELD}.{key}.stage", f"must be 0, 1, 2 or 3, got {shown(stage)}")


def _optimizer(settings: dict[str, Any]) -> Iterator[Fault]:
    """Of what kind an optimizer is, and which keys it has; `_of_trainer` has their values."""
    optimizer = settings.get("optimizer")
    if not isinstance(optimizer, dict):
        return
    kind = optimizer.get("type")
    if str(kind).lower() not in ("adam", "adamw"):  # in any case, to DeepSpeed
        rule = f"must be AdamW, the optimizer that LoRA trials have, got {shown(kind)}"
        yield Fault(f"{_FIELD}.optimizer.type", rule, "write that, or leave the optimizer out")
    for name, known in (("optimizer", ("type", "params")), ("optimizer.params", _OF_ADAMW)):
        section = _found(settings, name)
        for key in section if isinstance(section, dict) else ():
            if key not in known:
                rule = "must be left out, so that all methods have the same optimizer"
                remedy = did_you_mean(key, known) or f"known: {', '.join(known)}"
                yield Fault(f"{_FIELD}.{name}.{key}", f"{rule}, got {shown(section[key])}", remedy)


def _against_the_trainer(config: SweepConfig, settings: dict[str, Any]) -> Iterator[Fault]:
    for key, (allowed, rule) in _of_trainer(config).items():
        value, written = _found(settings, key), _IN_FULL.get(key, "auto")
        is_left = value is None or (value == "auto" == written)
        if not is_left and value not in allowed:
            told = f"must {rule}, got {key} {json.dumps(value, default=str)}"
            yield Fault(_FIELD, told, f"write {written}, or leave it out")
    if "scheduler" in settings:  # DeepSpeed's would replace the one that LoRA trials use
        rule = "must hold no scheduler, so that all methods have the same one"
        yield Fault(_FIELD, rule, "leave it out; set train.schedule and train.warmup")


def _of_trainer(config: SweepConfig) -> dict[str, tuple[tuple[Any, ...], str]]:
    """What the trainer fills in itself, and compares: by key, which values it takes, and a rule.

    None of a micro-batch, since a trial that runs out of memory makes it smaller.
    """
    train, is_16_bit = config.train, config.model.dtype == "bfloat16"
    full = config.search.full
    searched = full and full.batch_size
    parts: tuple[tuple[Any, ...], str] = ((), "leave micro-batches to train.micro_batch_size")
    alike = "have the optimizer that LoRA trials have"
    return {
        "optimizer.params.lr": ((), "leave the learning rate to the search"),
        "train_batch_size": (
            () if searched else (train.batch_size,),
            "leave batches to train.batch_size",
        ),
        "train_micro_batch_size_per_gpu": parts,
        "gradient_accumulation_steps": parts,
        "gradient_clipping": ((train.max_grad_norm,), "leave clipping to train.max_grad_norm"),
        "optimizer.params.weight_decay": (
            () if full and full.weight_decay else (train.weight_decay,),
            "leave weight decay to train.weight_decay",
        ),
        "optimizer.params.adam_w_mode": ((True,), alike),
        "optimizer.params.amsgrad": ((False,), alike),
        "optimizer.params.betas": (([0.9, 0.999],), alike),
        "optimizer.params.eps": ((1e-8,), alike),
        "bf16.enabled": ((is_16_bit,), "leave the precision to model.dtype"),
        "fp16.enabled": ((False,), "leave the precision to model.dtype"),
        "torch_autocast.enabled": ((False,), "leave the precision to model.dtype"),
        "sequence_parallel_size": ((1,), "leave each sequence to one worker"),
    }


def _found(settings: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
