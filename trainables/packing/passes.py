"""Which samples share a pass: all of them, or those of similar length apart.

A pass pads its samples to the longest of them. Among the samples of many trials there nearly always
is a long one, so that one pass for all would compute more padding than tokens; but each pass has a
cost of its own, which for a small model is most of it. What passes have taken decides.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainables.data.dataset import Sample
    from trainables.packing.slot import Slot

_LEAST_GAIN = 1.05  # in time, for more than one pass
_PER_OCTAVE = 2  # passes of similar size, whose times are comparable
_TIMES_KEPT = 9
_LEAST_TRIED = 0.25  # of the tokens of the smallest known pass
_TIMES_TRUSTED = 3  # a first one includes what is done once


@dataclass(frozen=True)
class Share:
    """The samples that a slot has in a pass."""

    slot: Slot
    samples: list[Sample]

    @property
    def length(self) -> int:
        """Tokens of the longest."""
        return max(len(sample["input_ids"]) for sample in self.samples)

    def pieces(self) -> list[Share]:
        """The parts of it that can be in passes of their own.

        A micro-batch of which something is dropped stays together, since what is dropped is drawn
        for all of it at once; so does one whose tokens are weighed by all of its losses.
        """
        if self.slot.adapter.layout.dropout or self.slot.trial.loss.weighs_tokens:
            return [self]
        return [Share(self.slot, [sample]) for sample in self.samples]


def padded_tokens(shares: Sequence[Share]) -> int:
    """Tokens of a pass, padding included."""
    return sum(len(share.samples) for share in shares) * max(share.length for share in shares)


class PassTimes:
    """What passes have taken, by their tokens."""

    def __init__(self) -> None:
        self._taken: dict[int, deque[tuple[int, float]]] = {}
        self._typical: dict[int, tuple[float, float]] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """Note the time of a pass of this many tokens, padding included."""
        size_class = round(_PER_OCTAVE * math.log2(tokens))
        taken = self._taken.setdefault(size_class, deque(maxlen=_TIMES_KEPT))
        taken.append((tokens, seconds))
        if len(taken) >= _TIMES_TRUSTED:
            sizes, times = zip(*taken, strict=True)
            self._typical[size_class] = (fmean(sizes), median(times))

    def expected(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Expected seconds of passes of so many tokens each; as good as equal if none is known.

        Below the smallest known pass, time is expected to fall with the tokens down to a quarter
        of them, and then no further, so that few passes are tried in vain.
        """
        if not self._typical:
            return np.ones(len(tokens))
        sizes, medians = zip(*(self._typical[size] for size in sorted(self._typical)), strict=True)
        seconds = np.maximum.accumulate(medians)  # what is shorter takes no longer
        within = np.interp(tokens, sizes, seconds)
        fewer = seconds[0] * np.clip(tokens / sizes[0], _LEAST_TRIED, 1)
        more = np.maximum(tokens / sizes[-1], 1)
        return np.asarray(np.where(tokens < sizes[0], fewer, within * more))


def plan(
    shares: Sequence[Share], times: PassTimes, most_tokens: float = math.inf
) -> list[list[Share]]:
    """Split what slots have to train on into passes that together take the least time.

    The micro-batch of one slot alone is not split. In a pass there are `most_tokens`, padding
    included; a sample alone, a slot alone, or what cannot be split, is always admitted.

    Returns:
        The shares of each pass, slots in the given order.
    """
    if len(shares) == 1:  # whose numbers then depend on nothing else, such as what passes took
        return [list(shares)]
    together = padded_tokens(shares)
    tokens = sum(len(sample["input_ids"]) for share in shares for sample in share.samples)
    in_one, unpadded = times.expected(np.array([together, tokens]))
    if together <= most_tokens and in_one <= _LEAST_GAIN * unpadded:
        return [list(shares)]
    numbered = [(n, piece) for n, share in enumerate(shares) for piece in share.pieces()]
    numbered.sort(key=lambda piece: piece[1].length)
    rows = np.array([len(piece.samples) for _, piece in numbered])
    lengths = np.array([piece.length for _, piece in numbered])
    seconds, begins = _cheapest(rows, lengths, times, most_tokens)
    if together <= most_tokens and in_one <= _LEAST_GAIN * seconds:
        return [list(shares)]
    return [_joined(numbered[i:j]) for i, j in pairwise([*begins, len(numbered)])]


def _cheapest(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], times: PassTimes, most_tokens: float
) -> tuple[float, list[int]]:
    """Cut pieces, by length, into passes: their expected seconds, and where each pass begins.

    The best passes for the first n pieces are a last one and the best for those before it.
    """
    before = np.concatenate([[0], np.cumsum(rows)])
    seconds = np.zeros(len(rows) + 1)
    last_begin = np.zeros(len(rows) + 1, dtype=int)
    for end in range(1, len(rows) + 1):
        tokens = (before[end] - before[:end]) * lengths[end - 1]
        last_seconds = times.expected(tokens)
        last_seconds[:-1][tokens[:-1] > most_tokens] = np.inf
        last_begin[end] = np.argmin(seconds[:end] + last_seconds)
        seconds[end] = (seconds[:end] + last_seconds)[last_begin[end]]
    begins: list[int] = []
    end = len(rows)
    while end:
        end = int(last_begin[end])
        begins.insert(0, end)
    return float(seconds[-1]), begins


def _joined(numbered: Sequence[tuple[int, Share]]) -> list[Share]:
    """One share of each slot, by the numbers of the slots."""
    shares: dict[int, Share] = {}
    for number, piece in sorted(numbered, key=lambda pair: pair[0]):
        samples = shares[number].samples if number in shares else []
        shares[number] = Share(piece.slot, samples + piece.samples)
    return list(shares.values())
