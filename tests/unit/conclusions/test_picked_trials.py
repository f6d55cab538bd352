"""What is said of the best of many trials on the very items that it was picked by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import with_metrics
from synthetic_sweep import TASKS, SyntheticSweep

from analysis.conclusions.comparisons import (
    full_against_lora,
    recommended_against_base,
)
from analysis.paper_table import paper_table
from analysis.report.answer import answer
from analysis.shown_sweeps import Results
from analysis.stats.intervals import over_items
from analysis.stats.task_parts import Part
from analysis.sweeps import Sweep, open_sweeps
from trainables.metric_keys import IN_DOMAIN_ACC
from trainables.records.schema import TrialStatus

TRIALS, ITEMS, SWEEPS = 40, 120, 60
IN_DOMAIN = ({"metric": IN_DOMAIN_ACC, "mode": "max"},)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Sweep:
    written = SyntheticSweep(trials=TRIALS, items=2, objectives=IN_DOMAIN, full_every=TRIALS)
    return open_sweeps([written.write(tmp_path_factory.mktemp("sweep"))])[0]


class Drawn(Results):
    """A sweep whose trials differ from the base on items that went either way by a fair coin."""

    def __init__(self, sweep: Sweep, seed: int) -> None:
        draw = np.random.default_rng(seed)
        base = {task: draw.integers(0, 2, ITEMS).astype(float) for task in TASKS}
        self.drawn: dict[str, dict[str, np.ndarray]] = {}
        trials = []
        for record in sweep.trials:
            own = {t: np.where(draw.random(ITEMS) < 0.2, 1 - s, s) for t, s in base.items()}
            self.drawn[record.config.trial_id] = own
            metrics = record.last.metrics | {IN_DOMAIN_ACC: float(own["sums"].mean())}
            trials.append(with_metrics(record, metrics))
        super().__init__([replace(sweep, trials=tuple(trials))])
        self.items._scores_of = self.drawn.__getitem__
        self.items._base_scores = base
        questions = np.arange(ITEMS)
        self.items._parts = lambda tasks: [Part(t, questions, 1 / len(tasks)) for t in tasks]


def test_the_best_of_many_trials_that_learnt_nothing_is_not_shown_to_have_learnt(sweep):
    recommended, full = 0, 0
    for seed in range(SWEEPS):
        results = Drawn(sweep, seed)
        recommended += any(c.verdict == "shown" for c in recommended_against_base(results))
        told = full_against_lora(results, results.sweeps[0])
        in_domain = [c for c in told if "in the domain" in c.statement]
        full += any(c.verdict == "shown" for c in in_domain)
    assert recommended <= 0.05 * SWEEPS
    assert full <= 0.05 * SWEEPS


def test_the_evidence_says_what_the_trial_was_picked_from_and_holds_for_all_of_them(sweep):
    results = Drawn(sweep, seed=0)
    trial = results.recommendation.trial
    [gain, _] = recommended_against_base(results)
    assert gain.evidence.endswith("; best of 40 trials, picked on these items")
    plain = results.items.compare(trial, None, ["sums"], picked_from=1)
    picked = results.items.compare(trial, None, ["sums"], picked_from=40)
    assert picked.p_value == pytest.approx(min(1, 40 * plain.p_value))
    wide = over_items(
        *results.items.differences(trial, None, ["sums"]), bounds=(-1, 1), level=1 - 0.05 / 40
    )
    assert (picked.difference.low, picked.difference.high) == pytest.approx((wide.low, wide.high))


def test_trials_that_their_scores_stopped_early_are_among_those_picked_from(tmp_path):
    stopped = {n: TrialStatus.STOPPED_EARLY for n in range(TRIALS) if n % 4}
    written = SyntheticSweep(
        trials=TRIALS, items=ITEMS, ranks=(4,), full_every=5, failures=stopped
    ).write(tmp_path)
    results = Results(open_sweeps([written]))
    assert len(results.complete) == 10
    for told in recommended_against_base(results):
        assert told.evidence.endswith("; best of 40 trials, picked on these items")
    numbers = [number.interval for number in answer(results).numbers]
    assert all(text.endswith("simultaneous over 40 trials") for text in numbers)
    assert [row.trials for row in paper_table(results).rows] == [0, 32, 8]
    [of_full, *_] = full_against_lora(results, results.sweeps[0])
    assert "best of 8 full and of 32 LoRA trials" in of_full.evidence
