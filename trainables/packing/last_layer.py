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

from trainables.packing.packed_batch import Window

# The sequence that shows which modules they are: its length, and where its last positions begin.
_WIDTH, _FIRST = 8, 5
_ROUNDING = 1e-4  # relative to the effect of other values in the last positions


class LastLayer:
    """The modules of a base's last layer of which only the loss reads what they compute.

    Which they are is found out by running the base, a causal language model: layers differ, and
    their names too. Its hooks are there until `close`.
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
    """The largest modules of the last layer of which `_works_in_place` is true."""
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
        if _works_in_place(base, module):
            found.append(module)
        else:
            candidates += module.children()
    return found


def _works_in_place(base: Any, module: nn.Module) -> bool:
    """Whether a module works position by position, and so does all that follows it.

    Then the last positions' logits stay when the others are spoilt before and after the module:
    with NaN, which no weight hides, as NaN x 0 is NaN; and with other values, as torch's attention
    ignores queries that are NaN. Where they also stay when they themselves are spoilt, as by a
    module that only chooses among many keys, this tells nothing.
    """
    early, late = slice(0, _FIRST), slice(_FIRST, None)
    undisturbed = _logits(base)
    by_nan = _logits(base, module, early, _nan)
    by_values = _logits(base, module, early, _other)
    by_own = _logits(base, module, late, _other)
    if undisturbed is None or by_nan is None or by_values is None or by_own is None:
        return False
    effect = (by_own - undisturbed).abs().max()
    # Experts, which get the positions in batches, round otherwise.
    is_kept = (by_values - undisturbed).abs().max() <= _ROUNDING * effect
    return bool(effect > 0 and by_nan.isfinite().all() and is_kept)


def _nan(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, torch.nan)


def _other(x: torch.Tensor) -> torch.Tensor:
    return 1 - 3 * x


@torch.no_grad()
def _logits(
    base: Any,
    module: nn.Module | None = None,
    where: slice = slice(0),
    how: Callable[[torch.Tensor], torch.Tensor] = _nan,
) -> torch.Tensor | None:
    """The last positions' logits, with some positions of a module's input and output spoilt.

    None if the module is not called once, to make one tensor (1, S, O) of one tensor (1, S, I), or
    if these do not lie in memory as the sequence does: a window would, and dropout follows that.
    """
    tokens_1S = torch.arange(_WIDTH, device=base.device)[None]
    calls: list[bool] = []

    def spoilt(values: tuple[Any, ...]) -> torch.Tensor | None:
        match values:
            case (torch.Tensor(ndim=3) as x,) if x.is_floating_point():
                calls.append(x.shape[:2] == tokens_1S.shape and x.is_contiguous())
                x = x.clone()
                x[:, where] = how(x[:, where])
                return x
        calls.append(False)
        return None

    def before(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        x = spoilt(() if named else inputs)
        return None if x is None else ((x,), {})

    def after(_: Any, inputs: Any, output: Any) -> Any:
        return spoilt((output,))

    handles: list[Any] = []
    if module is not None:
        handles = [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]
    try:
        logits_1SV: torch.Tensor = base(input_ids=tokens_1S, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits_1SV[:, _FIRST:].float() if calls == [True] * len(handles) else None
