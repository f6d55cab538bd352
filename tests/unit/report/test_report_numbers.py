"""What charts and tables of the report draw is what was measured, on the axes that they name."""

from __future__ import annotations

import math
import re
from itertools import groupby
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from builders import with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.report import cost
from analysis.report.charts import Chart
from analysis.report.curves import curves_figure
from analysis.report.formats import as_markdown
from analysis.report.page import render
from analysis.report.rank_section import rank_figure, step_size_figure
from analysis.report.settings_section import importance_figure, parallel_figure
from analysis.report.task_section import flips
from analysis.report.trade_off_section import (
    _box,
    hypervolume_figure,
    hypervolume_shares,
    trade_off_figure,
)
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
    TRAIN_LOSS,
    TRAIN_SECONDS,
    TRAINABLE_PARAMETERS,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialRecord, TrialStatus

Points = list[tuple[float, float]]


def results_of(folder, *sweeps: SyntheticSweep) -> Results:
    return Results(open_sweeps([sweep.write(folder / sweep.name) for sweep in sweeps]))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    ends = {5: TrialStatus.FAILED, 9: TrialStatus.STOPPED_EARLY}
    sweep = SyntheticSweep(trials=22, items=8, seed=2, failures=ends)
    return results_of(tmp_path_factory.mktemp("sweep"), sweep)


def titles(chart: Chart) -> tuple[str, str]:
    return tuple(chart.layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis"))


def points(trace: dict[str, Any]) -> Points:
    return list(zip(trace["x"], trace["y"], strict=True))


def lines(trace: dict[str, Any]) -> list[Points]:
    """Those of one trace, which have gaps between them."""
    parts = groupby(points(trace), key=lambda point: point == (None, None))
    return [list(part) for is_gap, part in parts if not is_gap]


def test_each_trial_stands_at_its_gain_over_what_is_traded_for_it(results):
    base = results.base.metrics
    for metric, chart in zip(
        (FORGETTING_MEAN, OOD_ACC), trade_off_figure(results).charts, strict=True
    ):
        named = {
            FORGETTING_MEAN: "forgetting (base minus tuned)",
            OOD_ACC: "out-of-domain accuracy",
        }
        assert titles(chart) == (named[metric], "in-domain accuracy")
        *drawn, _ring, target, star = chart.data
        expected = [(r.metric(metric), r.metric(IN_DOMAIN_ACC)) for r in results.complete]
        assert sorted(p for trace in drawn for p in points(trace)) == sorted(expected)
        taken = results.recommendation.trial
        assert taken is not results.front[0]
        assert points(target) == [(taken.metric(metric), taken.metric(IN_DOMAIN_ACC))]
        [arrow] = chart.layout["annotations"]
        assert (arrow["x"], arrow["y"]) == points(target)[0]
        assert points(star) == [(base[metric], base[IN_DOMAIN_ACC])]


def test_the_last_quarter_of_a_search_added_what_it_did(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=16, seed=24))
    shares = hypervolume_shares(results, results.sweeps[0])
    assert len({shares[3], shares[10], shares[11], shares[12], shares[15]}) == 5
    figure = hypervolume_figure(results)
    assert points(figure.charts[0].data[0]) == list(enumerate(shares, 1))
    assert f"dominates {100 * shares[-1]:.1f} % of the box" in figure.caption
    assert f"search added {100 * (shares[15] - shares[11]):.1f} points" in figure.caption
    assert "too few" not in figure.caption


@pytest.mark.parametrize(("ranges", "worst"), [(1.4, 0.3 + 1.4 * 0.2), (1.6, 0.3)])
def test_beyond_tukeys_fence_a_trial_does_not_stretch_the_box(tmp_path, ranges, worst):
    ledger = Ledger(SyntheticSweep(trials=5, items=4).write(tmp_path))
    losses = (0.0, 0.1, 0.3, 0.3 + ranges * 0.2, 0.2)  # quartiles 0.1 and 0.3
    for record, loss in zip(ledger.trials(), losses, strict=True):
        measured = {IN_DOMAIN_ACC: 1 - loss, OOD_ACC: 1 - loss, FORGETTING_MEAN: loss}
        ledger.write_trial(with_metrics(record, record.last.metrics | measured))
    results = Results(open_sweeps([tmp_path]))
    assert _box(results)[1] == pytest.approx((0.0, worst))


def test_a_step_is_the_learning_rate_times_the_scale_of_its_own_rank(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=8, items=8).write(tmp_path))
    for record in ledger.trials()[1:4]:
        lora = record.config.lora.model_copy(update={"rslora": True})
        config = record.config.model_copy(update={"lora": lora})
        ledger.write_trial(record.model_copy(update={"config": config}))
    results = Results(open_sweeps([tmp_path]))
    for metric, chart in zip(
        (IN_DOMAIN_ACC, FORGETTING_MEAN), step_size_figure(results).charts, strict=True
    ):
        assert titles(chart)[0] == "learning rate x scale"
        expected = []
        for record in results.lora:
            lora, rate = record.config.lora, record.config.learning_rate
            scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
            expected.append((lora.rank, pytest.approx(rate * scale), record.metric(metric)))
        ranks = sorted({record.rank for record in results.lora})
        drawn = [(r, *p) for r, t in zip(ranks, chart.data, strict=True) for p in points(t)]
        assert sorted(drawn) == sorted(expected, key=lambda one: (one[0], one[1].expected))


