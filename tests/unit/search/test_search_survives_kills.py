"""Whatever is killed and whenever, the search ends up knowing exactly what happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from ray.tune.search import Searcher
from simulated_search import (
    ended,
    judge,
    make_searcher,
    run,
    started,
    stopping,
    sweep,
    with_first,
)

from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.sweep_config import SweepConfig
from tune.search.searcher import OptunaSearcher

TRIALS = 10
# What happens next to a sweep: a trial starts, one of the running ones ends or loses its
# process, or the driver is killed.
EVENTS = st.lists(
    st.tuples(st.sampled_from(["start", "start", "end", "end", "lost", "kill"]), st.integers(0, 9)),
    max_size=40,
)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
few = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


class SimulatedSweep:
    """A driver and its ledger, without Ray: records are written before the search is told."""

    def __init__(self, config: SweepConfig, judge: Callable[..., Any] = judge) -> None:
        self._config, self._judge = config, judge
        self.ledger: dict[int, TrialRecord] = {}
        self.searcher: OptunaSearcher
        self.running: dict[int, TrialRecord] = {}
        self.told: list[int] = []
        self.kill()

    def kill(self) -> None:
        """The driver dies and is started again; trials it had suggested but not noted are gone."""
        records = list(self.ledger.values())
        interrupted = [r for r in records if r.status is TrialStatus.RUNNING]
        self.running = {}
        self.searcher = make_searcher(
            self._config, [r for r in records if r not in interrupted], interrupted
        )

    def start(self) -> bool:
        suggestion = self.searcher.suggest("any")
        if not isinstance(suggestion, dict):
            return False
        record = started(suggestion)
        self.ledger[record.number] = self.running[record.number] = record
        return True

    def lose(self, which: int) -> None:
        record = self._pick(which)
        if record:
            self.searcher.trial_interrupted(record)

    def end(self, which: int) -> None:
        record = self._pick(which)
        if record:
            record = ended(record, *self._judge(record.config))
            self.ledger[record.number] = record
            self.told.append(record.number)
            self.searcher.trial_ended(record)

    def _pick(self, which: int) -> TrialRecord | None:
        numbers = sorted(self.running)
        return self.running.pop(numbers[which % len(numbers)]) if numbers else None

    def happens(self, event: str, which: int, most_at_once: int) -> None:
        if event == "start" and len(self.running) < most_at_once:
            self.start()
        elif event == "end":
            self.end(which)
        elif event == "lost":
            self.lose(which)
        elif event == "kill":
            self.kill()

    def finish(self) -> None:
        while self.start() or self.running:
            self.end(0)
        assert self.searcher.suggest("any") == Searcher.FINISHED


def check(sweep: SimulatedSweep) -> None:
    """The study holds one trial for each record, running where the record is."""
    study = sweep.searcher.study
    told = [t.user_attrs["trial_id"] for t in study.trials if t.state.is_finished()]
    finished = [r for r in sweep.ledger.values() if r.status is not TrialStatus.RUNNING]
    assert sorted(told) == sorted(record.config.trial_id for record in finished)
    running = sum(trial.state is TrialState.RUNNING for trial in study.trials)
    assert running == len(sweep.ledger) - len(finished)


@few
@given(events=EVENTS, sampler=st.sampled_from(["tpe", "random"]))
def test_no_result_is_lost_or_counted_twice(events: list[tuple[str, int]], sampler: str) -> None:
    simulated = SimulatedSweep(sweep(sampler, trials=TRIALS))
    for event, which in events:
        simulated.happens(event, which, most_at_once=3)
        check(simulated)
    simulated.finish()
    check(simulated)
    assert sorted(simulated.told) == list(range(TRIALS))
    assert all(r.status is not TrialStatus.RUNNING for r in simulated.ledger.values())


@pytest.mark.parametrize("make", [sweep, with_first])
@pytest.mark.parametrize("ending", [judge, stopping])
@few
@given(events=EVENTS, sampler=st.sampled_from(["tpe", "random"]))
def test_killed_search_suggests_what_the_undisturbed_one_does(
    make: Callable[..., SweepConfig],
    ending: Callable[..., Any],
    events: list[tuple[str, int]],
    sampler: str,
) -> None:
    config = make(sampler, trials=TRIALS)
    simulated = SimulatedSweep(config, ending)
    for event, which in events:
        simulated.happens(event, which, most_at_once=1)
    simulated.finish()
    undisturbed = run(make_searcher(config), ending)
    assert [simulated.ledger[n].params for n in range(TRIALS)] == [r.params for r in undisturbed]
