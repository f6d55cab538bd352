"""LoRA's dropout in slots: what each trial drops is what it drops alone.

Shapes: N sequences, R of them a trial's, S positions, L that its longest sequence has, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from trainables.slots.batch import Batch

if TYPE_CHECKING:  # which imports this file
    from trainables.slots.adapters import Adapter


class Masks:
    """Dropout, drawn from each adapter's own generator as if it trained alone.

    Args:
        generators: the adapters', in order.
        batch: what they drop of.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        generators: Sequence[torch.Generator],
        batch: Batch,
    ) -> None:
        self._of_each = list(zip(adapters, generators, batch.lengths, strict=True))
        self._generators = [generator for adapter, generator, _ in self._of_each if adapter.dropout]
        self._rows, self._window = batch.rows, batch.window
        self._device = batch.input_ids_NS.device
        self._filled = torch.empty(0, device=self._device)

    def __bool__(self) -> bool:
        """Whether any of the adapters drops anything."""
        return bool(self._generators)

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

    def draw(self, positions: int, features: int) -> torch.Tensor:
        """What is kept of a layer's input: booleans (N, S, I)."""
        window = self._window if self._window and positions == self._window.length else None
        shape_NSI = (sum(self._rows), window.width if window else positions, features)
        kept_NSI = torch.ones(shape_NSI, dtype=torch.bool, device=self._device)
        places, drawn = [], []
        for (adapter, generator, length), kept_RSI in zip(
            self._of_each, kept_NSI.split(self._rows), strict=True
        ):
            if not adapter.dropout:
                continue
            kept_RLI, keep = kept_RSI[:, :length], 1 - adapter.dropout
            # CUDA's kernel consumes random numbers in another order than Bernoulli's.
            if self._device.type == "cuda":
                of_ones = torch._fused_dropout(self._ones(kept_RLI.shape), keep, generator)
                drawn += of_ones[1].view(torch.bool).unbind()
                places += kept_RLI.unbind()
            else:
                kept_RLI.copy_(torch.empty(kept_RLI.shape).bernoulli_(keep, generator=generator))
        if places:  # by one kernel, as each of them is in one piece
            torch._foreach_copy_(places, drawn)
        return window.gather(kept_NSI) if window else kept_NSI

    def _ones(self, shape: torch.Size) -> torch.Tensor:
        """Ones in fp32, which must not be written to."""
        if self._filled.numel() < shape.numel():
            self._filled = torch.ones(shape.numel(), device=self._device)
        return self._filled[: shape.numel()].view(shape)
