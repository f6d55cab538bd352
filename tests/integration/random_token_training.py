"""Training on random tokens, to compare an adapter with a form of it that is written out."""

from __future__ import annotations

from typing import Any

import torch

IDS_BS = torch.randint(3, 309, (4, 16), generator=torch.Generator().manual_seed(0))


def trained(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained(model), lr=3e-3, weight_decay=0.1)


def backward(model: Any, clip: float) -> float:
    """The gradients of a step, clipped to a norm; returns the loss."""
    logits_BSV = model(input_ids=IDS_BS).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), IDS_BS[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained(model), clip)
    return loss.item()


def losses(model: Any, steps: int, clip: float, hooks: Any = None) -> list[float]:
    """The loss of each step; `hooks` has a method's `before_step` and `after_step`."""
    optimizer, found = adamw(model), []
    for step in range(1, steps + 1):
        found.append(backward(model, clip))
        if hooks:
            hooks.before_step(model)
        optimizer.step()
        if hooks:
            hooks.after_step(model, step)
        optimizer.zero_grad()
    return found
