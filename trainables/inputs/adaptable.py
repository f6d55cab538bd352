"""What a sweep would have a base do: the adapters that it takes, and to recompute activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from trainables.config import Demands, LoraConfig
from trainables.errors import Fault, UserError, as_written, first_line
from trainables.inputs.adapter import adapt, linear_layers, restore

_OFF = {"dropout": 0.0, "dora": False}


def check_adaptable(base: Any, demands: Demands) -> None:
    """Check that the base meets a sweep's demands; it is left as it was.

    Raises:
        UserError: names all that it does not take.
    """
    choices = demands.adapters
    taken: list[LoraConfig] = []
    faults: list[Fault] = []
    for modules in dict.fromkeys(lora.target_modules for lora in choices):
        plain = LoraConfig(rank=1, alpha=1, target_modules=modules)
        if told := _faults_of_modules(base, plain):
            faults += told
        else:
            taken.append(plain)
    for axis, off in _OFF.items():
        asked = [lora for lora in choices if getattr(lora, axis) != off]
        faults += _faults_of_axis(base, axis, asked, taken) if asked else []
    if demands.recomputes:
        try:
            recompute(base)
        except UserError as error:
            faults += error.faults
        base.gradient_checkpointing_disable()
    if faults:
        raise UserError(faults)


def recompute(base: Any, **options: Any) -> None:
    """Have the base recompute activations in the backward pass.

    `options` are those of `torch.utils.checkpoint`, without reentry.

    Raises:
        UserError: it cannot.
    """
    try:
        base.gradient_checkpointing_enable({"use_reentrant": False, **options})
    except ValueError as error:
        rule = f"must be false, as {first_line(error).rstrip('.')}, got true"
        remedy = "leave it out; a smaller train.micro_batch_size takes less memory, too"
        raise UserError([Fault("train.gradient_checkpointing", rule, remedy)]) from error
    # PEFT's need of a gradient down to the embedding, which Transformers provides for.
    base.disable_input_require_grads()


def _faults_of_modules(base: Any, plain: LoraConfig) -> list[Fault]:
    """What no adapter of these modules could be for, whatever else is chosen."""
    try:
        reason = _refusal(base, plain)
    except UserError as error:
        return error.faults
    if reason is None:
        return []
    rule = f"PEFT cannot adapt the model so: {reason}"
    remedy = f"its linear layers are {', '.join(linear_layers(base))}"
    return [Fault("search.lora.target_modules", rule, remedy)]


def _faults_of_axis(
    base: Any, axis: str, asked: Sequence[LoraConfig], taken: Sequence[LoraConfig]
) -> Iterator[Fault]:
    """What PEFT refuses of the values of an axis on modules that it takes without."""
    values = list(dict.fromkeys(getattr(lora, axis) for lora in asked))
    off, got = as_written(_OFF[axis]), ", ".join(map(as_written, values))
    for plain in taken:
        if reason := _refusal(base, plain.model_copy(update={axis: max(values)})):
            where = f"where target_modules is {as_written(plain.target_modules)}"
            # PEFT adapts experts beside them.
            remedy = f"set it to {off}, or adapt linear layers: {', '.join(linear_layers(base))}"
            rule = f"must be {off} {where}, got {got}: {reason}"
            yield Fault(f"search.lora.{axis}", rule, remedy)


def _refusal(base: Any, lora: LoraConfig) -> str | None:
    """Why PEFT refuses such an adapter; None if it does not."""
    try:
        with torch.random.fork_rng():
            restore(base, adapt(base, lora))
    except ValueError as error:
        return first_line(error).rstrip(".")
    return None
