"""Whether a base predicts each token from those before it alone, as all training here presumes."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

import torch

from trainables.config import ModelConfig
from trainables.errors import Fault, UserError

_TEXT = "1 2 3 5 8 4 7 6 9 0 2 4"
# How large a change before another last token is, relative to the change where it stands, that no
# rounding makes: mixtures of experts compute a token a little otherwise beside others.
_NOTICEABLE = 0.05


def check_causal(base: Any, tokenizer: Any, model: ModelConfig) -> None:
    """Refuse a base whose outputs depend on later tokens: it would be shown what it is to learn.

    Raises:
        UserError: they do.
    """
    tokens = tokenizer(_TEXT)["input_ids"]
    ends = [end for end, (one, next_) in enumerate(pairwise(tokens), 1) if one != next_ and end > 1]
    shares = [_share_before(base, tokens[:end], tokens[end]) for end in ends]
    if shares and median(shares) > _NOTICEABLE:
        rule = f"must predict a token from those before it; {model.name} looks at later ones, too"
        raise UserError([Fault("model.name", rule, "take a model that generates text")])


@torch.no_grad()
def _share_before(base: Any, tokens: list[int], other: int) -> float:
    """How much another last token changes logits before it, relative to its own; at the most."""
    first, second = (
        base(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0].float()
        for row in torch.tensor([[tokens], [[*tokens[:-1], other]]], device=base.device)
    )
    *before, own = (first - second).norm(dim=-1).tolist()
    return max(before) / own if own else 0.0
