"""What charts and tables of the report draw is what was measured, on the axes that they name."""

from __future__ import annotations

import math
import re
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from builders import with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.figures import trade_off
from analysis.report import cost
from analysis.report.capacity_section import capacity_figure, rate_figure, step_size_figure
from analysis.report.curves import curves_figure
from analysis.report.formats import as_markdown
from analysis.report.page import render
from analysis.report.settings_section import importance_figure
from analysis.report.strength_section import strength_table
from analysis.report.task_section import task_figure
from analysis.report.trade_off_section import (
    hypervolume_figure,
    hypervolume_shares,
    trade_off_figure,
)
from analysis.results.formatting import NAMES
from analysis.shown_sweeps import Results
from analysis.stats.importance import importances
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    EVAL_SECONDS,
    FORGETTING_MEAN,
    GPU_HOURS,
    IN_DOMAIN_ACC,
    MAX_RESERVED,
    OOD_ACC,
    TOKENS_PER_SECOND,
    TOKENS_SEEN,
    TRAIN_SECONDS,
    TRAINABLE_PARAMETERS,
    task_score,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialStatus

Points = list[tuple[float, float]]


def results_of(folder, *sweeps: SyntheticSweep) -> Results:
    return Results(open_sweeps([sweep.write(folder / sweep.name) for sweep in sweeps]))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    ends = {5: TrialStatus.FAILED, 9: TrialStatus.STOPPED_EARLY}
    sweep = SyntheticSweep(trials=22, items=8, seed=2, failures=ends)
    return results_of(tmp_path_factory.mktemp("sweep"), sweep)


def points(trace: dict[str, Any]) -> Points:
    return list(zip(trace["x"], trace["y"], strict=True))


def test_trials_front_and_base_stand_at_their_metrics(results):
    base, taken = results.base.metrics, results.recommendation.trial
    assert taken is not results.front[0]
    charts = trade_off_figure(results).charts
    for metric, chart in zip((FORGETTING_MEAN, OOD_ACC), charts, strict=True):
        *drawn, ring, target, star = chart.data
        expected = [(r.metric(metric), r.metric(IN_DOMAIN_ACC)) for r in results.complete]
        assert sorted(p for trace in drawn for p in points(trace)) == sorted(expected)
        assert len(points(ring)) == len(results.front)
        assert points(target) == [(taken.metric(metric), taken.metric(IN_DOMAIN_ACC))]
        assert points(star) == [(base[metric], base[IN_DOMAIN_ACC])]


def test_the_caption_tells_what_the_last_quarter_of_a_search_added(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=16, seed=24))
    shares = hypervolume_shares(results, results.sweeps[0])
    assert len({shares[3], shares[10], shares[11], shares[12], shares[15]}) == 5
    figure = hypervolume_figure(results)
    assert points(figure.charts[0].data[0]) == list(enumerate(shares, 1))
    assert f"dominates {100 * shares[-1]:.1f} % of the box" in figure.caption
    assert f"search added {100 * (shares[15] - shares[11]):.1f} points" in figure.caption
    assert "too few" not in figure.caption


def test_a_step_is_the_learning_rate_times_the_scale(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=8, items=8, full_every=0).write(tmp_path))
    for record in ledger.trials()[1:4]:
        method = record.config.method.model_copy(update={"rslora": True})
        config = record.config.model_copy(update={"method": method})
        ledger.write_trial(record.model_copy(update={"config": config}))
    results = Results(open_sweeps([tmp_path]))
    chart = step_size_figure(results).charts[1]
    expected = []
    for record in results.complete:
        lora = record.config.method
        scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
        expected.append((record.config.learning_rate * scale, record.metric(FORGETTING_MEAN)))
    drawn = sorted(point for trace in chart.data for point in points(trace))
    assert np.allclose(drawn, sorted(expected))


def test_a_cell_of_rates_is_the_mean_of_its_group_and_rate(tmp_path):
    rates = (1e-4, 3e-4)
    ledger = Ledger(SyntheticSweep(trials=18, items=4, full_every=0).write(tmp_path))
    for record in ledger.trials():
        config = record.config.model_copy(update={"learning_rate": rates[record.number % 3 > 0]})
        ledger.write_trial(record.model_copy(update={"config": config}))
    results = Results(open_sweeps([tmp_path]))
    for metric, chart in zip(
        (IN_DOMAIN_ACC, FORGETTING_MEAN), rate_figure(results).charts, strict=True
    ):
        [drawn] = chart.data
        assert drawn["x"] == ["1.00e-04", "3.00e-04"]
        for group, row in zip(results.groups, drawn["z"], strict=True):
            for rate, cell in zip(rates, row, strict=True):
                own = [r.metric(metric) for r in group.trials if r.config.learning_rate == rate]
                assert cell == (pytest.approx(fmean(own)) if own else None)