def test_the_bars_and_the_band_of_curves_over_ranks_end_where_their_intervals_do(results):
    for metric, chart in zip(
        (IN_DOMAIN_ACC, OOD_ACC, FORGETTING_MEAN), rank_figure(results).charts, strict=True
    ):
        dots, line, apart = chart.data
        assert points(dots) == [
            (r.rank, r.metric(metric)) for group in results.lora_groups() for r in group.trials
        ]
        assert line["x"] == [g.rank for g in results.lora_groups() if g.picked_from >= 4]
        drawn = {
            x: (y, below, above)
            for trace in (line, apart)
            for x, y, below, above in zip(
                *(trace["x"], trace["y"]),
                *(trace["error_y"]["arrayminus"], trace["error_y"]["array"]),
                strict=True,
            )
        }
        assert drawn.keys() == {group.rank for group in results.lora_groups()}
        for group in results.lora_groups():
            value, below, above = drawn[group.rank]
            interval = results.items.interval(group.best, metric, group.picked_from)
            assert value == group.best.metric(metric)
            assert (value - below, value + above) == pytest.approx((interval.low, interval.high))
        full = results.full(results.sweeps[0])
        interval = results.items.interval(full.best, metric, full.picked_from)
        [band, level, base] = [(shape["y0"], shape["y1"]) for shape in chart.layout["shapes"]]
        assert band == (interval.low, interval.high)
        assert level == (full.best.metric(metric),) * 2
        assert base == (results.base.metrics[metric],) * 2


def test_curves_are_the_measurements_from_the_base_on(results):
    [sweep] = results.sweeps
    metrics = (TRAIN_LOSS, IN_DOMAIN_ACC, FORGETTING_MEAN, OOD_ACC)

    def curve(record: TrialRecord, metric: str) -> Points:
        found = [
            (float(m.step), m.metrics[metric])
            for m in sweep.ledger.measurements(record.number)
            if metric in m.metrics
        ]
        start = [(0.0, sweep.base.metrics[metric])] if metric in sweep.base.metrics else []
        return [*start, *found] if found else []

    for metric, chart in zip(metrics, curves_figure(results).charts, strict=True):
        assert ("type" in chart.layout["yaxis"]) == (metric == TRAIN_LOSS)  # a logarithmic one
        grey, *coloured = chart.data
        ended = {r.config.trial_id for r in results.complete}
        others = [r for r in results.search_trials if r.config.trial_id not in ended]
        assert lines(grey) == [curve(r, metric) for r in others if curve(r, metric)]
        for group, thin, thick in zip(results.groups, coloured[::2], coloured[1::2], strict=True):
            assert lines(thin) == [curve(record, metric) for record in group.trials]
            assert points(thick) == curve(group.best, metric)


def test_lines_over_settings_pass_each_axis_where_its_ticks_say(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=22, items=8).write(tmp_path))
    for record in ledger.trials():
        third = record.number % 3
        train = {"batch_size": 16 << third, "warmup": third / 10, "weight_decay": third / 100}
        changes = {"train": record.config.train.model_copy(update=train)}
        if lora := record.config.lora:
            changes["lora"] = lora.model_copy(update={"dropout": third / 20})
        config = record.config.model_copy(update=changes)
        ledger.write_trial(record.model_copy(update={"config": config}))
    results = Results(open_sweeps([tmp_path]))
    [chart] = parallel_figure(results).charts
    notes = chart.layout["annotations"]
    axes = [re.sub(r"<.*?>", " ", n["text"]).strip() for n in notes if n["y"] == 1.04]
    values = {
        "rank": lambda r: r.rank,
        "alpha": lambda r: r.config.lora and r.config.lora.alpha,
        "learning rate": lambda r: r.config.learning_rate,
        "dropout": lambda r: r.config.lora and r.config.lora.dropout,
        "samples a step": lambda r: r.config.train.batch_size,
        "warm-up": lambda r: r.config.train.warmup,
        "weight decay": lambda r: r.config.train.weight_decay,
        "in-domain": lambda r: r.metric(IN_DOMAIN_ACC),
        "OOD": lambda r: r.metric(OOD_ACC),
        "forgetting": lambda r: r.metric(FORGETTING_MEAN),
    }
    assert axes == list(values)
    logarithmic = ("rank", "alpha", "learning rate", "samples a step")
    placed: dict[str, list[float | None]] = {}
    for position, axis in enumerate(axes):
        own = [values[axis](record) for record in results.complete]
        scaled = np.log if axis in logarithmic else np.asarray
        known = scaled([value for value in own if value is not None])
        low, high = known.min(), known.max()
        placed[axis] = [
            None if value is None else float((scaled(value) - low) / (high - low)) for value in own
        ]
        ticks = {n["text"]: n["y"] for n in notes if n["x"] == position and n["y"] != 1.04}
        assert [*ticks.values()] == sorted(ticks.values())
        assert (min(ticks.values()), max(ticks.values())) == (0, 1)
        for text, place in ticks.items():
            shown = (scaled(float(text)) - low) / (high - low)
            assert place == pytest.approx(shown, abs=0.03)  # it is rounded
    drawn = [(t["line"]["width"] > 2, line) for t in chart.data for line in lines(t)]
    for index, record in enumerate(results.complete):
        own = [(p, placed[axis][index]) for p, axis in enumerate(axes)]
        line = [(p, pytest.approx(place)) for p, place in own if place is not None]
        assert (results.is_on_front(record), line) in drawn
    assert len(drawn) == len(results.complete)
    for trace in chart.data:
        named = {text.partition("</b>")[0] for text in trace["text"]} - {""}
        assert len(named) == len(lines(trace))


