"""LoRA's dropout in packed passes: each trial draws its masks from its own generator.

Shapes: N sequences, R of them a trial's, S positions, L of the trial's longest sequence, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from trainables.packing.packed_batch import Batch


class Masks:
    """Dropout masks of a pass; a trial's depend on its generator alone, not on its neighbours.

    `rates` and `generators` are those of the batch's micro-batches.
    """

    def __init__(
        self, rates: Sequence[float], generators: Sequence[torch.Generator], batch: Batch
    ) -> None:
        self._trials = list(zip(rates, generators, batch.lengths, strict=True))
        self._generators = [generator for rate, generator, _ in self._trials if rate]
        self._rows = batch.rows

    def draw(self, x_NSI: torch.Tensor) -> torch.Tensor | None:
        """What is kept of a layer's input: booleans (N, S, I); None if nothing is dropped."""
        if not self._generators:
            return None
        kept_NSI = torch.ones_like(x_NSI, dtype=torch.bool)
        for (rate, generator, length), kept_RSI in zip(
            self._trials, kept_NSI.split(self._rows), strict=True
        ):
            if rate:
                kept_RSI[:, :length].bernoulli_(1 - rate, generator=generator)
        return kept_NSI

    def again(self) -> AbstractContextManager[None]:
        """A context for later, in which the masks drawn from now on are drawn again."""
        return self._replay([generator.get_state() for generator in self._generators])

    @contextmanager
    def _replay(self, states: Sequence[torch.Tensor]) -> Iterator[None]:
        before = [generator.get_state() for generator in self._generators]
        self._restore(states)
        try:
            yield
        finally:
            self._restore(before)

    def _restore(self, states: Sequence[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
