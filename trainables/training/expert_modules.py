"""Mixtures of experts of which a worker runs only those modules that its own tokens are sent to.

Most of Transformers' own mixtures have no module for an expert. DBRX calls one for every expert
that has tokens, and models with code of their own may keep a list of experts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def keep_in_step(model: Any) -> None:
    """Let every worker gather and reduce all experts of a layer, in the same order.

    DeepSpeed relies on that: else workers wait for each other for ever, or add up gradients of
    different experts. Call it on a fresh model, before DeepSpeed wraps it.
    """
    for name, module in list(model.named_modules()):
        parent, _, own = name.rpartition(".")
        is_list = "expert" in own and isinstance(module, nn.ModuleList | nn.ModuleDict)
        if not is_list and not (own == "experts" and _calls_one(module)):
            continue
        mixture = model.get_submodule(parent) if is_list else module
        if is_deepspeed_zero3_enabled():
            from deepspeed.utils import set_z3_leaf_module

            set_z3_leaf_module(mixture, True)  # gathered and reduced as a whole
        elif is_list:
            mixture.register_forward_pre_hook(partial(_take_all, module), with_kwargs=True)


def _calls_one(experts: nn.Module) -> bool:
    """Whether it has one module with the weights of all experts, which it calls for each."""
    children = list(experts.children())
    return len(children) == 1 and any(True for _ in children[0].parameters())


def _take_all(
    experts: nn.Module, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the first input depend on all experts, with gradients of zero.

    So all of their gradients are complete at one point of the backward pass, the mixture's end.
    """
    trained = [parameter for parameter in experts.parameters() if parameter.requires_grad]
    if inputs:
        return (_DependsOnAll.apply(inputs[0], *trained), *inputs[1:]), named
    name = next(iter(named))
    return inputs, named | {name: _DependsOnAll.apply(named[name], *trained)}


class _DependsOnAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.parameters = parameters
        return hidden.clone()  # the mixture may change it in place, which a view forbids

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zeros = (parameter.new_zeros(()).expand_as(parameter) for parameter in ctx.parameters)
        return (*gradients, *zeros)
