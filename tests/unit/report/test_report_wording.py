"""What the report says is of what it shows: counts, legends, captions, texts for screen readers."""

from __future__ import annotations

import re
import shlex
from html import unescape
from itertools import pairwise

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.conclusions import Conclusion, conclude
from analysis.report import cost
from analysis.report.answer import answer
from analysis.report.curves import curves_figure
from analysis.report.formats import as_markdown
from analysis.report.inspection_section import inspection_figures
from analysis.report.page import render
from analysis.report.rank_section import rank_figure, rate_figure, step_size_figure
from analysis.report.task_section import flips
from analysis.report.trade_off_section import hypervolume_figure, trade_off_figure
from analysis.results.formatting import how_many
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.inspection.inspection_records import (
    InspectionFolder,
    InspectionRecord,
    MatrixChange,
)
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC
from trainables.records.item_records import items_file, write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus

ONE = SyntheticSweep(trials=1, items=4, full_every=0, ranks=(1,))


def results_of(folder, *sweeps: SyntheticSweep) -> Results:
    return Results(open_sweeps([sweep.write(folder / sweep.name) for sweep in sweeps]))


def text_of(html: str) -> str:
    """What a reader sees, without charts."""
    shown = re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", "", shown).split())


def test_one_of_anything_is_told_of_in_the_singular(tmp_path):
    results = results_of(tmp_path, ONE)
    html = render(results)
    labels = re.findall(r'aria-label="(.*?)"', html)
    hovers = [chart.data[0]["hovertext"] for chart in rate_figure(results).charts]
    assert hovers[0][0][0].endswith("<br>1 trial")
    assert not re.search(r"\b1 ((ringed|complete|full|LoRA) )?(trials|ranks)\b", html)
    assert any("of 1 complete trial:" in label for label in labels)
    assert "holds the one ringed trial to which no other is" in text_of(html)


def test_the_one_trial_of_a_method_or_sweep_is_told_of_in_the_singular(tmp_path):
    both = results_of(tmp_path, SyntheticSweep(trials=3, items=4, full_every=2))
    told = [conclusion.evidence for conclusion in conclude(both)]
    assert any("best of 2 full and of 1 LoRA trial, picked" in evidence for evidence in told)
    other = SyntheticSweep(trials=1, items=4, name="other", full_every=1)
    sweeps = results_of(tmp_path / "two", SyntheticSweep(trials=4, items=4), other)
    told = [conclusion.evidence for conclusion in conclude(sweeps)]
    assert any("best of 1 trial of other and of 4 of synthetic" in evidence for evidence in told)


@pytest.mark.parametrize(
    ("status", "trials", "says"),
    [
        (TrialStatus.STOPPED_EARLY, 2, "None of 2 trials can be recommended; what did not run to"),
        (
            TrialStatus.FAILED,
            1,
            "The only trial cannot be recommended; what did not run to its end",
        ),
        (TrialStatus.RUNNING, 1, "The only trial cannot be recommended."),
    ],
)
def test_a_page_without_an_answer_says_how_many_trials_it_has_and_what_is_told_of_them(
    tmp_path, status, trials, says
):
    sweep = SyntheticSweep(trials=trials, items=4, failures=dict.fromkeys(range(trials), status))
    results = results_of(tmp_path, sweep)
    assert says in text_of(render(results))
    told = "No trial can be recommended: none is complete with every objective."
    assert conclude(results)[0] == Conclusion(told, how_many(trials, "trial"), "too few data")


def test_a_trial_without_an_end_is_not_said_to_run_as_its_driver_may_be_gone(tmp_path):
    sweep = SyntheticSweep(trials=2, items=4, budget=4, failures={1: TrialStatus.RUNNING})
    html = render(results_of(tmp_path, sweep))
    assert "1 of 4 trials ended, 1 running or interrupted" in html
    assert '<td class="short">running or interrupted</td>' in html


