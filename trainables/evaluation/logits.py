"""Logits only where they are needed: the output head is often half of a forward pass.

Shapes: N sequences, S positions, T needed positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel


def logits_at(
    model: Any, positions_T: torch.Tensor, head: Any = None, **inputs: Any
) -> torch.Tensor:
    """Run a forward pass whose head is applied only to the needed positions.

    Args:
        model: a causal language model.
        head: its output head, where `model` is wrapped by what has none.
        positions_T: indices into the flattened batch: sequence x S + position.
        inputs: of the model; `input_ids` has shape (N, S).

    Returns:
        Logits of shape (T, V).
    """
    selected = False

    def select(head: Any, hidden: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        nonlocal selected
        # ProphetNet's has several states of each position, one of them for the next token.
        selected = hidden[0].shape[:-1] == inputs["input_ids"].shape
        if not selected:
            return None
        return (hidden[0].flatten(0, 1).index_select(0, positions_T)[None],)

    head = head or model.get_output_embeddings()
    with head.register_forward_pre_hook(select) if head is not None else nullcontext():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits[0] if selected else logits.flatten(0, 1).index_select(0, positions_T)


@contextmanager
def backbone_once(model: Any) -> Iterator[None]:
    """Within it, the layers below the head compute the first pass alone and repeat its result.

    Passes of the same inputs then give logits at a few positions at a time, where those at all of
    them would not fit. Each remains a pass of the whole model, as some scale or cap their logits.
    A model without such a part computes every pass anew.
    """
    network = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    backbone: Any = network.base_model
    if backbone is network:
        yield
        return
    if isinstance(backbone, PreTrainedModel):  # OPT's head follows this part of it, not all of it
        backbone = backbone.get_decoder()
    compute, replaced = backbone.forward, vars(backbone).get("forward")
    known: list[Any] = []

    def forward(*args: Any, **options: Any) -> Any:
        if not known:
            known.append(compute(*args, **options))
        return known[0]

    backbone.forward = forward
    try:
        yield
    finally:
        if replaced is None:
            del backbone.forward
        else:
            backbone.forward = replaced
