"""Samples share passes so that training takes the least time, by what passes have taken."""

from __future__ import annotations

import math
import random
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from trainables.losses import Loss
from trainables.losses.sft import Sft
from trainables.losses.talr import Talr
from trainables.methods.base import LowRankLayout
from trainables.packing.passes import PassTimes, Share, padded_tokens, plan

if TYPE_CHECKING:
    from collections.abc import Callable


def share(*lengths: int, dropout: float = 0.0, loss: Loss = Sft()) -> Share:  # noqa: B008
    layout = LowRankLayout(rank=1, scaling=1.0, dropout=dropout)
    slot: Any = SimpleNamespace(
        adapter=SimpleNamespace(layout=layout), trial=SimpleNamespace(loss=loss)
    )
    return Share(slot, [{"input_ids": [1] * n, "labels": [1] * n} for n in lengths])


def times_of(seconds: Callable[[int], float], sizes: range) -> PassTimes:
    times = PassTimes()
    for _ in range(3):
        for tokens in sizes:
            times.add(tokens, seconds(tokens))
    return times


def lengths_of(passes: list[list[Share]]) -> list[list[int]]:
    return [[len(s["input_ids"]) for share in one for s in share.samples] for one in passes]


def expected(times: PassTimes, *tokens: int) -> list[float]:
    return list(map(float, times.expected(np.array(tokens))))


def cheapest(lengths: list[int], seconds: Callable[[int], float], most: float) -> float:
    """By brute force over all ways to cut the samples, by length, into passes."""
    lengths = sorted(lengths)
    found = math.inf
    for count in range(len(lengths)):
        for cuts in combinations(range(1, len(lengths)), count):
            ranges = list(pairwise([0, *cuts, len(lengths)]))
            tokens = [(end - begin) * lengths[end - 1] for begin, end in ranges]
            if max(tokens) <= most:
                found = min(found, sum(map(seconds, tokens)))
    return found


@pytest.mark.parametrize("most", [math.inf, 90])
@pytest.mark.parametrize("overhead", [0.0, 10.0, 40.0, 1000.0])
def test_passes_take_the_least_time_of_all_ways_to_cut_them(overhead: float, most: float) -> None:
    rng = random.Random(0)
    # A line between the sizes that are known is this line itself.
    times = times_of(lambda tokens: overhead + tokens, range(4, 500))
    for _ in range(30):
        lengths = [rng.randint(4, 40) for _ in range(8)]
        passes = plan([share(*lengths[:3]), share(*lengths[3:])], times, most)
        assert sorted(n for one in lengths_of(passes) for n in one) == sorted(lengths)
        found = sum(overhead + padded_tokens(one) for one in passes)
        least = cheapest(lengths, lambda tokens: overhead + tokens, most)
        assert least * 0.99 <= found <= least * 1.06
        assert all(padded_tokens(one) <= most for one in passes if len(one[0].samples) > 1)


def test_the_samples_of_a_pass_stay_those_of_their_slots() -> None:
    """A micro-batch of which something is dropped stays together."""
    short, mixed, long = share(5, 6), share(5, 60), share(61, 59)
    times = times_of(lambda tokens: 10.0 + tokens, range(4, 500))
    (first, second) = plan([short, mixed, long], times)
    assert [one.slot for one in first] == [short.slot, mixed.slot]
    assert [one.slot for one in second] == [mixed.slot, long.slot]
    assert lengths_of([first, second]) == [[5, 6, 5], [60, 59, 61]]
    for whole in (share(5, 60, dropout=0.1), share(5, 60, loss=Talr())):
        assert [whole] in [
            [one for one in some if one.slot is whole.slot]
            for some in plan([short, whole, long], times)
        ]


def test_without_the_memory_for_all_as_few_passes_as_fit() -> None:
    passes = plan([share(10, 10, 10, 10), share(10)], PassTimes(), most_tokens=30)
    assert sorted(map(padded_tokens, passes)) == [20, 30]
    assert lengths_of(plan([share(40), share(40)], PassTimes(), most_tokens=30)) == [[40], [40]]


def test_what_passes_take_is_a_median_and_grows_with_their_tokens() -> None:
    times = PassTimes()
    for tokens, seconds in ((100, 1.0), (1000, 0.9), (4000, 4.0)):
        for _ in range(9):
            times.add(tokens, 70.0)  # as long as the machine was busy
        for noise in (0, 0, 9, 0, 0, 0, 9, 0, 9):
            times.add(tokens, seconds + noise)
    assert expected(times, 100, 1000, 2500, 4000) == pytest.approx([1, 1, 2.5, 4])
    assert expected(times, 8000) == pytest.approx([8])
    assert expected(times, 75, 50, 25, 1) == pytest.approx([0.75, 0.5, 0.25, 0.25])