@pytest.mark.parametrize(("without_end", "told"), [((1,), "1 is"), ((1, 2), "2 are")])
def test_while_some_have_no_end_it_is_not_said_that_all_ran_to_theirs(tmp_path, without_end, told):
    running = dict.fromkeys(without_end, TrialStatus.RUNNING)
    results = results_of(tmp_path, SyntheticSweep(trials=4, items=4, failures=running))
    says = "So far no trial failed, and none was stopped early; "
    for shown in (text_of(render(results)), as_markdown(results)):
        assert f"{says}{told} running or interrupted." in shown
        assert "Nothing:" not in shown


def test_legends_name_what_is_drawn_and_nothing_else(tmp_path):
    lonely = SyntheticSweep(trials=1, items=4, name="lonely", full_every=1)
    results = results_of(tmp_path, SyntheticSweep(trials=8, items=4), lonely)
    for figure in (hypervolume_figure(results), rank_figure(results)):
        assert [key.name for key in figure.legend] == ["synthetic"]
    assert "lonely" in [key.name for key in trade_off_figure(results).legend]


def test_curves_of_trials_that_did_not_run_to_their_end_are_grey_and_said_to_be(tmp_path):
    failed = SyntheticSweep(trials=2, items=4, failures=dict.fromkeys((0, 1), TrialStatus.FAILED))
    grey = curves_figure(results_of(tmp_path, failed))
    assert [(key.name, key.colour) for key in grey.legend] == [("not complete", "@muted")]
    assert {trace["line"]["color"] for c in grey.charts for trace in c.data} == {"@muted"}
    assert "in grey one that did not run to its end" in grey.caption
    html = render(results_of(tmp_path / "page", failed))
    assert '<i class="line" style="--colour: var(--muted)"></i>not complete</li>' in html
    coloured = curves_figure(results_of(tmp_path / "whole", ONE))
    assert [key.name for key in coloured.legend] == ["rank 1"]
    html = render(results_of(tmp_path / "coloured", ONE))
    assert '<i class="line" style="--colour: var(--rank-1)"></i>rank 1</li>' in html
    assert re.search(r":root \{ --rank-1: rgb\(\d+, \d+, \d+\); \}", html)


@pytest.mark.parametrize(
    ("full_every", "says", "not_said"),
    [(0, "LoRA coloured by rank", "full fine-tuning"), (1, "full fine-tuning as", "LoRA")],
)
def test_a_screen_reader_is_told_of_the_methods_that_there_are(
    tmp_path, full_every, says, not_said
):
    results = results_of(tmp_path, SyntheticSweep(trials=3, items=4, full_every=full_every))
    for chart in trade_off_figure(results).charts:
        assert says in chart.says
        assert not_said not in chart.says


def test_a_screen_reader_is_told_the_values_of_the_map_of_rates(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=8, items=4))
    for chart in rate_figure(results).charts:
        [drawn] = chart.data
        for rank, row in zip(drawn["y"], drawn["text"], strict=True):
            own = [f"{t} at {lr}" for lr, t in zip(drawn["x"], row, strict=True) if t]
            assert f"Rank {rank}: {', '.join(own)}" in chart.says


def test_headings_leave_no_level_out(tmp_path):
    levels = list(map(int, re.findall(r"<h(\d)", render(results_of(tmp_path, ONE)))))
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_what_was_seen_inside_is_explained_as_far_as_it_is_shown(tmp_path):
    folder = SyntheticSweep(trials=3, items=4).write(tmp_path)
    matrix = MatrixChange(
        layer=0,
        module="q_proj",
        shape=(8, 8),
        rank_limit=4,
        relative_norm=0.1,
        singular_values=(2.0, 1.0),
    )
    for number in range(3):
        trial = f"synthetic-id-{number:04d}"
        matrices = (matrix, matrix.model_copy(update={"relative_norm": 0.3 + number}))
        InspectionFolder(folder).write(
            InspectionRecord(number=number, trial_id=trial, matrices=matrices)
        )
    results = Results(open_sweeps([folder]))
    _, spectra, against = inspection_figures(results)
    assert [chart.key for chart in spectra.charts] == ["spectra"]
    assert "hidden states" not in spectra.caption
    assert [chart.key for chart in against.charts] == ["norms"]
    assert "intruder" not in against.caption
    assert against.charts[0].layout["yaxis"]["title"]["text"] == "forgetting (base minus tuned)"
    [points] = against.charts[0].data
    assert points["x"] == pytest.approx([0.2, 0.7, 1.2])
    assert points["y"] == [record.metric(FORGETTING_MEAN) for record in results.complete]