def test_bars_of_importance_are_of_the_setting_and_the_result_that_they_name(results):
    figure = importance_figure(results)
    [chart] = figure.charts
    named = {key.colour: key.name for key in figure.legend}
    metrics = {
        "in-domain accuracy": IN_DOMAIN_ACC,
        "forgetting": FORGETTING_MEAN,
        "out-of-domain accuracy": OOD_ACC,
    }
    assert named.keys() == {trace["marker"]["color"] for trace in chart.data}
    for trace in chart.data:
        name = named[trace["marker"]["color"]]
        assert dict(zip(trace["y"], trace["x"], strict=True)) == pytest.approx(
            importances(results.lora, metrics[name])
        )
        assert name in trace["hovertemplate"]
    assert f"on {len(results.lora)} complete LoRA trials; 1 more trial was" in figure.caption


COSTS = {
    TRAINABLE_PARAMETERS: 1000.0,
    TRAIN_SECONDS: 20.0,
    EVAL_SECONDS: 30.0,
    GPU_HOURS: 4.0,
    TOKENS_PER_SECOND: 500.0,
    MAX_RESERVED: 6.0,
}


def test_costs_are_means_of_each_method_and_rank_and_the_highest_memory(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=8, items=4, ranks=(2, 4)).write(tmp_path))
    for record in ledger.trials():
        measured = {key: value * (1 + record.number) for key, value in COSTS.items()}
        ledger.write_trial(with_metrics(record, record.last.metrics | measured))
    results = Results(open_sweeps([tmp_path]))
    shown = section(render(results), "cost")
    assert '<dd class="value">8 min</dd>' in shown
    rows = re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)
    for group, row in zip(results.groups, rows[1:], strict=True):
        numbers = [1 + record.number for record in group.trials]
        values = {key: value * fmean(numbers) for key, value in COSTS.items()}
        values[MAX_RESERVED] = COSTS[MAX_RESERVED] * max(numbers)
        shown = [float(cell.replace(",", "")) for cell in re.findall(r"<td>(.*?)</td>", row)]
        assert shown == pytest.approx([len(numbers), *values.values()], rel=0.005)


def test_what_failed_was_repeated_or_ran_in_another_sweep_cost_time_too(tmp_path):
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
    # Of 60 s each, but for the one that has no end yet: as its GPU-hours, up to what it measured.
    assert cost.trial_hours(results) == pytest.approx((60 * 4 + 45 + 7200) / 3600)
    page = render(results)
    assert "2 complete trials of the search" in page
    assert "1,600 samples, 3 too long" in page
    assert '<th scope="col">forgetting</th>' in section(page, "trials")
    told = section(page, "cost")
    assert re.findall(r'<dd class="value">(.*?)</dd>', told)[:2] == ["150", "2.08 h"]
    assert "5 trials and 1 repeat, 150 GPU-hours" in as_markdown(results)
    assert [(one.status, one.count, one.trials) for one in cost.failures(results)] == [
        ("failed", 1, "trial 1 of synthetic"),
        ("diverged", 1, "trial 9 of other"),
        ("stopped early", 1, "trial 2 of synthetic"),
    ]


def section(page: str, key: str) -> str:
    return page.partition(f'<section id="{key}">')[2].partition("</section>")[0]


def test_the_page_counts_what_turned_wrong_and_what_turned_right(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=4, prompt=200 * "word " + "{}."))
    shown = section(render(results), "flips")
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', shown)
    found = flips(results, results.recommendation.trial)
    assert any(one.forgotten != one.gained for one in found)
    counts = [[str(one.items), str(one.forgotten), str(one.gained)] for one in found]
    assert [re.findall(r">([^<>]+)</t", row)[-4:-1] for row in rows] == counts
    for one in found:
        is_lost = one.role == "retention"
        for example in one.examples:
            assert example.before == "base's answer"
            assert example.after == f"answer {0 if is_lost else 1}"
            number = example.target.removeprefix("target ")
            assert re.fullmatch(rf"\.\.\. .{{,600}} {number}\.", example.prompt)
