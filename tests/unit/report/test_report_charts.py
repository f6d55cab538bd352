"""What single charts of the report say they show."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest
from synthetic_sweep import SyntheticSweep

from analysis.report.rank_section import rate_figure
from analysis.report.task_section import task_figure
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
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
        "1.00e-04", "3.00e-04", "1.00e-03", "3.00e-03",
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