def test_the_matrix_of_tasks_is_in_points_and_a_loss_has_one_colour(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=8))
    shown = {-1: ["retention"], 1: ["in_domain", "ood"]}
    for chart, (sign, roles) in zip(task_figure(results).charts, shown.items(), strict=True):
        tasks = {label: task for role in roles for label, task in results.tasks(role).items()}
        gained = [
            [
                100 * (g.best.metric(task_score(t.role, n, t.metric)) - t.value)
                for n, t in tasks.items()
            ]
            for g in results.groups
        ]
        [drawn] = chart.data
        assert drawn["x"] == list(tasks)
        np.testing.assert_allclose(drawn["z"], -np.array(gained), atol=1e-9)
        np.testing.assert_allclose(
            np.array(drawn["text"], float), sign * np.array(gained), atol=0.051
        )


def test_the_bars_and_the_band_over_capacities_are_the_intervals(results):
    *lora, full = results.groups
    for metric, chart in zip(
        (IN_DOMAIN_ACC, OOD_ACC, FORGETTING_MEAN), capacity_figure(results).charts, strict=True
    ):
        _, line, apart = chart.data
        assert line["x"] == [g.capacity.number for g in lora if g.picked_from >= 4]
        drawn = {}
        for trace in (line, apart):
            error = trace["error_y"]
            ends = (trace["y"], error["arrayminus"], error["array"])
            drawn |= dict(zip(trace["x"], zip(*ends, strict=True), strict=True))
        assert drawn.keys() == {group.capacity.number for group in lora}
        for group in lora:
            value, below, above = drawn[group.capacity.number]
            interval = results.items.interval(group.best, metric, group.picked_from)
            assert value == group.best.metric(metric)
            assert (value - below, value + above) == pytest.approx((interval.low, interval.high))
        interval = results.items.interval(full.best, metric, full.picked_from)
        [band, level, base] = [(shape["y0"], shape["y1"]) for shape in chart.layout["shapes"]]
        assert band == (interval.low, interval.high)
        assert level == (full.best.metric(metric),) * 2
        assert base == (results.base.metrics[metric],) * 2


def test_the_thick_curve_is_the_best_trial_s_from_the_base_on(results):
    [sweep] = results.sweeps
    start = (0.0, sweep.base.metrics[IN_DOMAIN_ACC])
    chart = curves_figure(results).charts[1]
    for group, thick in zip(results.groups, chart.data[-len(results.groups) :], strict=True):
        history = sweep.ledger.measurements(group.best.number)
        own = [(m.step, m.metrics[IN_DOMAIN_ACC]) for m in history if IN_DOMAIN_ACC in m.metrics]
        assert points(thick) == [start, *own]


def test_importances_are_those_of_the_setting_and_the_metric_they_name(results):
    figure = importance_figure(results)
    [chart] = figure.charts
    metrics = {NAMES[metric]: metric for metric in (IN_DOMAIN_ACC, FORGETTING_MEAN, OOD_ACC)}
    named = {key.colour: metrics[key.name] for key in figure.legend}
    assert len(named) == len(chart.data) == 3
    lora = [record for group in results.groups if group.capacity for record in group.trials]
    for trace in chart.data:
        bars = dict(zip(trace["y"], trace["x"], strict=True))
        assert bars == pytest.approx(importances(lora, named[trace["marker"]["color"]]))


COSTS = {
    TOKENS_SEEN: 7000.0,
    TRAIN_SECONDS: 20.0,
    EVAL_SECONDS: 30.0,
    GPU_HOURS: 4.0,
    TOKENS_PER_SECOND: 500.0,
    MAX_RESERVED: 6.0,
}


def test_costs_are_means_of_each_recipe_and_the_highest_memory(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=8, items=4, ranks=(2, 4)).write(tmp_path))
    for record in ledger.trials():
        measured = {key: value * (1 + record.number) for key, value in COSTS.items()}
        measured[TRAINABLE_PARAMETERS] = 10.0 * (1 + record.number)
        ledger.write_trial(with_metrics(record, record.last.metrics | measured))
    results = Results(open_sweeps([tmp_path]))
    shown = section(render(results), "cost")
    assert '<dd class="value">8 min</dd>' in shown
    rows = re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)
    for recipe, row in zip(("lora", "full"), rows[1:], strict=True):
        own = [record for record in results.complete if record.config.recipe == recipe]
        numbers = [1 + record.number for record in own]
        values = {key: value * fmean(numbers) for key, value in COSTS.items()}
        values[MAX_RESERVED] = COSTS[MAX_RESERVED] * max(numbers)
        count, trained, *shown = re.findall(r"<td>(.*?)</td>", row)
        assert int(count) == len(numbers)
        assert trained == f"{10 * min(numbers)} to {10 * max(numbers)}"
        means = [float(cell.replace(",", "")) for cell in shown]
        assert means == pytest.approx([*values.values()], rel=0.005)


