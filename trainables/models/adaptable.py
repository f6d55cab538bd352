"""Checks that a base takes a sweep's adapters and can recompute activations."""

from __future__ import annotations

from typing import Any

import torch

from trainables.config import BaseRequirements, LoraConfig
from trainables.errors import Fault, UserError, as_written, collecting, first_line
from trainables.models.lora_adapter import adapt, linear_layers, restore


def check_adaptable(base: Any, requirements: BaseRequirements) -> None:
    """Check that the base meets a sweep's requirements; it is left as it was.

    Raises:
        UserError: names all that it does not take.
    """
    faults: list[Fault] = []
    refused: dict[str, LoraConfig] = {}  # the first choice that PEFT refuses for each reason
    for lora in requirements.adapters:
        try:
            with collecting(faults), torch.random.fork_rng():
                restore(base, adapt(base, lora))
        except ValueError as error:
            refused.setdefault(first_line(error).rstrip("."), lora)
    faults += [_refusal_fault(base, lora, reason) for reason, lora in refused.items()]
    if requirements.recomputes:
        with collecting(faults):
            recompute(base)
        base.gradient_checkpointing_disable()
    if faults:
        raise UserError(list(dict.fromkeys(faults)))


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


def _refusal_fault(base: Any, lora: LoraConfig, reason: str) -> Fault:
    beside = [name for name in ("dropout", "dora") if getattr(lora, name)]
    field = "search.lora" if beside else "search.lora.target_modules"
    names = ("target_modules", *beside)
    asked = ", ".join(f"{name} {as_written(getattr(lora, name))}" for name in names)
    rule = f"PEFT cannot adapt the model with {asked}: {reason}"
    # PEFT adapts experts beside them.
    remedy = f"leave out what it refuses, or name linear layers: {', '.join(linear_layers(base))}"
    return Fault(field, rule, remedy)
