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
    for axis in _OFF:
        faults += _faults_of_axis(base, axis, choices, taken)
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
    base: Any, axis: str, choices: Sequence[LoraConfig], plain: Sequence[LoraConfig]
) -> Iterator[Fault]:
    """The values of an axis that PEFT refuses on some modules, all of which it takes without."""
    values = dict.fromkeys(getattr(lora, axis) for lora in choices)
    refused = [value for value in values if value != _OFF[axis]]
    if not refused:
        return
    strongest = {axis: max(refused)}
    reasons = {lora: _refusal(base, lora.model_copy(update=strongest)) for lora in plain}
    at_fault = [as_written(lora.target_modules) for lora, reason in reasons.items() if reason]
    if not at_fault:
        return
    off, got = as_written(_OFF[axis]), ", ".join(map(as_written, refused))
    reason = next(filter(None, reasons.values()))
    rule = f"must be {off} where target_modules is {' or '.join(at_fault)}, got {got}: {reason}"
    remedy = f"remove {got}" if _OFF[axis] in values else f"set it to {off}"
    if len(at_fault) < len(plain):
        remedy += f", or remove {' and '.join(at_fault)} from search.lora.target_modules"
    else:  # PEFT adapts experts beside them
        remedy += f", or adapt linear layers: {', '.join(linear_layers(base))}"
    yield Fault(f"search.lora.{axis}", rule, remedy)


def _refusal(base: Any, lora: LoraConfig) -> str | None:
    """Why PEFT refuses such an adapter; None if it does not."""
    try:
        with torch.random.fork_rng():
            restore(base, adapt(base, lora))
    except ValueError as error:
        return first_line(error).rstrip(".")
    return None