def test_a_trial_is_drawn_with_its_strengths_and_the_recommended_one_has_a_table(tmp_path):
    folder = SyntheticSweep(trials=8, strengths=(0.3, 0.6)).write(tmp_path / "s")
    results = Results(open_sweeps([folder]))
    figure = trade_off_figure(results)
    assert "other strengths" in [key.name for key in figure.legend]
    line, small, *_ = figure.charts[0].data
    base = results.base.metrics
    trial = results.complete[0]
    curve = [base, *(view.metrics for view in trial.curve)]
    assert line["x"][:5] == [*(metrics[FORGETTING_MEAN] for metrics in curve), None]
    assert line["y"][:4] == [metrics[IN_DOMAIN_ACC] for metrics in curve]
    assert len(small["x"]) == 2 * 8
    table = strength_table(results)
    taken = results.recommendation.trial
    assert [row[0] for row in table.rows] == ["0, the base", "0.3", "0.6", "1"]
    assert table.rows[table.taken][0] == f"{taken.strength:g}"
    assert table.rows[table.taken][1].startswith(f"{taken.metrics[IN_DOMAIN_ACC]:.3f} (")
    assert table.titles[1] == "in-domain accuracy"
    assert all(row[0] in render(results) for row in table.rows)
    whole = Results(open_sweeps([SyntheticSweep(trials=8).write(tmp_path / "whole")]))
    assert strength_table(whole) is None


def test_repaired_points_have_a_mark_of_their_own_on_no_curve(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=6, strengths=(0.5,)).write(tmp_path))
    trial = ledger.trials()[2]
    metrics = {**trial.metrics, FORGETTING_MEAN: 0.0625}
    update = {"repair": "no_intruders", "metrics": metrics}
    ledger.write_trial(trial.after(trial.last.model_copy(update=update)))
    results = Results(open_sweeps([tmp_path]))
    figure = trade_off_figure(results)
    assert "repaired" in [key.name for key in figure.legend]
    line, small, *_ = figure.charts[0].data
    crosses = zip(small["x"], small["marker"]["symbol"], strict=True)
    assert [x for x, symbol in crosses if symbol == "cross"] == [0.0625]
    assert 0.0625 not in line["x"]
    [repaired] = [
        drawn for drawn in trade_off(results).axes[0].collections if drawn.get_label() == "repaired"
    ]
    assert repaired.get_offsets().tolist() == [[0.0625, metrics[IN_DOMAIN_ACC]]]


def test_failed_trials_repeats_and_other_sweeps_cost_time_too(tmp_path):
    ends = {1: TrialStatus.FAILED, 2: TrialStatus.STOPPED_EARLY, 3: TrialStatus.RUNNING}
    sweeps = SyntheticSweep(trials=4, items=4, failures=ends), SyntheticSweep(1, 4, "other")
    for sweep in sweeps:
        ledger = Ledger(sweep.write(tmp_path / sweep.name))
        for record in ledger.trials():
            ledger.write_trial(with_metrics(record, record.last.metrics | {GPU_HOURS: 10.0}))
            late = Measurement(step=101, metrics={GPU_HOURS: 10.0}, time=1.7e9 + 45)
            ledger.append(record.number, late)
    done = ledger.trials()[0]
    config = done.config.model_copy(update={"number": 9, "trial_id": "repeat"})
    diverged = {"confirms": 0, "ended": 1.7e9 + 7200, "status": TrialStatus.DIVERGED}
    ledger.write_trial(done.model_copy(update={"config": config, **diverged}))
    ledger.append(9, Measurement(step=101, metrics={GPU_HOURS: 100.0}, time=2e9))
    results = Results(open_sweeps([tmp_path / sweep.name for sweep in sweeps]))
    assert cost.gpu_hours(results) == pytest.approx(10 * 5 + 100)
    # 60 s each; the one without an end counts up to its last measurement.
    assert cost.trial_hours(results) == pytest.approx((60 * 4 + 45 + 7200) / 3600)
    assert "5 trials and 1 repeat, 150 GPU-hours" in as_markdown(results)
    assert [(one.status, one.count, one.trials) for one in cost.failures(results)] == [
        ("failed", 1, "trial 1 of synthetic"),
        ("diverged", 1, "trial 9 of other"),
        ("stopped early", 1, "trial 2 of synthetic"),
    ]


def section(page: str, key: str) -> str:
    return page.partition(f'<section id="{key}">')[2].partition("</section>")[0]
