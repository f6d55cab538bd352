"""What a sweep's end says: Pareto front, recommendation, table of results, summary."""

from __future__ import annotations

import csv
import io
import math
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from builders import GAIN, LOSS, OOD, SWEEP_ID, measurement, running, sweep_config, trial
from rich.console import Console

from analysis.results.formatting import setting, setting_in_full
from analysis.results.pareto import pareto_front
from analysis.results.recommendation import numbers_text, recommend
from analysis.results.trade_off import distance_to_ideal, objective_ranges, standard_error
from analysis.results.trial_columns import SETTINGS
from trainables import metric_keys
from trainables.config import ModelConfig
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.folder.recorder import Recorder
from tune.folder.tables import write_results_csv
from tune.terminal.summary import print_summary

if TYPE_CHECKING:
    from pathlib import Path

    from tune.config.sweep_config import SweepConfig

TWO = [{"metric": GAIN, "mode": "max"}, {"metric": LOSS, "mode": "min"}]
THREE = [*TWO, {"metric": OOD, "mode": "max"}]


def numbers(records: list[TrialRecord]) -> list[int]:
    return [record.number for record in records]


def random_records(seed: int, objectives: list[dict[str, str]]) -> list[TrialRecord]:
    draw = random.Random(seed)
    levels = [round(0.1 * level, 1) for level in range(8)]  # few, so that ties happen
    return [
        trial(
            number,
            {objective["metric"]: draw.choice(levels) for objective in objectives},
            draw.choice([TrialStatus.COMPLETE] * 4 + [TrialStatus.FAILED, TrialStatus.RUNNING]),
        )
        for number in range(draw.randrange(25))
    ]


def brute_force_front(config: SweepConfig, records: list[TrialRecord]) -> list[int]:
    def losses(record: TrialRecord) -> list[float]:
        signs = [1 if objective.mode == "min" else -1 for objective in config.objectives]
        return [
            sign * record.last.metrics[objective.metric]
            for sign, objective in zip(signs, config.objectives, strict=True)
        ]

    candidates = [
        record
        for record in records
        if record.status is TrialStatus.COMPLETE
        and all(c.holds(record.last.metrics[c.metric]) for c in config.constraints)
    ]
    return [
        own.number
        for own in candidates
        if not any(
            losses(other) != losses(own)
            and all(a <= b for a, b in zip(losses(other), losses(own), strict=True))
            for other in candidates
        )
    ]


def test_a_bound_that_is_met_exactly_is_kept() -> None:
    """0.90 - 0.85 is 0.050000000000000044, and 0.95 - 0.90 is 0.04999999999999993."""
    differences = [0.90 - 0.85, 0.95 - 0.90, 0.05]
    assert differences[0] > 0.05 > differences[1]
    records = [trial(n, {GAIN: 0.8, LOSS: loss}) for n, loss in enumerate(differences)]
    for bound, kept in (("<= 0.05", [0, 1, 2]), ("<= 5e-2", [0, 1, 2]), ("< 0.05", [])):
        assert numbers(pareto_front(sweep_config(constraints=[f"{LOSS} {bound}"]), records)) == kept


@pytest.mark.parametrize("objectives", [TWO[:1], TWO[1:], TWO, THREE], ids=str)
@pytest.mark.parametrize("constraints", [(), (f"{LOSS} <= 0.3",), (f"{LOSS} < 0.3", f"{GAIN} > 0")])
def test_the_front_is_what_brute_force_finds(objectives, constraints):
    sizes = set()
    for seed in range(25):
        named = [*objectives, *({"metric": m} for m in (GAIN, LOSS))]
        records = random_records(seed, named)
        config = sweep_config(objectives=objectives, constraints=constraints)
        expected = brute_force_front(config, records)
        assert numbers(pareto_front(config, records)) == expected
        sizes.add(len(expected))
    assert len(sizes) > 1


@pytest.mark.parametrize("objectives", [TWO, THREE], ids=str)
def test_the_front_is_optunas(objectives):
    import optuna

    config = sweep_config(objectives=objectives)
    for seed in range(10):
        records = [r for r in random_records(seed, objectives) if r.status is TrialStatus.COMPLETE]
        study = optuna.create_study(
            directions=["minimize" if o["mode"] == "min" else "maximize" for o in objectives]
        )
        for record in records:
            values = [record.metric(o["metric"]) for o in objectives]
            study.add_trial(optuna.trial.create_trial(values=values))
        expected = sorted(records[trial.number].number for trial in study.best_trials)
        assert numbers(pareto_front(config, records)) == expected


def test_a_trial_without_an_objective_or_a_constrained_metric_is_not_on_the_front():
    records = [trial(0, {GAIN: 0.9}), trial(1, {GAIN: 0.5, LOSS: 0.1}), trial(2, None)]
    assert numbers(pareto_front(sweep_config(), records)) == [1]
    bounded = sweep_config(objectives=TWO[:1], constraints=[f"{LOSS} <= 1"])
    assert numbers(pareto_front(bounded, records)) == [1]


def test_one_objective_recommends_the_best_and_the_lower_number_on_a_tie():
    records = [trial(n, {GAIN: gain}) for n, gain in [(0, 0.5), (1, 0.75), (2, 0.75), (3, 0.7)]]
    found = recommend(sweep_config(objectives=TWO[:1]), records)
    assert found.trial.number == 1
    assert found.reason == (f"highest {GAIN} (0.750) of 4 complete trials (as good: trial 2).")
    records = [trial(n, {LOSS: loss}) for n, loss in [(0, 0.5), (1, 0.25), (2, 0.75)]]
    found = recommend(sweep_config(objectives=TWO[1:]), records)
    assert found.trial.number == 1
    assert found.reason == f"lowest {LOSS} (+0.250) of 3 complete trials."


