"""A trial has a point for each strength, and the answer is one of all trials' points."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest
from builders import (
    GAIN,
    LOSS,
    repeat_of,
    scores,
    sweep_config,
    trial,
    trial_config,
    with_metrics,
)
from synthetic_sweep import SyntheticSweep

from analysis.conclusions.comparisons import best_of_sweeps
from analysis.matched_accuracy import matched_rows
from analysis.paper_table import paper_table, summary_texts
from analysis.results.confirmation import winners
from analysis.results.default_selection import default_selection
from analysis.results.pareto import pareto_front
from analysis.results.recommendation import numbers_text, recommend
from analysis.results.repeats import judged_by_repeats
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.config import ConfirmConfig
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus, points_of
from tune.folder.tables import write_confirmed_csv, write_results_csv

if TYPE_CHECKING:
    from pathlib import Path

    from trainables.records.schema import TrialRecord


def curve(number: int, trained: tuple[float, float], **at: tuple[float, float]) -> TrialRecord:
    """A trial's gain and forgetting, and those at strengths such as `s4` for 0.4."""
    record = trial(number, scores(*trained), learning_rate=1e-4 * (number + 1))
    assert record.last is not None
    for name, (gain, forgetting) in at.items():
        strength = int(name.removeprefix("s")) / 10
        metrics = {**record.last.metrics, GAIN: gain, LOSS: forgetting}
        point = record.last.model_copy(update={"strength": strength, "metrics": metrics})
        record = record.after(point)
    return record


TWO = [{"metric": GAIN, "mode": "max"}, {"metric": LOSS, "mode": "min"}]
GOALS = sweep_config(objectives=TWO)
WILD = curve(0, (1.0, 0.5), s4=(0.95, 0.05), s8=(1.0, 0.3))
TAME = curve(1, (0.9, 0.1), s4=(0.5, 0.0))


def ids(records: list[TrialRecord]) -> list[tuple[int, float]]:
    return [(record.number, record.strength) for record in records]


def test_the_front_holds_points_of_any_strength() -> None:
    front = pareto_front(GOALS, [WILD, TAME])
    assert ids(front) == [(0, 0.4), (0, 0.8), (1, 0.4)]
    assert ids(pareto_front(GOALS, points_of([WILD, TAME]))) == ids(front)


def test_a_point_is_recommended_with_what_it_is_as_trained() -> None:
    found = recommend(GOALS, [WILD, TAME])
    assert found is not None
    assert ids([found.trial]) == [(0, 0.4)]
    assert found.reason.endswith(
        f" That is the base plus 0.4 of what training changed; as trained, at strength 1, it has "
        f"{GAIN} 1.000, {LOSS} +0.500."
    )
    alone = recommend(GOALS, [TAME.model_copy(update={"points": ()})])
    assert alone is not None
    assert (alone.trial.strength, "strength" in alone.reason) == (1, False)


def test_a_constraint_may_be_kept_at_a_lower_strength_alone() -> None:
    bounded = sweep_config(objectives=TWO, constraints=[f"{LOSS} <= 0.08"])
    found = recommend(bounded, [WILD])
    assert found is not None
    assert found.feasible
    assert ids([found.trial]) == [(0, 0.4)]


def repeats_of(record: TrialRecord, *at: tuple[float, float]) -> list[TrialRecord]:
    """Runs with other seeds: forgetting is 0.9 as trained, and these are their scores at 0.4."""
    return [
        curve(number, (1.0, 0.9), s4=each).model_copy(
            update={"confirms": record.number, "config": repeat_of(record, number, {}).config}
        )
        for number, each in enumerate(at, start=5)
    ]


def test_a_winner_is_judged_by_its_repeats_at_its_own_strength() -> None:
    confirm = ConfirmConfig(top_k=2, seeds=2)
    won = winners(GOALS, confirm, [WILD, TAME])
    assert ids(won)[0] == (0, 0.4)
    assert [record.number for record in won] == [0, 1]
    runs = repeats_of(WILD, (0.9, 0.1), (0.8, 0.2))
    judged = {(r.number, r.strength): r for r in judged_by_repeats([WILD, TAME, *runs], confirm)}
    assert judged[0, 0.4].metrics[GAIN] == pytest.approx(0.85)
    assert judged[0, 0.4].metrics[LOSS] == pytest.approx(0.15)
    assert judged[0, 1.0].metrics[LOSS] == pytest.approx(0.9)
    assert (0, 0.8) not in judged  # no repeat was evaluated there
    lost = runs[0].model_copy(update={"status": TrialStatus.DIVERGED})
    judged_too = judged_by_repeats([WILD, lost, runs[1]], confirm)
    assert {r.status for r in judged_too} == {TrialStatus.DIVERGED}


