"""A user's own DeepSpeed settings: which of them the sweep sets itself, and which decide results.

Their keys are checked by DeepSpeed, on a worker: see `trainables.training.deepspeed_check`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trainables.data.chats import without_nulls
from trainables.errors import Fault, as_written
from tune.config.sweep_config import SweepConfig

_FIELD = "deepspeed.config"
# Sections that shard, and keys that only print or log.
_CHANGES_NO_RESULT = {
    *("zero_optimization", "comms_logger", "flops_profiler", "memory_breakdown", "dump_state"),
    *("log_level", "steps_per_print", "timers", "wall_clock_breakdown"),
    *("comet", "csv_monitor", "tensorboard", "wandb"),
}
_ADAMW = ("lr", "betas", "eps", "weight_decay", "adam_w_mode", "amsgrad", "torch_adam")
# What to write where Transformers does not fill in `auto`.
_NO_AUTO = {
    "optimizer.params.amsgrad": "false",
    "optimizer.params.adam_w_mode": "true",
    "torch_autocast.enabled": "false",
    "sequence_parallel_size": "1",
}


def deciding_settings(settings: dict[str, Any] | None) -> dict[str, Any]:
    """The settings that change a trial's results, as sharding and logging do not."""
    given = without_nulls(settings or {})
    return {key: value for key, value in given.items() if key not in _CHANGES_NO_RESULT}


def zero_stage(config: SweepConfig) -> Any:
    """The stage, as the user's own settings have it or the sweep file."""
    if config.deepspeed.config is None:
        return config.deepspeed.zero_stage
    return _value(config.deepspeed.config, "zero_optimization.stage")


def deepspeed_faults(config: SweepConfig) -> list[Fault]:
    """Settings for DeepSpeed that contradict those of the sweep."""
    if config.deepspeed.config is None:
        return []
    settings = without_nulls(config.deepspeed.config)
    return [*_own_rules(settings), *_overwritten(config, settings)]


def _own_rules(settings: dict[str, Any]) -> Iterator[Fault]:
    stage = _value(settings, "zero_optimization.stage")
    if type(stage) is not int or stage not in range(4):
        rule = f"must be 0, 1, 2 or 3, got {json.dumps(stage, default=str)}"
        yield Fault(f"{_FIELD}.zero_optimization.stage", rule)
    if _value(settings, "comet.api_key"):
        rule = "must be left out, as the sweep would record it and send it to W&B"
        yield Fault(f"{_FIELD}.comet.api_key", rule, "export COMET_API_KEY instead")
    if "scheduler" in settings:
        rule = "must hold no scheduler, so that all recipes have the same one"
        yield Fault(_FIELD, rule, "leave it out; set train.schedule and train.warmup")
    if "optimizer" in settings:
        kind, params = (_value(settings, f"optimizer.{key}") for key in ("type", "params"))
        if str(kind).lower() not in ("adam", "adamw"):
            rule = f"must be AdamW, the optimizer of all other trials, got {as_written(kind)}"
            yield Fault(f"{_FIELD}.optimizer.type", rule, "or leave the optimizer out")
        for key in set(params if isinstance(params, dict) else ()) - {*_ADAMW}:
            rule = "must be left out, so that all recipes have the same optimizer"
            yield Fault(f"{_FIELD}.optimizer.params.{key}", rule, f"known: {', '.join(_ADAMW)}")


def _overwritten(config: SweepConfig, settings: dict[str, Any]) -> Iterator[Fault]:
    for key, (allowed, rule) in _set_by_sweep(config).items():
        value, written = _value(settings, key), _NO_AUTO.get(key, "auto")
        is_left = value is None or (value == "auto" == written)
        if not is_left and value not in allowed:
            got = json.dumps(value, default=str)
            remedy = f"write {written}, or leave it out"
            yield Fault(_FIELD, f"must {rule}, got {key} {got}", remedy)


def _set_by_sweep(config: SweepConfig) -> dict[str, tuple[tuple[Any, ...], str]]:
    """By key that the sweep sets itself: the values that agree with it, and the rule.

    No micro-batch agrees, since it is reduced in a trial that runs out of memory.
    """
    train, search = config.train, config.search
    spaces = [search.space(each) for each in search.recipes if search.method(each).changes_base]
    micro_batch = "leave micro-batches to train.micro_batch_size"
    optimizer = "have the optimizer that all other trials have"
    precision = "leave the precision to model.dtype"
    return {
        "optimizer.params.lr": ((), "leave the learning rate to the search"),
        "train_batch_size": (
            () if any(space.batch_size for space in spaces) else (train.batch_size,),
            "leave batches to train.batch_size",
        ),
        "train_micro_batch_size_per_gpu": ((), micro_batch),
        "gradient_accumulation_steps": ((), micro_batch),
        "gradient_clipping": ((train.max_grad_norm,), "leave clipping to train.max_grad_norm"),
        "optimizer.params.weight_decay": (
            () if any(space.weight_decay for space in spaces) else (train.weight_decay,),
            "leave weight decay to train.weight_decay",
        ),
        "optimizer.params.adam_w_mode": ((True,), optimizer),
        "optimizer.params.amsgrad": ((False,), optimizer),
        "optimizer.params.betas": (([0.9, 0.999],), optimizer),
        "optimizer.params.eps": ((1e-8,), optimizer),
        "bf16.enabled": ((config.model.dtype == "bfloat16",), precision),
        "fp16.enabled": ((False,), precision),
        "torch_autocast.enabled": ((False,), precision),
        "sequence_parallel_size": ((1,), "leave each sequence to one worker"),
    }


def _value(settings: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
