"""Logits only where they are needed: the output head is often half of a forward pass.

Shapes: N sequences, S positions, T needed positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch


def logits_at(model: Any, positions_T: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Run a forward pass whose head is applied only to the needed positions.

    Args:
        model: a causal language model.
        positions_T: indices into the flattened batch: sequence x S + position.
        inputs: of the model; `input_ids` has shape (N, S).

    Returns:
        Logits of shape (T, V).
    """
    selected = False

    def select(head: Any, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        nonlocal selected
        selected = True
        return (hidden[0].flatten(0, 1).index_select(0, positions_T)[None],)

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits[0] if selected else logits.flatten(0, 1).index_select(0, positions_T)
