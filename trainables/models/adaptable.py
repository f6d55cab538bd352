"""Checks that a base takes a sweep's adapters and can recompute activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from trainables.config import BaseRequirements
from trainables.errors import Fault, UserError, as_written, collecting, first_line
from trainables.methods import Method
from trainables.models.adapter import Adapted, linear_layers

_SOME_STEPS = 1000


def check_adaptable(base: Any, requirements: BaseRequirements) -> None:
    """Check that the base meets a sweep's requirements; it is left as it was.

    Raises:
        UserError: names all that it does not take.
    """
    faults: list[Fault] = []
    refused: dict[str, Fault] = {}  # the first choice that PEFT refuses for each reason
    for recipe, method in requirements.adapters:
        field = f"search.{recipe}"
        try:
            with torch.random.fork_rng():
                Adapted(base, method, _SOME_STEPS).remove()
        except UserError as error:
            faults += [replace(each, field=f"{field}.{each.field}") for each in error.faults]
        except ValueError as error:
            reason = first_line(error).rstrip(".")
            refused.setdefault(reason, _refusal_fault(base, field, method, reason))
    faults += refused.values()
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


def _refusal_fault(base: Any, field: str, method: Method, reason: str) -> Fault:
    if method.modules is None:
        rule = f"cannot be on the model: {reason}"
        return Fault(field, rule, "leave the recipe out, or use another model")
    options = {
        name: getattr(method, name)
        for name, declared in type(method).model_fields.items()
        if not declared.is_required() and getattr(method, name) != declared.default
    }
    asked = {"target_modules": method.modules, **options}
    choice = ", ".join(f"{name} {as_written(value)}" for name, value in asked.items())
    rule = f"PEFT cannot adapt the model with {choice}: {reason}"
    # PEFT adapts experts beside them.
    remedy = f"leave out what it refuses, or name linear layers: {', '.join(linear_layers(base))}"
    return Fault(field if len(asked) > 1 else f"{field}.target_modules", rule, remedy)
