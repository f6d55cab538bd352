"""What all charts of the report share: maps of colours, marks of sweeps, texts to touch."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

from builders import with_metrics
from synthetic_sweep import SyntheticSweep

from analysis.figures import forgetting_matrix
from analysis.report.charts import heatmap, hover, mark_of, rank_keys
from analysis.report.rank_section import rate_figure
from analysis.report.settings_section import parallel_figure
from analysis.report.task_section import task_figure
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.metric_keys import (
    FORGETTING_MEAN,
    IN_DOMAIN_ACC,
    KL_BASE_TO_TUNED,
    task_forgetting,
)
from trainables.records.ledger import Ledger

OBJECTIVES = ({"metric": IN_DOMAIN_ACC, "mode": "max"}, {"metric": KL_BASE_TO_TUNED, "mode": "min"})


def test_of_values_of_both_signs_the_greater_is_warmer_and_0_has_the_middle_colour() -> None:
    trace = heatmap(["a", "b"], ["c"], [[-3.0, 1.0]], diverging=True, texts=None)
    assert (trace["zmin"], trace["zmid"], trace["zmax"]) == (-3, 0, 3)
    (_, coldest), *_, (_, warmest) = trace["colorscale"]

    def red_less_blue(colour: str) -> int:
        return int(colour[1:3], 16) - int(colour[5:7], 16)

    assert red_less_blue(coldest) < 0 < red_less_blue(warmest)


def test_the_marks_of_more_sweeps_than_there_are_marks_come_again() -> None:
    sweeps: Any = range(8)
    results: Any = SimpleNamespace(sweeps=sweeps)
    marks = [mark_of(results, sweep) for sweep in sweeps]
    assert len(set(marks)) == 6
    assert marks[6:] == marks[:2]


def test_each_rank_has_a_colour_of_its_own(tmp_path) -> None:
    results = Results(open_sweeps([SyntheticSweep(trials=12, items=4).write(tmp_path)]))
    names = [*(f"rank {rank}" for rank in (1, 4, 16, 64)), "full fine-tuning"]
    keys = rank_keys(results)
    assert [key.name for key in keys] == names
    assert len({key.colour for key in keys}) == len(names)


def test_the_text_of_a_point_has_what_the_trial_is_judged_by(tmp_path) -> None:
    sweep = SyntheticSweep(trials=1, items=4, objectives=OBJECTIVES)
    results = Results(open_sweeps([sweep.write(tmp_path)]))
    [record] = results.complete
    told = hover(results, record).split("<br>")
    assert told[0] == "<b>trial 0</b>"
    assert "KL from the base (nats/token) 1.5" in told
    assert f"in-domain accuracy {record.metric(IN_DOMAIN_ACC):.3f}" in told


def test_what_rounds_to_no_change_has_no_minus(tmp_path) -> None:
    ledger = Ledger(SyntheticSweep(trials=6, items=4).write(tmp_path))
    for record in ledger.trials():
        little = -0.0004 if record.number % 4 else -0.0003  # one item of mmlu's
        metrics = record.last.metrics | {FORGETTING_MEAN: little, task_forgetting("crafts"): little}
        ledger.write_trial(with_metrics(record, metrics))
    results = Results(open_sweeps([tmp_path]))
    figures = task_figure(results), rate_figure(results), parallel_figure(results)
    charts = [chart for figure in figures if figure for chart in figure.charts]
    shown = json.dumps([[chart.json(), chart.says] for chart in charts])
    assert not re.search(r'("|[a-z] )-0\.0+\b', shown)  # as a text or in one
    assert '"+0.00"' in shown
    assert "crafts +0.0" in shown
    matrix = forgetting_matrix(results)
    assert matrix is not None
    texts = [text.get_text() for text in matrix.axes[0].texts]
    assert "+0.0" in texts
    assert "-0.0" not in texts
