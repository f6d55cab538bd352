"""PyTorch, tried with 2.12 and 2.13."""

from __future__ import annotations

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
