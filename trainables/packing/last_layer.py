"""The last layer, computed only where the loss reads it.

What follows the last attention works position by position, and a loss on completions reads few
positions of each sequence. There alone are that layer's queries, output and MLP computed: a pass
of the bundled model takes 10 to 20 % less time (4 sequences of 32 or 64 tokens in 8 slots).

Shapes: N sequences, S positions, L of them in a window, I inputs, O outputs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self.modules = _modules_read_in_place(base)
        self._window: Window | None = None
        self._handles: list[Any] = []
        for module in self.modules:
            self._handles.append(module.register_forward_pre_hook(self._gather))
            self._handles.append(module.register_forward_hook(self._scatter))

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


def _modules_read_in_place(base: Any) -> list[nn.Module]:
    """The largest modules of the last layer of which `_works_in_place` is true."""
    lists = [module for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    found: list[nn.Module] = []
    candidates = list(lists[0][-1].children())  # other lists, as of experts, are parts of layers
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

    Then the last positions' logits stay when the other positions are changed before and after the
    module, and do not when they themselves are.
    """
    same = _last_logits(base, module, slice(0))
    by_others = _last_logits(base, module, slice(0, _FIRST))
    by_own = _last_logits(base, module, slice(_FIRST, None))
    if same is None or by_others is None or by_own is None:
        return False
    effect = (by_own - same).abs().max()
    # Experts, which get the positions in batches, round otherwise.
    return bool(effect > 0 and (by_others - same).abs().max() <= _ROUNDING * effect)


@torch.no_grad()
def _last_logits(base: Any, module: nn.Module, where: slice) -> torch.Tensor | None:
    """The last positions' logits, with some positions of a module's input and output changed.

    None if the module is not called once, to make one tensor (1, S, O) of one tensor (1, S, I).
    """
    tokens_1S = torch.arange(_WIDTH, device=base.device)[None]
    calls: list[bool] = []

    def changed(values: tuple[Any, ...]) -> torch.Tensor | None:
        match values:
            case (torch.Tensor(ndim=3) as x,) if x.is_floating_point():
                calls.append(x.shape[:2] == tokens_1S.shape)
                x = x.clone()
                x[:, where] = 1 - 3 * x[:, where]
                return x
        calls.append(False)
        return None

    def before(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        x = changed(() if named else inputs)
        return None if x is None else ((x,), {})

    def after(_: Any, inputs: Any, output: Any) -> Any:
        return changed((output,))

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        logits_1SV: torch.Tensor = base(input_ids=tokens_1S, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits_1SV[:, _FIRST:].float() if calls == [True, True] else None