@pytest.mark.parametrize(("trials", "more"), [(10, ""), (11, " and 1 more"), (12, " and 2 more")])
def test_numbers_that_are_not_told_are_counted(trials, more):
    told = numbers_text([trial(number) for number in range(trials)])
    assert told == f"trials 0, 1, 2, 3, 4, 5, 6, 7, 8, 9{more}"


def test_several_objectives_recommend_the_knee():
    # Scaled losses: (1, 0), (0.4, 0.2), (0, 1); 0.45 from the ideal is the least.
    records = [
        trial(0, {GAIN: 0.5, LOSS: 0.0}),
        trial(1, {GAIN: 0.8, LOSS: 0.02}),
        trial(2, {GAIN: 1.0, LOSS: 0.1}),
        trial(3, {GAIN: 0.79, LOSS: 0.03}),
    ]
    found = recommend(sweep_config(), records)
    assert found.trial.number == 1
    assert found.feasible
    assert "the knee of the front's 3 trials" in found.reason
    assert f"{GAIN} 0.800, {LOSS} +0.020" in found.reason


def test_the_knee_scales_over_the_front_and_not_over_all_trials():
    front = [{GAIN: 0.0, LOSS: 0.0}, {GAIN: 0.45, LOSS: 0.4}, {GAIN: 1.0, LOSS: 1.0}]
    records = [trial(n, metrics) for n, metrics in enumerate(front)]
    # Scaled over the front all are sqrt(0.55² + 0.4²) = 0.68 or 1 away. Over all trials, of which
    # trial 3 forgets 100 times as much, forgetting would not count and trial 2 would win.
    dominated = trial(3, {GAIN: 0.0, LOSS: 100.0})
    assert recommend(sweep_config(), [*records, dominated]).trial.number == 1


@pytest.mark.parametrize(
    ("status", "constraints", "taken"),
    [
        (TrialStatus.COMPLETE, [], 0),
        (TrialStatus.STOPPED_EARLY, [], 1),
        (TrialStatus.COMPLETE, [f"{GAIN} >= 0.1"], 1),
    ],
)
def test_a_front_of_two_is_scaled_over_all_trials_that_may_be_taken(status, constraints, taken):
    # By trials 0 to 2 the front is 0.83 and 0.80 away; a gain of 0 makes that 0.5 and 0.8.
    values = [{GAIN: 0.5, LOSS: 0.0}, {GAIN: 1.0, LOSS: 0.4}, {GAIN: 0.4, LOSS: 0.5}]
    records = [trial(n, metrics) for n, metrics in enumerate(values)]
    worst = trial(3, {GAIN: 0.0, LOSS: 0.1}, status)
    goals = sweep_config(constraints=constraints)
    assert recommend(goals, [*records, worst]).trial.number == taken


def test_a_front_of_two_stays_one_if_another_trial_is_as_good_as_one_of_them():
    # Of a few items two trials often get as many right. Over the front alone trials 0 and 1 would
    # be as far away, and 0 be taken; over all trials 1 is 0.2 away and 0 is 0.6.
    values = [{GAIN: 0.4, LOSS: 0.0}, {GAIN: 1.0, LOSS: 0.1}, {GAIN: 0.4, LOSS: 0.0}]
    records = [trial(n, metrics) for n, metrics in enumerate(values)]
    worst = trial(3, {GAIN: 0.0, LOSS: 0.5})
    assert recommend(sweep_config(), [*records, worst]).trial.number == 1


@pytest.mark.parametrize(("items", "taken"), [(60, 1), (None, 0)])
def test_one_item_forgotten_does_not_outweigh_all_that_is_gained(items, taken):
    # Trial 1 gets one more of two tasks' items wrong. Where errors are not known, each trial is
    # best in one objective and worst in the other, and the first is taken.
    errors = {"retention/a/acc_stderr": 1 / items, "retention/b/acc_stderr": 0.0} if items else {}
    gained = [{GAIN: 0.55, FORGETTING_MEAN: 0.0}, {GAIN: 0.73, FORGETTING_MEAN: 1 / 120}]
    goals = [TWO[0], {"metric": FORGETTING_MEAN, "mode": "min"}]
    records = [trial(number, metrics | errors) for number, metrics in enumerate(gained)]
    found = recommend(sweep_config(objectives=goals), records)
    assert found.trial.number == taken
    assert found.reason.startswith("the knee of the front's 2 trials")


@pytest.mark.parametrize(("flipped", "taken"), [(1.0, 1), (None, 2), (0.0, 2)])
def test_errors_of_forgetting_are_those_of_items_that_flipped(flipped, taken):
    # Of 500 items at an accuracy of 0.6 the error of 1 % forgotten is a fifth of the accuracy's.
    # Graded items may all be worse without one that flips.
    records = []
    for number, (gain, lost) in enumerate([(0.70, 0.0), (0.715, 0.005), (0.74, 0.015)]):
        metrics = {GAIN: gain, FORGETTING_MEAN: lost, "retention/a/acc": 0.6 - lost}
        metrics["retention/a/acc_stderr"] = math.sqrt(0.6 * 0.4 / 1500)
        metrics["forgetting/a"] = lost
        if flipped is not None:
            metrics |= {"flips/a/forgotten": lost * flipped, "flips/a/gained": 0.0}
        records.append(trial(number, metrics))
    goals = [TWO[0], {"metric": FORGETTING_MEAN, "mode": "min"}]
    assert recommend(sweep_config(objectives=goals), records).trial.number == taken


# Of few items that flipped, so less than the accuracy's, which is 0.02.
OF_A = 0.02 * math.sqrt((0.03 - 0.01**2) / 0.25)


