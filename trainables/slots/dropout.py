"""LoRA's dropout in slots: what each trial drops is what it drops alone.

Shapes: G trials in a group, R sequences of each, K trials in a batch, N sequences, S positions, T
tokens of a trial, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trainables.slots.batch import Batch

if TYPE_CHECKING:  # which import this file
    from trainables.slots.adapters import Adapter, Part


@dataclass(frozen=True)
class Mask:
    """What dropout keeps of a part's share of an input, and by how much it grows.

    Attributes:
        kept_GTI: booleans, a quarter of the factors that they stand for.
        growth_G11: one over each adapter's share that is kept, in fp32.
    """

    kept_GTI: torch.Tensor
    growth_G11: torch.Tensor

    def applied_to(self, x_GTI: torch.Tensor) -> torch.Tensor:
        """The input without what is dropped, in its dtype."""
        return ((x_GTI * self.kept_GTI) * self.growth_G11).to(x_GTI.dtype)


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
        kept = [1 - adapter.dropout for adapter in adapters]
        self._growth_K = torch.tensor(kept, device=self._device).reciprocal()
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

    def draw(self, part: Part, shape_SI: tuple[int, int]) -> Mask | None:
        """The mask for a part's share of a layer's input; None if nothing is dropped."""
        adapters = part.adapters
        if not any(adapter.dropout for adapter in adapters):
            return None
        first = self._adapters.index(adapters[0])
        window = self._window if self._window and shape_SI[0] == self._window.length else None
        width = window.width if window else shape_SI[0]
        shape_GRSI = (len(adapters), part.rows, width, shape_SI[1])
        kept_GRSI = torch.ones(shape_GRSI, dtype=torch.bool, device=self._device)
        for kept_RSI, adapter in zip(kept_GRSI, adapters, strict=True):
            if adapter.dropout:
                generator, length = self._drawn_from[adapter]
                shape = (part.rows, length, shape_SI[1])
                kept_RSI[:, :length] = self._draw(shape, 1 - adapter.dropout, generator)
        if window:
            before = sum(self._rows[:first])
            window = window.of_rows(before, len(adapters) * part.rows)
            kept_GRSI = window.gather(kept_GRSI.flatten(0, 1)).unflatten(0, (len(adapters), -1))
        growth_G = self._growth_K[first : first + len(adapters)]
        return Mask(kept_GRSI.flatten(1, 2), growth_G.view(-1, 1, 1))

    def _draw(
        self, shape: tuple[int, int, int], keep: float, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw what torch's dropout would keep of an input of this shape."""
        # CUDA's kernel consumes random numbers in another order than Bernoulli's.
        if self._device.type == "cuda":
            ones = torch.ones(shape, device=self._device)
            return torch._fused_dropout(ones, keep, generator=generator)[1]
        return torch.empty(shape, device=self._device).bernoulli_(keep, generator=generator)
