"""What single charts of the report say they show."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import synthetic_sweep
from builders import with_metrics
from plotly.colors import hex_to_rgb, unlabel_rgb
from synthetic_sweep import SyntheticSweep

import analysis.report
from analysis.report.charts import FULL, rank_colours, rank_style
from analysis.report.cost import cost_figure, costs
from analysis.report.inspection_section import inspection_figures
from analysis.report.rank_section import rate_figure
from analysis.report.task_section import task_figure
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.inspection.inspection_records import (
    InspectionFolder,
    InspectionRecord,
    MatrixChange,
)
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    MAX_RESERVED,
    task_forgetting,
    task_score,
)
from trainables.records.ledger import Ledger


def with_rates(folder, rates: list[float]) -> Results:
    """A sweep of one LoRA trial for each of these learning rates."""
    ledger = Ledger(SyntheticSweep(trials=len(rates), items=4, full_every=0).write(folder))
    for record, rate in zip(ledger.trials(), rates, strict=True):
        config = record.config.model_copy(update={"learning_rate": rate})
        ledger.write_trial(record.model_copy(update={"config": config}))
    return Results(open_sweeps([folder]))


def columns(results: Results) -> list[str]:
    figure = rate_figure(results)
    assert "no complete trial has such a rate" in figure.caption
    for chart in figure.charts:
        drawn = chart.data[0]
        assert len(set(drawn["x"])) == len(drawn["x"])
        assert {len(row) for row in drawn["z"]} == {len(drawn["x"])}
        hovers = [text for row in drawn["hovertext"] for text in row]
        trials = sum(int(text.split("<br>")[1].split()[0]) for text in hovers if text)
        assert trials == len(results.complete)
        assert all(label in chart.says for label in drawn["x"])
    return figure.charts[0].data[0]["x"]


def test_few_learning_rates_have_a_column_each(tmp_path):
    rates = [1e-4, 3e-4, 1e-3, 3e-3]
    assert columns(with_rates(tmp_path, rates * 3)) == [
        "1.0e-04", "3.0e-04", "1.0e-03", "3.0e-03",
    ]  # fmt: skip


def test_a_cell_is_the_mean_of_the_trials_of_its_rank_and_rate(tmp_path):
    results = with_rates(tmp_path, [1e-4, 3e-4, 3e-4] * 6)
    metrics = {IN_DOMAIN_ACC: "", FORGETTING_MEAN: "+"}
    for (metric, sign), chart in zip(metrics.items(), rate_figure(results).charts, strict=True):
        [drawn] = chart.data
        assert ("zmid" in drawn) == (metric == FORGETTING_MEAN)
        rows = zip(results.lora_groups(), drawn["z"], drawn["text"], strict=True)
        for group, row, texts in rows:
            for rate, cell, text in zip((1e-4, 3e-4), row, texts, strict=True):
                own = [r.metric(metric) for r in group.trials if r.config.learning_rate == rate]
                assert cell == (pytest.approx(fmean(own)) if own else None)
                assert text == (f"{fmean(own):{sign}.2f}" if own else "")


def test_near_learning_rates_have_columns_of_different_names(tmp_path):
    assert columns(with_rates(tmp_path, [1.01e-4, 1.02e-4])) == ["1.01e-04", "1.02e-04"]
    assert columns(with_rates(tmp_path / "one", [1e-4] * 3)) == ["1.0e-04"]


@pytest.mark.parametrize("spread", [10.0, 1.001], ids=["wide", "narrow"])
def test_many_learning_rates_have_ranges_that_meet(tmp_path, spread):
    rates = [1e-4 * spread ** (index / 11) for index in range(12)]
    labels = columns(with_rates(tmp_path, rates))
    assert 3 <= len(labels) <= 7
    ends = [[float(end) for end in label.split(" to ")] for label in labels]
    assert [high for _, high in ends[:-1]] == [low for low, _ in ends[1:]]
    assert (ends[0][0], ends[-1][1]) == pytest.approx((rates[0], rates[-1]), rel=0.05)


def test_trials_in_slots_which_have_no_memory_of_their_own_have_no_empty_chart_of_it(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=4, items=4).write(tmp_path))
    keys = [chart.key for chart in cost_figure(Results(open_sweeps([tmp_path]))).charts]
    assert keys == ["throughput", "memory"]
    for record in ledger.trials():
        metrics = {key: v for key, v in record.last.metrics.items() if key != MAX_RESERVED}
        ledger.write_trial(with_metrics(record, metrics))
    results = Results(open_sweeps([tmp_path]))
    assert [chart.key for chart in cost_figure(results).charts] == ["throughput"]
    assert {row.memory for row in costs(results)} == {None}


@pytest.mark.parametrize(
    ("kept", "rank_limit", "says"),
    [(64, 128, "First 64 singular values"), (64, 64, "Singular values"), (8, 128, "Singular")],
    ids=["cut", "all of rank 64", "the rest are zero"],
)
def test_a_spectrum_that_goes_on_is_said_to(tmp_path, kept, rank_limit, says):
    folder = SyntheticSweep(trials=2, items=4).write(tmp_path)
    values = tuple(float(kept - index) for index in range(kept))
    matrix = MatrixChange(
        layer=0,
        module="q_proj",
        shape=(256, 256),
        rank_limit=rank_limit,
        relative_norm=0.1,
        singular_values=values,
    )
    record = InspectionRecord(number=1, trial_id="synthetic-id-0001", matrices=(matrix,))
    InspectionFolder(folder).write(record)
    figures = inspection_figures(Results(open_sweeps([folder])))
    [(figure, spectra)] = [(f, c) for f in figures for c in f.charts if c.key == "spectra"]
    assert spectra.title.startswith(says)
    is_cut = says.startswith("First")
    assert ("first 64 singular values" in spectra.says) == is_cut
    assert ("every line with the first 64" in figure.caption) == is_cut


def test_what_each_task_lost_and_gained_is_in_points_and_a_loss_has_one_colour(tmp_path):
    results = Results(open_sweeps([SyntheticSweep(trials=8, items=40).write(tmp_path)]))
    bests = [group.best for group in results.groups]
    shown = {-1: ["retention"], 1: ["in_domain", "ood"]}
    for chart, (sign, roles) in zip(task_figure(results).charts, shown.items(), strict=True):
        tasks = {label: task for role in roles for label, task in results.tasks(role).items()}
        keys = [task_score(task.role, label, task.metric) for label, task in tasks.items()]
        base = np.array([task.value for task in tasks.values()])
        gained = 100 * (np.array([[best.metric(key) for key in keys] for best in bests]) - base)
        [drawn] = chart.data
        assert drawn["x"] == list(tasks)
        np.testing.assert_allclose(drawn["z"], -gained, atol=1e-9)
        np.testing.assert_allclose(np.array(drawn["text"], float), sign * gained, atol=0.051)
        rows = zip(drawn["y"], drawn["text"], strict=True)
        groups = [group.label for group in results.groups]
        assert drawn["hovertext"] == [[f"{label}, {task}" for task in tasks] for label in groups]
        told = [f"{r}: {', '.join(map(' '.join, zip(tasks, row)))}" for r, row in rows]  # noqa: B905
        assert chart.says.endswith(f"in points: {'; '.join(told)}")


def test_many_tasks_are_one_below_another_in_one_column(tmp_path, monkeypatch):
    few = Results(open_sweeps([SyntheticSweep(trials=8, items=8).write(tmp_path / "few")]))
    assert task_figure(few).columns == 2
    for number in range(40):
        monkeypatch.setitem(synthetic_sweep.TASKS, f"subject_{number}", ("retention", 0.5))
    results = Results(open_sweeps([SyntheticSweep(trials=8, items=8).write(tmp_path / "many")]))
    figure = task_figure(results)
    assert figure.columns == 1
    forgetting, gain = figure.charts
    tasks, labels = list(results.tasks("retention")), [g.short_label for g in results.groups]
    [drawn] = forgetting.data
    assert (drawn["x"], drawn["y"]) == (labels, tasks)
    assert drawn["z"] == [
        [100 * group.best.metric(task_forgetting(task)) for group in results.groups]
        for task in tasks
    ]
    assert drawn["text"] == [[f"{value:+.1f}" for value in row] for row in drawn["z"]]
    assert drawn["hovertext"][1] == [f"{group.label}, {tasks[1]}" for group in results.groups]
    assert forgetting.height / len(tasks) > 20  # pixels, in which a line of text can be read
    assert gain.data[0]["y"] == labels  # of three tasks


COLOUR_VISION = (
    np.eye(3),
    # Of people without a kind of cone, in linear RGB (Machado, Oliveira and Fernandes 2009).
    [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
)


def linear(colour: str) -> np.ndarray:
    """Linear RGB of such as `#ffffff` or `rgb(255, 255, 255)`."""
    share = np.array((hex_to_rgb if colour.startswith("#") else unlabel_rgb)(colour)) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""
    low, high = sorted(linear(colour) @ (0.2126, 0.7152, 0.0722) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, D65."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    shares = to_xyz @ np.clip(rgb, 0, 1) / (0.9505, 1, 1.089)
    x, y, z = np.where(shares > 216 / 24389, np.cbrt(shares), 841 / 108 * shares + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("count", range(1, 9))
def test_up_to_eight_ranks_are_seen_and_told_apart_in_either_scheme(tmp_path, count):
    ranks = tuple(2**power for power in range(count))
    sweep = SyntheticSweep(trials=6 * count, items=1, full_every=0, ranks=ranks).write(tmp_path)
    results = Results(open_sweeps([sweep]))
    page = Path(analysis.report.__file__).with_name("page.css").read_text()
    light, dark, _of_print = re.findall("--paper: (#.{6})", page)
    for paper, style in zip((light, dark), rank_style(results).splitlines(), strict=True):
        shades = dict(re.findall(r"--(rank-\d+): (.+?);", style))
        assert [f"@{name}" for name in shades] == list(rank_colours(results).values())
        assert len(shades) == count
        for shade in shades.values():
            assert contrast(shade, paper) >= 3
        for vision in COLOUR_VISION:
            seen = [lab(vision @ linear(shade)) for shade in shades.values()]
            apart = [np.linalg.norm(one - other) for one, other in pairwise(seen)]
            from_full = [np.linalg.norm(lab(vision @ linear(FULL)) - one) for one in seen]
            assert min([*apart, *from_full]) > 7