@pytest.mark.parametrize(
    ("metric", "error"),
    [
        ("in_domain/sums/acc", 0.03),
        ("in_domain/acc_mean", 0.015),
        ("ood/gap", math.hypot(0.015, 0.04)),
        ("forgetting/a", OF_A),
        ("forgetting/b", 0.01),
        ("forgetting/lost", 0.0),
        ("forgetting/max", 0.01),
        ("forgetting/mean", math.hypot(OF_A, 0.01) / 3),
        ("forgetting/positive_mean", math.hypot(OF_A, 0.01) / 3),
        ("train/loss", 0.0),
    ],
)
def test_an_objective_is_scaled_over_no_less_than_two_of_its_standard_errors(metric, error):
    metrics = {"in_domain/sums/acc_stderr": 0.03, "in_domain/more/f1_stderr": 0.0}
    metrics |= {"retention/a/acc": 0.5, "retention/a/acc_stderr": 0.02}
    metrics |= {"flips/a/forgotten": 0.02, "flips/a/gained": 0.01}
    metrics |= {"retention/b/acc_stderr": 0.01, "ood/harder/acc_stderr": 0.04}
    metrics |= {"retention/lost/acc": 0.0, "retention/lost/acc_stderr": 0.0}
    metrics |= {"flips/lost/forgotten": 0.4, "flips/lost/gained": 0.0}
    suite = {"in_domain": ["sums", "more"], "retention": ["a", "b", "lost"], "ood": ["harder"]}
    mode = "max" if metric.startswith("in_domain") else "min"
    goals = sweep_config(eval=suite, objectives=[{"metric": metric, "mode": mode}])
    records = [trial(0, metrics | {metric: 0.01}), trial(1, {metric: 0.01 + error})]
    [(best, worst)] = objective_ranges(goals, records)
    assert worst - best == pytest.approx(2 * error)


def test_a_standard_error_that_is_not_known_is_0():
    of_task = ["in_domain/sums/acc", "forgetting/a", "train/loss"]
    over_tasks = ["in_domain/acc_mean", "ood/gap", "forgetting/mean", "forgetting/max"]
    for metric in (*of_task, *over_tasks):
        assert standard_error(metric, {metric: 0.5}) == 0.0


@pytest.mark.parametrize(
    ("lost", "share"),
    [(1e-17, math.sqrt(0.04 / 0.25)), (0.01, 1.0)],  # by rounding, and of graded items
)
def test_an_error_is_that_of_flips_where_these_are_what_was_lost(lost, share):
    metrics = {"retention/a/acc": 0.5, "retention/a/acc_stderr": 0.02, "forgetting/a": lost}
    metrics |= {"flips/a/forgotten": 0.02, "flips/a/gained": 0.02}
    assert standard_error("forgetting/a", metrics) == pytest.approx(0.02 * share)


def test_an_objective_in_which_all_are_alike_is_not_scaled():
    ranges = [(-0.5, -0.5), (0.1, 0.9)]
    far = trial(0, {GAIN: 0.2, LOSS: 0.5})
    assert distance_to_ideal(sweep_config(), far, ranges) == pytest.approx(math.hypot(0.3, 0.5))


@pytest.mark.parametrize("metric", ["forgetting/max", "forgetting/positive_mean", "forgetting/b"])
def test_one_item_of_any_forgetting_does_not_outweigh_all_that_is_gained(metric):
    errors = {"retention/b/acc_stderr": 1 / 60}
    goals = [TWO[0], {"metric": metric, "mode": "min"}]
    gained = [{GAIN: 0.55, metric: 0.0}, {GAIN: 0.73, metric: 1 / 60}]
    records = [trial(number, metrics | errors) for number, metrics in enumerate(gained)]
    assert recommend(sweep_config(objectives=goals), records).trial.number == 1


def test_the_lower_number_wins_where_two_are_as_near_but_for_rounding():
    # 0.4 and 0.2 from the ideal, 0.2 and 0.4: floats make trial 2 nearer by 6e-17.
    front = [{GAIN: 0.0, LOSS: 0.0}, {GAIN: 0.6, LOSS: 0.2}, {GAIN: 0.8, LOSS: 0.4}]
    front.append({GAIN: 1.0, LOSS: 1.0})
    found = recommend(sweep_config(), [trial(n, metrics) for n, metrics in enumerate(front)])
    assert found.trial.number == 1
    assert "as good: trial 2" in found.reason


def test_one_trial_on_the_front_is_said_to_be_best_in_all():
    records = [trial(0, {GAIN: 0.9, LOSS: 0.0}), trial(1, {GAIN: 0.5, LOSS: 0.1})]
    found = recommend(sweep_config(), records)
    assert found.trial.number == 0
    assert found.reason.startswith("best in every objective of 2 complete trials")


@pytest.mark.parametrize(
    ("objectives", "bound", "reason"),
    [
        (2, None, f"the only complete trial to choose from: {GAIN} 0.900, {LOSS} +0.100."),
        (1, None, f"the only complete trial to choose from: {GAIN} 0.900."),
        (1, 0.2, f"the only complete trial that keeps every constraint: {GAIN} 0.900."),
        (
            2,
            0.05,
            f"no trial keeps every constraint: of the only complete one {LOSS} is 0.1, not <= "
            "0.05.",
        ),
    ],
)
def test_one_complete_trial_is_said_to_be_the_only_one(
    objectives: int, bound: float | None, reason: str
):
    goals = sweep_config(
        objectives=[{"metric": GAIN, "mode": "max"}, {"metric": LOSS, "mode": "min"}][:objectives],
        constraints=[f"{LOSS} <= {bound}"] if bound else [],
    )
    failed = trial(1, {GAIN: 0.9, LOSS: 0.0}, TrialStatus.FAILED)
    records = [trial(0, {GAIN: 0.9, LOSS: 0.1}), failed]
    assert recommend(goals, records).reason == reason


