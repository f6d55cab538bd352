"""LoRA's dropout in slots: what each trial drops is what it drops alone.

Shapes: G trials in a group, R sequences of each, K trials in a batch, N sequences, S positions, T
tokens of a trial, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch

from trainables.slots.batch import Batch

if TYPE_CHECKING:  # which import this file
    from trainables.slots.adapters import Adapter, Part


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
        self._adapters = list(adapters)
        self._drawn_from = dict(
            zip(adapters, zip(generators, batch.lengths, strict=True), strict=True)
        )
        self._rows, self._window = batch.rows, batch.window
        self._device = batch.input_ids_NS.device
        self._filled = torch.empty(0, device=self._device)
        of_all = zip(adapters, generators, strict=True)
        self._generators = [generator for adapter, generator in of_all if adapter.dropout]

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

    def draw(self, part: Part, shape_SI: tuple[int, int]) -> torch.Tensor | None:
        """Booleans (G, T, I): what is kept of a part's share of a layer's input; None if all is."""
        adapters = part.adapters
        if not any(adapter.dropout for adapter in adapters):
            return None
        first = self._adapters.index(adapters[0])
        window = self._window if self._window and shape_SI[0] == self._window.length else None
        width = window.width if window else shape_SI[0]
        shape_GRSI = (len(adapters), part.rows, width, shape_SI[1])
        kept_GRSI = torch.ones(shape_GRSI, dtype=torch.bool, device=self._device)
        self._draw_into(kept_GRSI, adapters)
        if window:
            before = sum(self._rows[:first])
            window = window.of_rows(before, len(adapters) * part.rows)
            kept_GRSI = window.gather(kept_GRSI.flatten(0, 1)).unflatten(0, (len(adapters), -1))
        return kept_GRSI.flatten(1, 2)

    def _draw_into(self, kept_GRSI: torch.Tensor, adapters: Sequence[Adapter]) -> None:
        """Draw what torch's dropout would keep of these adapters' inputs."""
        places, drawn = [], []
        for kept_RSI, adapter in zip(kept_GRSI, adapters, strict=True):
            if not adapter.dropout:
                continue
            generator, length = self._drawn_from[adapter]
            kept_RLI = kept_RSI[:, :length]
            keep = 1 - adapter.dropout
            # CUDA's kernel consumes random numbers in another order than Bernoulli's.
            if self._device.type == "cuda":
                of_ones = torch._fused_dropout(self._ones(kept_RLI.shape), keep, generator)
                drawn += of_ones[1].view(torch.bool).unbind()
                places += kept_RLI.unbind()
            else:
                kept_RLI.copy_(torch.empty(kept_RLI.shape).bernoulli_(keep, generator=generator))
        if places:  # by one kernel, as each of them is in one piece
            torch._foreach_copy_(places, drawn)

    def _ones(self, shape: torch.Size) -> torch.Tensor:
        """Ones in fp32, which must not be written to."""
        if self._filled.numel() < shape.numel():
            self._filled = torch.ones(shape.numel(), device=self._device)
        return self._filled[: shape.numel()].view(shape)
