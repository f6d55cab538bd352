"""A sweep beside another in one report: each told by itself, and one compared with the other."""

from __future__ import annotations

import pytest
from builders import repeat_of
from scipy.stats import binomtest
from synthetic_sweep import SyntheticSweep

from analysis.conclusions import Conclusion, conclude
from analysis.conclusions.capacity_trends import forgetting_and_step_size, trend_over_capacities
from analysis.conclusions.sufficient_capacity import capacity_that_suffices
from analysis.paper_table import paper_table
from analysis.results.trade_off import best_trade_off, objective_ranges, scaling_trials
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.item_records import items_file, write_items
from trainables.records.schema import TrialStatus

STOPPED = dict.fromkeys((5, 6, 7), TrialStatus.STOPPED_EARLY)


def open_together(folder, *sweeps: SyntheticSweep) -> Results:
    """Sweeps of one base, as its cache gives it to all of them."""
    folders = [sweep.write(folder / sweep.name) for sweep in sweeps]
    for other in folders[1:]:
        for name in ("base.json", "items.jsonl"):
            (other / "base" / name).write_bytes((folders[0] / "base" / name).read_bytes())
    return Results(open_sweeps(folders))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    plain = SyntheticSweep(trials=28, items=60, name="plain", seed=0)
    replayed = SyntheticSweep(trials=24, items=60, name="replayed", seed=1, failures=STOPPED)
    return open_together(tmp_path_factory.mktemp("sweeps"), plain, replayed)


def test_each_sweep_has_its_own_row_of_each_rank_compared_with_its_own_full_fine_tuning(results):
    ranges = objective_ranges(results.goals, scaling_trials(results.goals, results.complete))
    expected = []
    for rank in (1, 4, 16, 64, None):
        for sweep in results.sweeps:
            own = [r for r in sweep.trials if r.config.method.columns.get("rank") == rank]
            done = [r for r in own if r.status is TrialStatus.COMPLETE]
            best = best_trade_off(results.goals, done, ranges)
            method = "full fine-tuning" if rank is None else f"LoRA, rank {rank}"
            expected.append((f"{method} of {sweep.name}", best.config.trial_id, len(own)))
    rows = paper_table(results).rows[1:]
    assert [(row.label, row.trial_id, row.trials) for row in rows] == expected
    full = {row.label.split()[-1]: row for row in rows if row.label.startswith("full")}
    for row in rows[:-2]:
        cell = row.cells["in-domain"]
        difference = cell.value - full[row.label.split()[-1]].cells["in-domain"].value
        assert cell.to_reference.difference.estimate == pytest.approx(difference)


def test_what_is_said_of_a_sweep_is_what_is_said_of_it_alone(results):
    """Pooled, trials of one rank but of two sweeps would be tested as if alike."""
    told = [(c.statement, c.evidence) for c in conclude(results)]
    for make in (forgetting_and_step_size, trend_over_capacities, capacity_that_suffices):
        for sweep in results.sweeps:
            alone = Results([sweep])
            for one in make(alone, alone.sweeps[0]):
                assert (f"{sweep.name}: {one.statement}", one.evidence) in told


def against_first(results: Results) -> list[Conclusion]:
    return [c for c in conclude(results) if "he best trade-off of " in c.statement]


def test_the_best_of_a_sweep_is_compared_with_that_of_the_first(results):
    ranges = objective_ranges(results.goals, scaling_trials(results.goals, results.complete))
    first, second = (
        best_trade_off(results.goals, results.of(sweep, results.complete), ranges)
        for sweep in results.sweeps
    )
    told = against_first(results)
    assert len(told) == 3
    for one in told:
        assert f"he best trade-off of replayed (trial {second.number}, " in one.statement
        assert f"that of plain (trial {first.number}, " in one.statement
    [in_domain] = [c for c in told if "in the domain" in c.statement]
    scores = [results.items.pairs(record)["sums"] for record in (first, second)]
    outcomes = [(a.tuned.score, b.tuned.score) for a, b in zip(*scores, strict=True)]
    more, less = outcomes.count((0, 1)), outcomes.count((1, 0))
    p_value = min(1.0, 28 * 24 * binomtest(more, more + less).pvalue) if more + less else 1.0
    comparison = results.items.compare(second, first, ["sums"], picked_from=28 * 24)
    assert comparison.p_value == pytest.approx(p_value)
    assert in_domain.verdict == "open"  # they have no repeats
    assert in_domain.statement.startswith("In one run of each, ") == comparison.runs_differ
    assert in_domain.evidence.endswith(
        "best of 24 trials of replayed and of 28 of plain, picked on these items"
    )


def test_a_sweep_that_forgets_less_is_told_to(tmp_path):
    names = ("plain", "replayed")
    sweeps = [SyntheticSweep(trials=1, items=200, name=n, full_every=0) for n in names]
    results = open_together(tmp_path, *sweeps)
    for sweep, forgets in zip(results.sweeps, (40, 0), strict=True):
        items = sweep.ledger.base_items()
        lost = [i for i, item in enumerate(items) if item.task == "capitals" and item.score == 1]
        for index in lost[:forgets]:
            items[index] = items[index].model_copy(update={"score": 0.0})
        [record] = sweep.trials
        write_items(items_file(sweep.ledger.folder.attempt(0, 1), record.last.name), items)
    [told] = [c for c in against_first(results) if "on the retention tasks" in c.statement]
    assert told.verdict == "open"
    assert told.statement.startswith("In one run of each, the best trade-off of replayed (trial 0,")
    # 40 of 200 items of one of three tasks.
    assert "forgets less" in told.statement
    assert "by 6.7 points" in told.statement
    assert "(`confirm`)" in told.statement
    assert told.evidence.endswith("n = 600; McNemar p < 0.001")
    for sweep, forgets in zip(results.sweeps, (0.08, 0.02), strict=True):
        [trial] = sweep.trials
        for number in (100, 101):
            sweep.ledger.write_trial(repeat_of(trial, number, {FORGETTING_MEAN: forgets}))
    results = Results(open_sweeps([tmp_path / name for name in names]))
    [told] = [c for c in against_first(results) if "on the retention tasks" in c.statement]
    assert told.verdict == "shown"
    assert told.statement.startswith("The best trade-off of replayed (trial 0,")
    assert told.statement.endswith("over 4 runs with other seeds 6.0 on average.")