def test_where_none_is_feasible_the_least_violation_in_total_is_recommended_and_said():
    records = [
        trial(0, {GAIN: 0.9, LOSS: 0.3}),
        trial(1, {GAIN: 0.65, LOSS: 0.0502}),  # misses by 0.05 and 0.0002
        trial(2, {GAIN: 0.5, LOSS: 0.0}),
        trial(3, {GAIN: 0.7}),
    ]
    bounds = [f"{LOSS} <= 0.05", f"{GAIN} >= 0.7", f"{GAIN} <= 0.65"]  # the last is just kept
    found = recommend(sweep_config(constraints=bounds), records)
    assert (found.trial.number, found.feasible) == (1, False)
    assert found.reason == (
        "no trial keeps every constraint, and of 3 complete trials this one misses them by the "
        f"least: {LOSS} is 0.0502, not <= 0.05 and {GAIN} is 0.65, not >= 0.7."
    )


def test_a_value_that_just_misses_a_bound_is_told_from_it():
    seconds = metric_keys.TRAIN_SECONDS
    found = recommend(
        sweep_config(constraints=[f"{seconds} <= 600"]),
        [trial(0, {GAIN: 0.5, LOSS: 0, seconds: 600.04})],
    )
    assert f"{seconds} is 600.04, not <= 600." in found.reason


def test_misses_of_constraints_in_different_units_count_alike():
    """A second is no more than an accuracy of 1: each counts as a share of its bound."""
    seconds = metric_keys.TRAIN_SECONDS
    records = [
        trial(0, {GAIN: 0.9, LOSS: 0.70, seconds: 3605.0}),
        trial(1, {GAIN: 0.9, LOSS: 0.06, seconds: 3700.0}),
        trial(2, {GAIN: 0.9, LOSS: 0.06, seconds: 4600.0}),
        trial(3, {GAIN: 0.9, LOSS: 0.0}),  # misses by infinitely much
        trial(4, {GAIN: 0.9, LOSS: 0.055, seconds: 4140.0}),  # 0.1 + 0.15; trial 1: 0.2 + 0.03
    ]
    config = sweep_config(constraints=[f"{LOSS} <= 0.05", f"{seconds} <= 3600"])
    assert recommend(config, records).trial.number == 1
    found = recommend(config, [records[0], records[3]])
    assert found.trial.number == 0
    assert "of 2 complete trials this one misses them by the least" in found.reason
    assert recommend(config, [records[3]]).trial.number == 3


def test_misses_of_a_bound_of_0_count_as_shares_of_their_median():
    """Here 200 of 100 to 300: 0.2 + 1.5, 2 + 0.5 and 3 + 1. What just keeps it is no miss."""
    drift = metric_keys.KL_BASE_TO_TUNED
    values = [(0.06, 300.0), (0.15, 100.0), (0.2, 200.0), (0.4, 0.0), (0.4, 0.0)]
    records = [trial(n, {GAIN: 0.9, LOSS: a, drift: b}) for n, (a, b) in enumerate(values)]
    kept_by_all = f"{GAIN} >= 0"
    config = sweep_config(constraints=[f"{LOSS} <= 0.05", f"{drift} <= 0", kept_by_all])
    assert recommend(config, records).trial.number == 0


def test_misses_of_a_bound_below_0_count_by_its_size():
    records = [trial(n, {GAIN: 0.9, LOSS: loss}) for n, loss in enumerate((0.1, 0.0))]
    assert recommend(sweep_config(constraints=[f"{LOSS} <= -0.05"]), records).trial.number == 1


@pytest.mark.parametrize("most", [0.1, 0])
def test_a_trial_that_misses_a_constraint_by_far_changes_nothing_between_others(most):
    drift = metric_keys.KL_BASE_TO_TUNED
    records = [
        trial(0, {GAIN: 0.9, LOSS: 0.06, drift: most + 4.9}),
        trial(1, {GAIN: 0.9, LOSS: 0.08, drift: most + 0.01}),
        trial(2, {GAIN: 0.9, LOSS: 0.09, drift: most + 1000}),
    ]
    config = sweep_config(constraints=[f"{LOSS} <= 0.05", f"{drift} <= {most}"])
    kept = [trial(n, {GAIN: 0.9, LOSS: 0.4, drift: most - 1}) for n in (3, 4, 5)]
    unknown = [trial(n, {GAIN: 0.9, LOSS: 0.05}) for n in range(6, 10)]
    for ended in (records[:2], records, [*records, *kept], [*records, *unknown]):
        assert recommend(config, ended).trial.number == 1


def test_a_feasible_trial_comes_before_a_better_one_that_breaks_a_constraint():
    records = [trial(0, {GAIN: 0.9, LOSS: 0.3}), trial(1, {GAIN: 0.4, LOSS: 0.01})]
    config = sweep_config(objectives=TWO[:1], constraints=[f"{LOSS} <= 0.05"])
    assert recommend(config, records).trial.number == 1