def test_the_reason_names_means_over_seeds_at_each_strength_and_a_lost_training_once() -> None:
    bounded = sweep_config(
        objectives=TWO, confirm={"top_k": 1, "seeds": 2}, constraints=[f"{LOSS} <= 0.3"]
    )
    runs = repeats_of(WILD, (0.9, 0.1), (0.8, 0.2))
    found = recommend(bounded, [WILD, TAME, *runs])
    assert found is not None
    assert ids([found.trial]) == [(0, 0.4)]
    assert f"as trained, at strength 1, it has {GAIN} 1.000, {LOSS} +0.900." in found.reason
    assert "broke a constraint" not in found.reason  # it did as trained, but was not to be taken
    lost = [runs[0].model_copy(update={"status": TrialStatus.DIVERGED}), runs[1]]
    other = recommend(bounded, [WILD, TAME, *lost])
    assert other is not None
    assert other.trial.number == 1
    assert other.reason.startswith("with another seed trial 0 diverged; of the others, ")


def test_means_over_seeds_are_tabulated_at_each_strength(tmp_path: Path) -> None:
    records = [WILD, TAME, *repeats_of(WILD, (0.9, 0.1), (0.8, 0.2))]
    write_confirmed_csv(tmp_path / "confirmed.csv", records, {})
    rows = csv.DictReader((tmp_path / "confirmed.csv").open())
    found = [(r["number"], r["strength"], float(r["mean"])) for r in rows if r["metric"] == LOSS]
    assert found == [("0", "0.4", pytest.approx(0.15)), ("0", "1.0", pytest.approx(0.9))]


def test_the_best_of_each_recipe_is_inspected_by_its_best_strength() -> None:
    """As trained, trial 2 is nearer to the best of both objectives than trial 3, which is not on
    the front, at any strength."""
    records = [WILD, TAME, curve(2, (0.8, 0.2)), curve(3, (0.9, 0.4), s4=(0.8, 0.15))]
    full = [r.model_copy(update={"config": trial_config(r.number, "full")}) for r in records[2:]]
    kept = [r.model_copy(update={"weights_dir": "w"}) for r in (*records[:2], *full)]
    assert default_selection(GOALS, kept) == [0, 1, 3]


def test_both_best_points_are_named_where_sweeps_are_compared(tmp_path: Path) -> None:
    folders = [
        SyntheticSweep(trials=4, name=name, seed=seed, strengths=(0.5,)).write(tmp_path / name)
        for seed, name in enumerate(("one", "two"))
    ]
    results = Results(open_sweeps(folders))
    best = [results.nearest_to_ideal(results.of(s, results.points)) for s in results.sweeps]
    assert any(record.is_altered for record in best)
    said = best_of_sweeps(results)[0].statement.lower()
    assert all(numbers_text([record]) in said for record in best), said
    [row, *_] = [r for r in paper_table(results).rows if r.trial is not None and r.strength != 1]
    assert summary_texts(row, [])[1] == f"{row.trial} at strength 0.5 (of {row.trials})"


def test_every_point_is_a_row_of_the_table(tmp_path: Path) -> None:
    write_results_csv(tmp_path / "results.csv", [TAME, WILD])
    rows = [*csv.DictReader((tmp_path / "results.csv").open())]
    found = [(row["number"], row["strength"], row[LOSS]) for row in rows]
    assert found == [
        ("0", "0.4", "0.05"),
        ("0", "0.8", "0.3"),
        ("0", "1.0", "0.5"),
        ("1", "0.4", "0.0"),
        ("1", "1.0", "0.1"),
    ]


def test_recipes_are_matched_along_their_curves(tmp_path: Path) -> None:
    folder = SyntheticSweep(trials=8, strengths=(0.5, 0.8)).write(tmp_path / "s")
    ledger = Ledger(folder)
    for record in ledger.trials():
        at = {0.5: (0.4, 0.0), 0.8: (0.9, 0.1)}
        for point in record.points:
            own = dict(zip((IN_DOMAIN_ACC, FORGETTING_MEAN), at[point.strength], strict=True))
            changed = point.model_copy(update={"metrics": point.metrics | own})
            record = record.after(changed)
        ledger.write_trial(with_metrics(record, record.metrics | scores(0.9, 0.3)))
    results = Results(open_sweeps([folder]))
    assert len(results.candidates) == 3 * 8
    rows = matched_rows(results)
    assert [row.label for row in rows] == ["LoRA", "full fine-tuning"]
    assert {row.trial.strength for row in rows} == {0.8}
    assert {row.forgetting for row in rows} == {0.1}
    assert [row.picked_from for row in rows] == [18, 6]
