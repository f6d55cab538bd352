"""LoRA's dropout in slots: what each trial drops is what it drops alone.

Shapes: N sequences, R of them a trial's, S positions, L that its longest sequence has, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from trainables.packing.packed_batch import Batch

if TYPE_CHECKING:  # which imports this file
    from trainables.packing.adapters import Adapter


class Masks:
    """Dropout of a batch, drawn from each adapter's own generator as if it trained alone."""

    def __init__(
        self, adapters: Sequence[Adapter], generators: Sequence[torch.Generator], batch: Batch
    ) -> None:
        self._of_each = list(zip(adapters, generators, batch.lengths, strict=True))
        self._generators = [generator for adapter, generator, _ in self._of_each if adapter.dropout]
        self._rows, self._window = batch.rows, batch.window
        self._device = batch.input_ids_NS.device

    def again(self) -> AbstractContextManager[None]:
        """A context for later, in which what is drawn from now on is drawn again.

        The generators leave it as they entered it. Their states (5 KB each on a CPU, 16 bytes on a
        GPU) are all that is kept until then.
        """
        return self._going_on_from(self._states())

    @contextmanager
    def _going_on_from(self, states: Sequence[torch.Tensor]) -> Iterator[None]:
        before = self._states()
        self._go_to(states)
        try:
            yield
        finally:
            self._go_to(before)

    def _states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators]

    def _go_to(self, states: Sequence[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def draw(self, x_NSI: torch.Tensor) -> torch.Tensor | None:
        """What is kept of a layer's input: booleans (N, S, I); None if nothing is dropped.

        The input is as the layer was given it: PyTorch draws in the order of its memory.
        """
        if not self._generators:
            return None
        positions, features = x_NSI.shape[1:]
        order = sorted(range(3), key=x_NSI.stride, reverse=True)
        window = self._window if self._window and positions == self._window.length else None
        shape_NSI = (sum(self._rows), window.width if window else positions, features)
        kept_NSI = torch.ones(shape_NSI, dtype=torch.bool, device=self._device)
        own = zip(self._of_each, kept_NSI.split(self._rows), strict=True)
        drop = [
            (1 - adapter.dropout, generator, kept_RSI[:, :length])
            for (adapter, generator, length), kept_RSI in own
            if adapter.dropout
        ]
        if self._device.type == "cuda":
            _draw_by_fused_dropout(drop, order)
        else:
            for keep, generator, kept_RLI in drop:
                drawn_RLI = torch.empty_permuted(kept_RLI.shape, order)
                kept_RLI.copy_(drawn_RLI.bernoulli_(keep, generator=generator))
        return window.gather(kept_NSI) if window else kept_NSI


def _draw_by_fused_dropout(
    of_each: Sequence[tuple[float, torch.Generator, torch.Tensor]], order: Sequence[int]
) -> None:
    """By CUDA's kernel, which consumes random numbers in another order than Bernoulli's.

    Args:
        of_each: the share that an adapter keeps, its generator, and where what is kept (R, L, I) is
            written to.
        order: of these dimensions in memory.
    """
    drawn: list[torch.Tensor] = []
    for keep, generator, kept_RLI in of_each:
        any_RLI = torch.empty_permuted(kept_RLI.shape, order, device=kept_RLI.device)
        drawn += torch._fused_dropout(any_RLI, keep, generator)[1].view(torch.bool).unbind()
    places = [kept_LI for *_, kept_RLI in of_each for kept_LI in kept_RLI]
    torch._foreach_copy_(places, drawn)  # by one kernel, where each of them is in one piece