def test_nothing_is_recommended_where_nothing_is_complete():
    assert recommend(sweep_config(), []) is None
    stopped = trial(0, {GAIN: 1.0, LOSS: 0.0}, TrialStatus.STOPPED_EARLY)
    assert recommend(sweep_config(), [stopped]) is None


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_csv_holds_every_trial_and_reads_back_equal(tmp_path):
    metrics = {"zebra": 1.0, "forgetting/b": 0.1 + 0.2, OOD: 1 / 3, metric_keys.TRAIN_LOSS: 1e-17}
    lora = {"rank": 8, "alpha": 4.0, "target_modules": ("q", "v"), "dropout": 0.1, "rslora": True}
    records = [
        trial(1, None, TrialStatus.FAILED, reason='ValueError: "a", b\nand more', ended=None),
        trial(
            0,
            metrics,
            best={OOD: 0.5, metric_keys.TRAIN_LOSS: 0.25},
            lora=lora,
            weights_dir="w/é",
            seconds=60.5,
        ),
        trial(2, {OOD: 0.25}, method="full"),
    ]
    file = tmp_path / "new" / "results.csv"
    write_results_csv(file, records)
    first, second, third = read(file)
    assert list(first)[len(SETTINGS) :] == [
        metric_keys.TRAIN_LOSS,
        OOD,
        "forgetting/b",
        "zebra",
        f"best/{metric_keys.TRAIN_LOSS}",
        f"best/{OOD}",
    ]
    assert {key: float(first[key]) for key in metrics} == metrics
    assert float(first[f"best/{OOD}"]) == 0.5
    assert first["trial_id"] == f"{SWEEP_ID}-0000"
    assert (first["lora/rank"], float(first["lora/alpha"])) == ("8", 4.0)
    assert float(first["lora/scaling"]) == 4.0 / 8**0.5
    assert (first["lora/target_modules"], first["lora/dropout"]) == ("q v", "0.1")
    assert first["lora/rslora"] == "True"
    assert (first["batch_size"], first["learning_rate"]) == ("16", "0.00032")
    assert (first["status"], first["seconds"], first["weights_dir"]) == ("COMPLETE", "60.5", "w/é")
    assert (second["status"], second["seconds"], second[OOD]) == ("FAILED", "", "")
    assert second["reason"] == 'ValueError: "a", b\nand more'
    assert (third["method"], third["lora/rank"], third["lora/target_modules"]) == ("full", "", "")


def test_a_sweep_without_a_trial_has_a_table_too(tmp_path):
    write_results_csv(tmp_path / "results.csv", [])
    assert (tmp_path / "results.csv").read_text().startswith("number,trial_id,confirms,seed,method")


def test_the_csv_is_replaced_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "results.csv"
    write_results_csv(file, [trial(0)])
    before = file.read_text()

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_results_csv(file, [trial(0), trial(1)])
    assert file.read_text() == before
    monkeypatch.undo()
    write_results_csv(file, [trial(0), trial(1)])
    assert len(read(file)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def summary(
    config: SweepConfig,
    records: list[TrialRecord],
    folder: Path,
    *hints: str,
    width: int = 100,
    base: dict[str, float] | None = None,
) -> str:
    console = Console(file=io.StringIO(), width=width, _environ={})
    print_summary(console, config, base or {}, records, folder, list(hints))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def kept(folder: Path, number: int, name: str = "weights") -> str:
    """The place of a trial's weights in a sweep's folder, made."""
    place = Ledger(folder).folder.attempt(number, 1) / name
    place.mkdir(parents=True)
    return str(place)


def test_a_task_is_told_of_by_its_name_though_it_looks_like_markup(tmp_path):
    odd = "forgetting/hard [/b]"
    named = {"in_domain": ["a"], "retention": ["hard [/b]"]}
    config = sweep_config(eval=named, objectives=[{"metric": odd, "mode": "min"}])
    assert odd in summary(config, [trial(0, {odd: 0.25})], tmp_path, "").splitlines()[4]


def test_the_summary_tells_front_recommendation_failures_places_and_next_steps(tmp_path):
    weights = kept(tmp_path / "x", 1, "it's")
    records = [
        trial(0, {GAIN: 0.5, LOSS: -0.00004, OOD: 0.4}),
        trial(1, {GAIN: 0.8, LOSS: 0.02, OOD: 0.5}, weights_dir=weights),
        trial(2, {GAIN: 1.0, LOSS: 0.1, OOD: 0.3}, method="full"),
        trial(3, {GAIN: 0.1, LOSS: 0.9, OOD: 0.3}),
        trial(4, status=TrialStatus.OUT_OF_MEMORY, reason="no memory"),
        trial(5, status=TrialStatus.FAILED, reason="KeyError: [/bold] \x1b[31mx\n  y"),
        trial(6, status=TrialStatus.FAILED, reason="KeyError: [/bold] \x1b[31mx\n  y"),
        running(7),
        trial(8, {GAIN: 0.1}, status=TrialStatus.STOPPED_EARLY, reason="too bad"),
    ]
    hint = "python tune/run.py tiny --num-trials 40"
    text = summary(sweep_config(), records, tmp_path / "x", hint)
    lines = text.splitlines()
    assert lines[1] == (
        "tiny: 9 trials: 1 interrupted, 4 complete, 1 stopped early, 1 out of memory, 2 failed"
    )
    table = [line.split() for line in lines[4:8]]
    assert table == [
        ["trial", "rank", "alpha", "lr", "in-domain", "forgetting", "OOD"],
        ["2", "full", "-", "3.2e-04", "1.000", "+0.100", "0.300"],
        ["1", "8", "16", "3.2e-04", "0.800", "+0.020", "0.500"],
        ["0", "8", "16", "3.2e-04", "0.500", "+0.000", "0.400"],
    ]
    assert "Recommended: trial 1 (lora, rank 8, alpha 16, lr 3.2e-04)" in lines
    failures = lines.index("Not trained to the end:")
    assert lines[failures + 1 : failures + 3] == [
        "  2 x failed: KeyError: [/bold] x y (trials 5, 6)",
        "  1 x out of memory: no memory (trial 4)",
    ]
    assert "too bad" not in text
    assert f"  everything   {tmp_path}/x" in lines
    assert f"  all trials   {tmp_path}/x/results.csv" in lines
    assert f"  weights      {weights}" in lines
    assert f"  {hint}" in lines
    report = f"  python -m analysis report {tmp_path}/x   # all of it on one page"
    export = f"  python -m analysis export {tmp_path}/x --to winner   # the recommended trial"
    assert lines[lines.index("Next:") + 1 :][:2] == [report, export]


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ({GAIN: 0.4, LOSS: 0.0}, "in_domain/acc_mean 0.400, forgetting/mean +0.000."),
        ({GAIN: 0.4, LOSS: -0.1}, "in_domain/acc_mean 0.400, forgetting/mean -0.100."),
        ({GAIN: 0.4}, "in_domain/acc_mean 0.400."),
        (
            {GAIN: 0.6, LOSS: 0.0},
            "in_domain/acc_mean 0.600, forgetting/mean +0.000: no worse in any objective, so this "
            "trial gains nothing.",
        ),
    ],
)
def test_the_recommended_trial_is_told_beside_the_base(tmp_path, base, told):
    records = [trial(0, {GAIN: 0.5, LOSS: 0.0, OOD: 0.4})]
    lines = summary(sweep_config(), records, tmp_path, base=base).splitlines()
    assert f"  The base itself has {told}" in lines


