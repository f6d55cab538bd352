"""PyTorch, tried with 2.12 and 2.13."""

from __future__ import annotations

from typing import Any

import torch


def remove_forward_hooks(module: torch.nn.Module) -> None:
    """Remove all forward hooks of a module, also those of other libraries.

    Why: TRL and Transformers each hook the embedding of a shared base for checkpointing, and one of
    the handles is lost, so that a hook would stay with every trial. Upstream: none.
    """
    module._forward_hooks.clear()


def writes(tensor: torch.Tensor) -> int:
    """How often a tensor was written to in place; autograd counts it.

    Why: it shows without a copy that a shared model is unchanged. Upstream: none.
    """
    return int(tensor._version)


def leave_to_each_worker(model: Any, names: list[str]) -> None:
    """Have DDP not send these frozen parameters and buffers of a model from the first worker.

    Why: it would write to the base that each worker has loaded and shares among its trials, and
    send all of it for each. Upstream: the option exists, under this name.
    """
    model._ddp_params_and_buffers_to_ignore = names
