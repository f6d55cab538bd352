"""Checks the files that a sweep file names, before anything runs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

from trainables.config import DataConfig
from trainables.errors import Fault, UserError
from trainables.files.locations import (
    PACKAGE_SCHEME,
    RELATIVE,
    absence,
    expanded,
    is_local,
    resolve,
)
from trainables.files.storage import Location, is_address
from trainables.inputs.load_faults import fault_of_adapter
from trainables.inputs.model_shape import config_of, faults_of_modules
from trainables.inputs.quantised_files import faults_of_files
from trainables.inputs.rows import (
    SOURCES,
    as_replay,
    count_samples,
    learned,
    load_rows,
    read_general_text,
)
from tune.config.input_files import named_inputs, named_paths
from tune.config.sweep_config import SweepConfig
from tune.config.task_names import faults_of_task_names
from tune.config.task_rows import faults_of_task_rows

# What to write where nothing fills in DeepSpeed's `auto`.
_IN_FULL = {
    "optimizer.type": "AdamW",
    "optimizer.params.amsgrad": "false",
    "optimizer.params.adam_w_mode": "true",
}


def check_files(config: SweepConfig, output_dir: Location) -> int | None:
    """Read the local files that a sweep names; returns how many samples the data make.

    None where that is not known before they are tokenised: of data on a hub, and of texts.

    Raises:
        UserError: files are missing or malformed; names all of them.
    """
    if addresses := _addresses(config):
        raise UserError(addresses)
    samples, faults = _check_data(config.data)
    if replay := config.data.replay:
        faults += as_replay(_check_data(replay.as_data(config.data.max_length))[1])
        samples = samples and samples + replay.beside(samples)
    missing = _missing_paths(config)
    faults += missing or [
        *_unreadable_text(config),
        *faults_of_task_names(config.eval),
        *faults_of_task_rows(config.eval),
    ]
    faults += _deepspeed_faults(config)
    if config.model.load_in_4bit and find_spec("bitsandbytes") is None:
        rule = "needs bitsandbytes, which is not installed"
        faults.append(Fault("model.load_in_4bit", rule, "pip install bitsandbytes, on every node"))
    # A hub is asked once for what the memory estimate reads, too; one that is silent costs seconds.
    faults += faults_of_files(config.model, config_of(config.model, may_fetch=True))
    if config.search.lora:
        choices = config.search.lora.target_modules
        named = [name for modules in choices if modules != "all-linear" for name in modules]
        faults += faults_of_modules(config.model, named)
    if config.inspect and isinstance(output_dir, str):
        rule = f"needs the sweep in a folder, got {output_dir}"
        remedy = "leave it out; copy the sweep to a folder afterwards: `python -m analysis inside`"
        faults.append(Fault("inspect", rule, remedy))
    if config.inspect and not config.train.save_weights:
        faults.append(Fault("inspect", "needs train.save_weights: true, to have what to look into"))
    if faults:
        raise UserError([*dict.fromkeys(faults)])  # rows of both sources may have the same
    return samples


def _addresses(config: SweepConfig) -> list[Fault]:
    """A sweep may be kept in an object store, but nothing that its file names is read from one."""
    return [
        Fault(field, f"must be no address, got {name}", "copy it to where every node sees it")
        for field, name in named_inputs(config)
        if is_address(name) and not name.startswith(PACKAGE_SCHEME)
    ]


def _check_data(data: DataConfig) -> tuple[int | None, list[Fault]]:
    """How many samples the local files of the data make, if that is known, and their faults."""
    samples: int | None = None
    faults: list[Fault] = []
    for source in SOURCES:
        path = getattr(data, source)
        if path is None or not is_local(path):
            continue
        try:
            made = learned(data, load_rows(data, source), source)
        except UserError as error:
            faults += error.faults
            continue
        if source == "path":
            samples = count_samples(data, made)
    return samples, faults


def _missing_paths(config: SweepConfig) -> list[Fault]:
    faults = []
    for field, location in named_paths(config):
        try:
            path = expanded(resolve(location))
        except ModuleNotFoundError as error:
            faults.append(Fault(field, str(error)))
            continue
        if told := absence(path, "file or folder"):
            faults.append(Fault(field, f"{told}: {path}", RELATIVE))
        elif field == "model.name" and (path / "adapter_config.json").is_file():
            faults.append(fault_of_adapter(location))
        elif field == "model.name" and path.is_dir() and not (path / "config.json").is_file():
            faults.append(Fault(field, f"holds no config.json of a model: {path}", RELATIVE))
    return faults


def _unreadable_text(config: SweepConfig) -> list[Fault]:
    if config.eval.general_text is None:
        return []
    try:
        read_general_text(config.eval.general_text)
    except UserError as error:
        return error.faults
    return []


def _deepspeed_faults(config: SweepConfig) -> list[Fault]:
    settings = config.deepspeed.config or {}
    faults = []
    for key, (allowed, rule) in _of_trainer(config).items():
        value, written = _found(settings, key), _IN_FULL.get(key, "auto")
        is_left = value is None or (value == "auto" == written)
        # DeepSpeed takes an optimizer's name in any case.
        plain = value.lower() if key == "optimizer.type" and isinstance(value, str) else value
        if not is_left and plain not in allowed:
            told = f"must {rule}, got {key} {json.dumps(value, default=str)}"
            faults.append(Fault("deepspeed.config", told, f"write {written}, or leave it out"))
    if "scheduler" in settings:  # DeepSpeed's would replace the one that LoRA trials use
        rule = "must hold no scheduler, so that all methods have the same one"
        remedy = "leave it out; set train.schedule and train.warmup"
        faults.append(Fault("deepspeed.config", rule, remedy))
    return faults


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
        "optimizer.type": (("adam", "adamw"), alike),
        "optimizer.params.adam_w_mode": ((True,), alike),
        "optimizer.params.amsgrad": ((False,), alike),
        "optimizer.params.betas": (([0.9, 0.999],), alike),
        "optimizer.params.eps": ((1e-8,), alike),
        "bf16.enabled": ((is_16_bit,), "leave the precision to model.dtype"),
        "fp16.enabled": ((False,), "leave the precision to model.dtype"),
    }


def _found(settings: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