def test_a_base_that_breaks_a_constraint_more_makes_no_trial_worthless(tmp_path):
    records = [trial(0, {GAIN: 0.5, LOSS: 0.0, OOD: 0.4})]
    config = sweep_config(constraints=[f"{OOD} >= 0.3"])
    for of_base, is_told in ({OOD: 0.2}, False), ({}, False), ({OOD: 0.3}, True):
        text = summary(config, records, tmp_path, base={GAIN: 0.6, LOSS: 0.0, **of_base})
        assert "The base itself has in_domain/acc_mean 0.600" in text
        assert ("gains nothing" in text) == is_told


def test_without_objectives_of_the_base_or_a_repeat_that_ended_well_nothing_is_compared(tmp_path):
    records = [
        trial(0, {GAIN: 0.5, LOSS: 0.0}),
        trial(1, confirms=0, status=TrialStatus.DIVERGED, reason="loss is nan"),
    ]
    config = sweep_config(confirm={"top_k": 1, "seeds": 2})
    assert "The base" not in summary(config, records, tmp_path)
    text = summary(config, records, tmp_path, base={GAIN: 0.6, LOSS: 0.0})
    assert "  The base itself has in_domain/acc_mean 0.600, forgetting/mean +0.000.\n" in text


@pytest.mark.parametrize(
    ("status", "is_written"),
    [
        (TrialStatus.COMPLETE, True),
        (TrialStatus.DIVERGED, True),
        (TrialStatus.FAILED, False),
        (TrialStatus.RUNNING, False),
    ],
)
def test_the_table_of_repeats_is_named_where_it_is_written(tmp_path, status, is_written):
    records = [
        trial(0, {GAIN: 0.5, LOSS: 0.0}),
        trial(1, {GAIN: 0.4, LOSS: 0.1}, status, confirms=0, seed=1),
    ]
    ledger = Ledger(tmp_path)
    for record in records:
        ledger.write_trial(record)
    Recorder(ledger).sweep_ended(records)
    file = tmp_path / "confirmed.csv"
    assert file.exists() is is_written
    named = f"  over seeds   {file}" in summary(sweep_config(), records, tmp_path).splitlines()
    assert named is is_written


def test_what_inspections_found_is_among_the_results(tmp_path):
    records = [trial(0, {GAIN: 0.5, LOSS: 0.0})]
    assert "  inspection " not in summary(sweep_config(), records, tmp_path)
    (tmp_path / "inspection").mkdir()
    assert f"\n  inspection   {tmp_path}/inspection\n" in summary(sweep_config(), records, tmp_path)


def test_a_model_of_own_code_is_to_be_exported_with_it(tmp_path):
    model = ModelConfig(name="some/model", trust_remote_code=True)
    record = trial(0, {GAIN: 0.5, LOSS: 0.0}, weights_dir=kept(tmp_path, 0), model=model)
    text = summary(sweep_config(), [record], tmp_path)
    assert " --to winner --trust-remote-code   # the recommended trial" in text


def test_weights_of_a_sweep_that_was_moved_are_where_it_is_now(tmp_path):
    # Another sweep may be where this one was.
    folder, recorded = tmp_path / "now", kept(tmp_path / "earlier", 0)
    records = [trial(0, {GAIN: 0.5, LOSS: 0.0}, weights_dir=recorded)]
    text = summary(sweep_config(), records, folder, width=400)
    assert f"  weights      gone, written to {recorded}\n" in text
    assert "--to winner" not in text
    now = kept(folder, 0)
    text = summary(sweep_config(), records, folder, width=400)
    assert f"  weights      {now}\n" in text
    assert "--to winner" in text
    assert recorded not in text


def test_weights_in_an_object_store_are_named_and_not_to_be_exported_from_there(tmp_path):
    records = [trial(0, {GAIN: 0.5, LOSS: 0.0}, weights_dir="s3://bucket/x/trials/0000/weights")]
    text = summary(sweep_config(), records, tmp_path)
    assert "  weights      s3://bucket/x/trials/0000/weights\n" in text
    assert "--to winner" not in text


def test_weights_that_were_not_kept_are_not_to_be_exported(tmp_path):
    text = summary(sweep_config(), [trial(0, {GAIN: 0.5, LOSS: 0.0})], tmp_path)
    assert "weights      not kept" in text
    assert "--to winner" not in text


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], "tiny: no trials\n"),
        ([trial(0, status=TrialStatus.FAILED, reason="x")], "tiny: 1 trial: 1 failed\n"),
    ],
    ids=["no trial", "none complete"],
)
def test_without_a_complete_trial_it_says_so(records, told, tmp_path):
    text = summary(sweep_config(), records, tmp_path)
    assert told in text
    assert "No trial to recommend" in text
    assert "front" not in text
    assert "weights" not in text


