"""What is counted trial by trial equals what is counted over all of them."""

from __future__ import annotations

import random
from itertools import count

import pytest
from builders import scores, trial
from ray.tune.experiment import Trial

from trainables.metric_keys import GPU_HOURS
from trainables.records.schema import TrialRecord, TrialStatus
from tune.search.fifo import Fifo
from tune.search.history import SearchHistory

POINTS = [{"rank": rank, "alpha": alpha} for rank in (4, 8) for alpha in (8.0, 16.0)]


def random_records(seed: int) -> list[TrialRecord]:
    """Trials that start, end, and are replaced, in any order and with gaps in their numbers."""
    generator = random.Random(seed)
    numbers = [generator.randrange(40) for _ in range(200)]
    return [
        trial(
            number,
            status=generator.choice(list(TrialStatus)),
            metrics=scores(generator.random(), generator.random())
            | {GPU_HOURS: generator.random()},
            params=POINTS[number % len(POINTS)],
            confirms=0 if number % 5 == 4 else None,
        )
        for number in numbers
    ]


@pytest.mark.parametrize("seed", range(2))
def test_tallies_equal_a_count_over_all_records(seed: int) -> None:
    taken = random_records(seed)
    warm = random_records(seed + 100)[:20]
    history = SearchHistory(taken[:50], warm)
    for record in taken[50:]:
        history.take(record)
    records = {record.number: record for record in taken}
    searched = [r for r in records.values() if r.confirms is None]
    assert {r.number: r for r in history.records} == records
    assert history.searched == len(searched)
    assert history.next_number == next(n for n in count() if n not in records)
    assert history.gpu_hours == pytest.approx(
        sum(r.metric(GPU_HOURS) or 0 for r in records.values())
    )
    for point in [*POINTS, {"rank": 16, "alpha": 8.0}]:
        assert history.tried(point) == sum(
            r.params == point and r.status is not TrialStatus.FAILED for r in (*searched, *warm)
        )
        assert history.has(point) == any(r.params == point for r in searched)
    confirming = [r.number for r in records.values() if r.confirms is not None]
    for number in range(42):
        assert history.position(number) == number - sum(c < number for c in confirming)


def test_trials_run_first_in_first_out() -> None:
    scheduler = Fifo()
    trials = [Trial("any", stub=True) for _ in range(4)]
    assert scheduler.choose_trial_to_run(None) is None
    for each in trials:
        scheduler.on_trial_add(None, each)
    trials[1].set_status(Trial.RUNNING)
    chosen = []
    while (each := scheduler.choose_trial_to_run(None)) is not None:
        assert scheduler.choose_trial_to_run(None) is each  # until it runs
        chosen.append(each)
        each.set_status(Trial.RUNNING)
        trials[0].set_status(Trial.TERMINATED)
    assert chosen == [trials[0], trials[2], trials[3]]