def test_each_sweep_s_own_command_looks_inside(tmp_path):
    other = SyntheticSweep(trials=1, items=4, name="other")
    told = text_of(render(results_of(tmp_path / "two sweeps", ONE, other)))
    commands = re.findall(r"python -m analysis inspect (.+?)(?:,| do it)", unescape(told))
    places = [str(tmp_path / "two sweeps" / name) for name in ("synthetic", "other")]
    assert [shlex.split(place) for place in commands] == [[place] for place in places]


def test_every_axis_of_forgetting_says_what_its_sign_means(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=8, items=4))
    charts = [*rank_figure(results).charts, *step_size_figure(results).charts]
    titles = {chart.layout["yaxis"]["title"]["text"] for chart in charts}
    named = {"in-domain accuracy", "out-of-domain accuracy", "forgetting (base minus tuned)"}
    assert titles == named


def test_the_markdown_has_the_base_beside_the_answer_and_says_that_all_ran_to_their_end(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=4, items=40))
    lines = as_markdown(results).splitlines()
    [gain] = [line for line in lines if line.startswith("- in-domain accuracy **")]
    assert f"base: {results.base.metrics[IN_DOMAIN_ACC]:.3f}" in gain
    told = "Nothing: no trial failed, and none was stopped early."
    assert lines[lines.index("## What did not run to its end") + 2] == told


def test_the_answer_of_a_sweep_that_kept_no_weights_names_none(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=4, items=4).write(tmp_path))
    for record in ledger.trials():
        ledger.write_trial(record.model_copy(update={"weights_dir": None}))
    found = answer(Results(open_sweeps([tmp_path])))
    assert found is not None
    assert found.weights is None


def test_examples_of_what_was_forgotten_and_learnt_are_of_items_that_were(tmp_path):
    results = results_of(tmp_path, SyntheticSweep(trials=4, items=40))
    trial = results.complete[-1]
    found = flips(results, trial)
    assert {one.role for one in found if one.examples} == {"retention", "in_domain", "ood"}
    for one in found:
        is_lost = one.role == "retention"
        turned = (1.0, 0.0) if is_lost else (0.0, 1.0)
        pairs = results.items.pairs(trial)[one.task]
        own = [pair for pair in pairs if (pair.base.score, pair.tuned.score) == turned]
        assert (one.forgotten if is_lost else one.gained) == len(own)
        assert [shown.target for shown in one.examples] == [p.base.target for p in own[:3]]


def test_grades_that_fall_without_a_flip_are_tested_beside_the_flips(tmp_path):
    """As the page says, and as the comparison of the same items tests them."""
    results = results_of(tmp_path, SyntheticSweep(trials=4, items=40))
    trial, ledger = results.recommendation.trial, results.sweeps[0].ledger
    items, graded = ledger.base_items(), 14
    for index, item in enumerate(items):
        if item.score == 1 and item.task == "capitals" and graded:
            graded -= 1
            items[index] = item.model_copy(update={"score": 0.6})
    write_items(items_file(ledger.folder.attempt(trial.number, 1), trial.last.step), items)
    found = flips(Results(results.sweeps), trial)
    assert {(one.forgotten, one.gained) for one in found} == {(0, 0)}
    tested = {one.task: one.p_value for one in found}
    # All signs alike, best of 4 trials, first of 6 tasks.
    assert tested.pop("capitals") == pytest.approx(2 / 2**14 * 4 * 6)
    assert set(tested.values()) == {1.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00005, "0.00005"), (0.012345, "0.0123"), (7.0, "7"), (99.97, "100"),
     (100.4, "100"), (12345.6, "12,346")],
)  # fmt: skip
def test_costs_are_written_without_an_exponent(value: float, text: str) -> None:
    """A trial of a second on a tenth of a GPU takes some 0.00003 GPU-hours."""
    assert cost.number(value) == text