def test_a_front_whose_trial_repeats_speak_against_says_so(tmp_path):
    config = sweep_config(constraints=[f"{LOSS} <= 0.1"], confirm={"top_k": 1, "seeds": 1})
    records = [trial(0, {GAIN: 0.5, LOSS: 0.05}), trial(1, {GAIN: 0.4, LOSS: 0.3})]
    said = "each by its own run; in the mean over other seeds trial 0 broke a constraint\n"
    assert said not in summary(config, records, tmp_path)
    text = summary(config, [*records, trial(2, {GAIN: 0.5, LOSS: 0.2}, confirms=0)], tmp_path)
    assert said in text
    assert "\ntiny: 2 trials and 1 repeat: 3 complete\n" in text
    assert "Nearest: trial 0" in text


def test_the_answer_says_how_many_repeats_it_lacks(tmp_path):
    config = sweep_config(confirm={"top_k": 1, "seeds": 3})
    records = [trial(0, {GAIN: 0.5, LOSS: 0.05}), trial(1, {GAIN: 0.4, LOSS: 0.1})]
    one = trial(2, {GAIN: 0.5, LOSS: 0.05}, confirms=0, seed=1)
    lost = trial(3, status=TrialStatus.FAILED, reason="x", confirms=0, seed=2)
    for repeats, missing in [([], 3), ([one], 2), ([one, lost], 2)]:
        text = summary(config, [*records, *repeats], tmp_path)
        told = f" Missing: {missing} of 3 repeats with other seeds, not run to their end.\n"
        assert text.count(told) == text.count("Missing") == 1
    more = [trial(n, {GAIN: 0.5, LOSS: 0.05}, confirms=0, seed=n) for n in (4, 5)]
    assert "Missing" not in summary(config, [*records, one, *more], tmp_path)
    assert "1 of 4 repeats" in summary(config, [*records, one, lost, *more], tmp_path)


def test_a_search_whose_trials_all_break_a_constraint_says_why_it_has_no_repeats(tmp_path):
    records = [trial(0, {GAIN: 0.5, LOSS: 0.05})]
    for bound, confirm, told in [(0.01, 1, True), (0.01, None, False), (0.1, 1, False)]:
        repeats = {"confirm": {"top_k": 1, "seeds": confirm}} if confirm else {}
        config = sweep_config(constraints=[f"{LOSS} <= {bound}"], **repeats)
        text = summary(config, records, tmp_path)
        assert ("not <= 0.01. So none was repeated.\n" in text) is told
        assert ("none was repeated" in text) is told


def test_infeasible_trials_alone_give_a_recommendation_and_no_front(tmp_path):
    config = sweep_config(constraints=[f"{LOSS} < 0"])
    record = trial(0, {GAIN: 0.5, LOSS: 0.0}, weights_dir=kept(tmp_path, 0))
    text = summary(config, [record], tmp_path)
    assert "Pareto front" not in text
    assert "\nNearest: trial 0 (" in text
    assert "Recommended" not in text
    assert "--to winner   # the nearest trial" in text
    assert "no trial keeps every constraint" in text


@pytest.mark.parametrize(("objectives", "title"), [(TWO[:1], "Best (max"), (THREE, "Pareto front")])
def test_every_objective_and_constraint_has_one_column(objectives, title, tmp_path):
    metrics = {GAIN: 0.5, LOSS: 0.01, OOD: 0.25, metric_keys.GPU_HOURS: 0.123456}
    config = sweep_config(objectives=objectives, constraints=[f"{metric_keys.GPU_HOURS} <= 1"])
    text = summary(config, [trial(0, metrics)], tmp_path, width=140)
    assert title in text
    header, row = text.splitlines()[4:6]
    for column in ("in-domain", "forgetting", "OOD", metric_keys.GPU_HOURS):
        assert header.split().count(column) == 1
    assert {"0.500", "+0.010", "0.250", "0.1235"} <= set(row.split())


def test_in_a_narrow_terminal_constraints_lose_their_columns_and_no_title_is_broken(tmp_path):
    bounded = [metric_keys.task_forgetting(task) for task in ("hellaswag", "arc_challenge")]
    config = sweep_config(
        eval={"in_domain": ["a"], "retention": ["hellaswag", "arc_challenge"], "ood": ["d"]},
        constraints=[f"{metric} <= 0.1" for metric in bounded],
    )
    metrics = {GAIN: 0.5, LOSS: 0.01, OOD: 0.25, bounded[0]: 0.015, bounded[1]: 0.016}
    scores = ["trial", "rank", "alpha", "lr", "in-domain", "forgetting"]
    for width, shown in ((79, bounded[:1]), (78, []), (120, bounded)):
        lines = summary(config, [trial(0, metrics)], tmp_path, width=width).splitlines()
        assert lines[4].split() == [*scores, *shown, "OOD"]
        assert lines[5].split()[6:] == [*[f"{metrics[key]:+.3f}" for key in shown], "0.250"]
        told = [line for line in lines if line.startswith("too wide to show")]
        absent = ", ".join(bounded[len(shown) :])
        assert told == ([f"too wide to show: {absent}, see results.csv"] if absent else [])


def test_without_in_domain_tasks_the_loss_has_a_column_and_no_accuracy_has(tmp_path):
    metrics = {metric_keys.VALIDATION_LOSS: 1.25, LOSS: 0.01}
    config = sweep_config(eval={"retention": ["b"]}, objectives=TWO[1:])
    header, row = summary(config, [trial(0, metrics)], tmp_path, width=140).splitlines()[4:6]
    assert header.split()[4:] == ["forgetting", "validation/loss"]
    assert row.split()[-2:] == ["+0.010", "1.250"]


