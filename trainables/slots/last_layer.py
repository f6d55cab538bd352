"""The last layer, computed only where the loss reads it.

What follows the last attention works position by position, and a loss on completions reads few
positions of each sequence. There alone are that layer's queries, output and MLP computed.

Shapes: N sequences, S positions, L of them in a window, W = N x L, I inputs, O outputs, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trainables.slots.batch import Window


class LastLayer:
    """The modules of a base's last layer of which only the loss reads what they compute.

    Which they are is found out by running the base: layers differ, and their names too.

    Args:
        base: a causal language model; its hooks are there until `close`.
    """

    def __init__(self, base: Any) -> None:
        self.modules = _read_in_place(base)
        self._window: Window | None = None
        self._handles = [
            handle
            for module in self.modules
            for handle in (
                module.register_forward_pre_hook(self._gather),
                module.register_forward_hook(self._scatter),
            )
        ]

    @contextmanager
    def only_at(self, window: Window | None) -> Iterator[None]:
        """Compute them only there in batches of this shape; elsewhere their output is zero.

        None computes all.
        """
        self._window = window
        try:
            yield
        finally:
            self._window = None

    def close(self) -> None:
        """Leave the base as it was."""
        for handle in self._handles:
            handle.remove()

    def _gather(self, module: Any, inputs: tuple[torch.Tensor]) -> Any:
        return None if self._window is None else self._window.gather(inputs[0])

    def _scatter(self, module: Any, inputs: Any, y_NLO: torch.Tensor) -> Any:
        return None if self._window is None else self._window.scatter(y_NLO)


def _read_in_place(base: Any) -> list[nn.Module]:
    """The largest modules of the last layer that work position by position, as all after them.

    Positions are spoilt by another value, and by NaN, which no weight hides, as NaN x 0 is NaN;
    but torch's attention ignores queries that are NaN.
    """
    lists = [module for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    layers = lists[0]  # the others, such as those of experts, are parts of these
    found: list[nn.Module] = []
    candidates = list(layers[-1].children())
    while candidates:
        module = candidates.pop(0)
        if not any(parameter.ndim > 1 for parameter in module.parameters()):
            continue  # such as normalization, where gathering costs what it saves
        if _stays_in_place(base, module, lambda x: 1 - 3 * x) and _stays_in_place(
            base, module, lambda x: torch.full_like(x, torch.nan)
        ):
            found.append(module)
        else:
            candidates += module.children()
    return found


@torch.no_grad()
def _stays_in_place(
    base: Any, module: nn.Module, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> bool:
    """Whether the last positions' logits stay when the others are spoilt around a module.

    Before it and after it. False too for modules that do not make one tensor of one.
    """
    width, first = 8, 5
    tokens_1S = torch.arange(width, device=base.device)[None]
    calls: list[bool] = []

    def spoilt(values: tuple[Any, ...]) -> torch.Tensor | None:
        """The only value with its first positions spoilt; None if it is no batch, or not alone."""
        match values:
            case (torch.Tensor() as x,) if x.shape[:2] == tokens_1S.shape:
                calls.append(True)
                return torch.cat((spoil(x[:, :first]), x[:, first:]), 1)
        calls.append(False)
        return None

    def logits() -> torch.Tensor:
        of_all: torch.Tensor = base(input_ids=tokens_1S, use_cache=False).logits
        return of_all[:, first:]

    def before(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        x = spoilt(() if named else inputs)
        return None if x is None else ((x,), {})

    expected = logits()
    handles = (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(lambda _, inputs, output: spoilt((output,))),
    )
    try:
        found = logits()
    finally:
        for handle in handles:
            handle.remove()
    # A module that is called twice, or not at all, would not be understood.
    return calls == [True, True] and torch.equal(found, expected)