def test_of_two_objectives_there_is_a_front_without_columns_of_what_was_not_measured(tmp_path):
    text = summary(sweep_config(objectives=TWO), [trial(0, {GAIN: 0.5, LOSS: 0.01})], tmp_path)
    assert "\nPareto front (max" in text
    assert "OOD" not in text


def test_reasons_that_differ_in_numbers_alone_are_one_with_the_first_as_an_example(tmp_path):
    asked, lost = "tried to allocate {} GiB on GPU {}", "NCCL error at 10.0.{}.{}, loss 1e+0{}"
    records = [
        *(trial(n, status=TrialStatus.FAILED, reason=lost.format(n, 9 - n, n)) for n in range(3)),
        *(
            trial(n, status=TrialStatus.OUT_OF_MEMORY, reason=asked.format(left, n))
            for n, left in enumerate(("1.25", "3", "20.0", "7"), start=3)
        ),
        trial(7, status=TrialStatus.FAILED, reason="tried to allocate 1.25 GiB on GPU 3"),
    ]
    lines = summary(sweep_config(), records, tmp_path).splitlines()
    failures = lines.index("Not trained to the end:")
    assert lines[failures + 1 : failures + 4] == [
        "  4 x out of memory: for example tried to allocate 1.25 GiB on GPU 3 (trials 3, 4, 5, 6)",
        "  3 x failed: for example NCCL error at 10.0.0.9, loss 1e+00 (trials 0, 1, 2)",
        "  1 x failed: tried to allocate 1.25 GiB on GPU 3 (trial 7)",
    ]


def test_reasons_of_other_tasks_and_layers_are_others(tmp_path):
    reasons = ["gsm8k has no rows", "math500 has no rows", "layers.0.bias is NaN", "layers.0.norm"]
    records = [trial(n, status=TrialStatus.FAILED, reason=why) for n, why in enumerate(reasons)]
    text = summary(sweep_config(), records, tmp_path)
    assert [f"1 x failed: {why} (trial {n})" in text for n, why in enumerate(reasons)] == [True] * 4


def test_hundreds_of_trials_give_a_short_summary(tmp_path):
    records = [trial(n, {GAIN: n / 500, LOSS: n / 500, OOD: 0.0}) for n in range(300)]
    records += [
        trial(n, status=TrialStatus.FAILED, reason="so" * (n % 50)) for n in range(300, 600)
    ]
    text = summary(sweep_config(), records, tmp_path)
    assert "and 280 more, see results.csv" in text
    assert "and 42 more reasons, see results.csv" in text
    assert len(text.splitlines()) < 60


def test_long_paths_stay_on_one_line_in_a_narrow_terminal(tmp_path):
    folder = tmp_path / ("long" * 30)
    text = summary(sweep_config(), [trial(0, {GAIN: 0.5, LOSS: 0.0})], folder, width=40)
    assert f"  all trials   {folder}/results.csv" in text.splitlines()


def test_the_driver_starts_without_optuna():
    code = (
        "import sys, tune.terminal.console, tune.terminal.summary, tune.terminal.log_redirect; "
        "print({'optuna', 'ray', 'torch', 'wandb', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_front_of_many_is_that_of_all_pairs() -> None:
    chance = random.Random(3)
    records = [
        trial(n, {GAIN: chance.randrange(30) / 30, LOSS: chance.randrange(30) / 30})
        for n in range(300)
    ]

    def beats(one: TrialRecord, other: TrialRecord) -> bool:
        first, second = ((-r.metric(GAIN), r.metric(LOSS)) for r in (one, other))
        return first != second and all(a <= b for a, b in zip(first, second, strict=True))

    expected = [r.number for r in records if not any(beats(o, r) for o in records)]
    assert numbers(pareto_front(sweep_config(), records)) == expected


def test_a_setting_names_everything_that_was_searched():
    searched = {"lora/rank": 8, "lora/dora": True, "lora/target_modules": "q_proj+v_proj"}
    record = trial(0, params={**searched, "lora/epochs": 1, "lora/learning_rate": 3.2e-4})
    others = "dora on, target modules q_proj+v_proj, epochs 1"
    assert setting(record) == f"lora, rank 8, alpha 16, lr 3.2e-04, {others}"
    assert setting_in_full(record) == f"LoRA, rank 8, alpha 16, learning rate 3.2e-04, {others}"


def test_the_table_has_what_a_trial_logged_before_it_diverged(tmp_path: Path) -> None:
    """As the report has it: the loss of the last step came after the last evaluation."""
    ledger = Ledger(tmp_path)
    evaluated = measurement(5, {GAIN: 0.7, LOSS: 0.1, metric_keys.TRAIN_LOSS: 2.0})
    worse = measurement(6, {GAIN: 0.5, LOSS: 0.1, metric_keys.TRAIN_LOSS: 3.0})
    logged = measurement(7, {metric_keys.TRAIN_LOSS: 9.0, metric_keys.GPU_HOURS: 0.5})
    record = trial(0, status=TrialStatus.DIVERGED)
    for each in (evaluated, worse, logged):
        ledger.append(0, each)
        record = record.after(each)
    ledger.write_trial(record)
    Recorder(ledger).sweep_ended([record])
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    assert (row[GAIN], row[LOSS], row[metric_keys.TRAIN_LOSS]) == ("0.5", "0.1", "9.0")
    assert (row[f"best/{GAIN}"], row["best/train/loss"]) == ("0.7", "2.0")
    assert "best/cost/gpu_h" not in row  # the least was at the first step, of every trial
