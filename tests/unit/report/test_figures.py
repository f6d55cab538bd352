"""Figures for a paper: the numbers drawn are the sweep's."""

from __future__ import annotations

import warnings

import pytest
import synthetic_sweep
from builders import with_metrics
from matplotlib.container import ErrorbarContainer
from matplotlib.image import imread
from small_disk import fill, small_disk
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.conclusions.rank_trends import forgetting_and_step_size, trend_over_ranks
from analysis.figures import forgetting_matrix, rank_curves, save, trade_off
from analysis.report.rank_section import rank_figure, rate_figure, step_size_figure
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables import metric_keys
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return Results(open_sweeps([SyntheticSweep(trials=16).write(tmp_path_factory.mktemp("s"))]))


def test_the_front_and_the_recommended_trial_are_ringed(results):
    taken = results.recommendation.trial
    assert taken is not results.front[0]
    ringed = {"Pareto front": results.front, "recommended": [taken]}
    for axes, key in zip(trade_off(results).axes, results.judged_by[1:], strict=False):
        drawn = {c.get_label(): c.get_offsets().tolist() for c in axes.collections}
        for label, records in ringed.items():
            assert drawn[label] == [[r.metric(key), r.metric(results.gain)] for r in records]


def test_rank_curves_go_through_the_best_of_each_rank_of_four_trials(results):
    lora = [group for group in results.groups if group.rank is not None]
    tried = [group for group in lora if group.picked_from >= 4]
    assert 0 < len(tried) < len(lora)
    axes = rank_curves(results).axes
    assert len(axes) == 3
    keys = (metric_keys.IN_DOMAIN_ACC, metric_keys.OOD_ACC, metric_keys.FORGETTING_MEAN)
    for one, key in zip(axes, keys, strict=True):
        for marker, joined_by, own in (
            ("o", "-", tried),
            ("s", "None", [group for group in lora if group not in tried]),
        ):
            line = next(line for line in one.lines if line.get_marker() == marker)
            assert line.get_linestyle() == joined_by
            assert line.get_xdata().tolist() == [group.rank for group in own]
            assert line.get_ydata().tolist() == [group.best.metric(key) for group in own]


def test_rank_curves_tell_how_many_trials_each_best_was_picked_from(results):
    lora = [group for group in results.groups if group.rank is not None]
    first, *_ = rank_curves(results).axes
    labels = [label.get_text() for label in first.get_xticklabels()]
    assert labels == [f"{group.rank}\nof {group.picked_from}" for group in lora]
    bars = [c for c in first.containers if isinstance(c, ErrorbarContainer)]
    segments = [
        segment for _, _, [drawn] in (b.lines for b in bars) for segment in drawn.get_segments()
    ]
    for group, segment in zip(sorted(lora, key=lambda g: g.picked_from < 4), segments, strict=True):
        interval = results.items.interval(group.best, metric_keys.IN_DOMAIN_ACC, group.picked_from)
        assert segment[:, 1].tolist() == pytest.approx([interval.low, interval.high])
    [band] = [patch for patch in first.patches if patch.get_alpha() == 0.16]
    full = results.full(results.sweeps[0])
    interval = results.items.interval(full.best, metric_keys.IN_DOMAIN_ACC, full.picked_from)
    assert (band.get_y(), band.get_height()) == pytest.approx(
        (interval.low, interval.high - interval.low)
    )


def test_rank_curves_mark_the_bests_that_break_a_constraint(tmp_path):
    bound = {"metric": metric_keys.IN_DOMAIN_ACC, "operator": ">=", "bound": 0.7}
    sweep = SyntheticSweep(trials=16, constraints=(bound,)).write(tmp_path)
    bounded = Results(open_sweeps([sweep]))
    first, *_ = rank_curves(bounded).axes
    bests = [group.best for group in bounded.lora_groups()]
    breaking = [record for record in bests if not bounded.keeps_constraints(record)]
    assert 0 < len(breaking) < len(bests)
    [line] = [line for line in first.lines if line.get_markerfacecolor() == "white"]
    assert line.get_xdata().tolist() == [record.rank for record in breaking]
    assert line.get_ydata().tolist() == [r.metric(metric_keys.IN_DOMAIN_ACC) for r in breaking]
    labels = [text.get_text() for text in first.get_legend().get_texts()]
    assert "breaks a constraint" in labels
    full = bounded.full(bounded.sweeps[0])
    is_told = f"full, of {full.picked_from}, breaks a constraint" in labels
    assert is_told != bounded.keeps_constraints(full.best)


def test_the_forgetting_matrix_is_written_in_its_cells(results):
    texts = [text.get_text() for text in forgetting_matrix(results).axes[0].texts]
    tasks = list(results.tasks("retention"))
    assert texts == [
        f"{100 * group.best.metric(metric_keys.task_forgetting(task)):+.1f}"
        for group in results.groups
        for task in tasks
    ]


def without_forgetting(record, sweep):
    kept = {k: v for k, v in record.last.metrics.items() if not k.startswith("forgetting/")}
    Ledger(sweep).write_trial(with_metrics(record, kept))


def test_what_was_not_finite_is_neither_drawn_nor_told_as_0(tmp_path):
    """Only in-domain accuracy decides here, so the trial is complete all the same."""
    decides = {"metric": metric_keys.IN_DOMAIN_ACC, "mode": "max"}
    sweep = SyntheticSweep(trials=16, objectives=(decides,)).write(tmp_path)
    before = Results(open_sweeps([sweep]))
    without_forgetting(before.lora_groups()[0].best, sweep)
    results = Results(open_sweeps([sweep]))
    tasks, groups = list(results.tasks("retention")), results.groups
    texts = forgetting_matrix(results).axes[0].texts
    assert len(texts) == len(tasks) * (len(groups) - 1)
    drawn = [len(axes.get_xticks()) for axes in rank_curves(results).axes]
    assert drawn == [len(results.lora_groups())] * 2 + [len(results.lora_groups()) - 1]
    assert len(rank_figure(results).charts) == 3
    (_, rates), (_, steps) = rate_figure(results).charts, step_size_figure(results).charts
    assert 0.0 not in {cell for row in rates.data[0]["z"] for cell in row}
    assert sum(len(trace["x"]) for trace in steps.data) == len(results.lora) - 1
    [told] = forgetting_and_step_size(results, results.sweeps[0])
    [of_ranks] = [c for c in trend_over_ranks(results, results.sweeps[0]) if "forget" in str(c)]
    for conclusion in (told, of_ranks):
        assert f"n = {len(results.lora) - 1} LoRA trials" in conclusion.evidence
    for record in before.lora[3:]:
        without_forgetting(record, sweep)
    results = Results(open_sweeps([sweep]))
    told = [c.statement for c in trend_over_ranks(results, results.sweeps[0])]
    assert "Too few LoRA trials to say whether forgetting rises or falls with rank." in told
    assert len(told) == len(results.scores)


@pytest.mark.parametrize(("length", "ranks"), [(14, (1, 4, 16)), (40, (1,)), (40, (1, 4, 16))])
def test_the_forgetting_matrix_shows_names_of_any_length_whole(
    tmp_path, monkeypatch, length, ranks
):
    name = ("leaderboard_bbh_logical_deduction_seven" * 2)[:length]
    monkeypatch.setitem(synthetic_sweep.TASKS, name, ("retention", 0.8))
    sweep = SyntheticSweep(trials=8, items=8, ranks=ranks, full_every=0).write(tmp_path / "sweep")
    results = Results(open_sweeps([sweep]))
    figure = forgetting_matrix(results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(figure, tmp_path / "matrix.png")
    [axes] = figure.axes
    height, width, _ = imread(tmp_path / "matrix.png").shape
    whole = figure.get_tightbbox()  # of the names, too, in inches
    assert width >= 150 * whole.width
    assert height >= 150 * whole.height
    cells = axes.get_window_extent()
    assert cells.height >= 0.3 * 150 * len(results.groups)
    assert cells.width >= 0.6 * 150 * len(results.tasks("retention"))


def test_a_folder_gets_all_figures_and_a_file_the_trade_off(tmp_path, results):
    sweep_dir = str(results.sweeps[0].ledger.folder.root)
    assert main(["figure", sweep_dir, "--to", str(tmp_path / "figures")]) == 0
    names = {"trade_off", "rank_curves", "forgetting_matrix"}
    files = sorted((tmp_path / "figures").iterdir())
    assert {file.stem for file in files} == names
    assert {file.suffix for file in files} == {".pdf", ".png"}
    assert all(file.stat().st_size > 4000 for file in files)
    for file in files:
        assert file.suffix == ".png" or b"/Type3" not in file.read_bytes()
    assert main(["figure", sweep_dir, "--to", str(tmp_path / "one.svg")]) == 0
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")


def test_a_link_in_a_sweep_s_folder_is_replaced_not_followed(tmp_path):
    folder = SyntheticSweep(trials=8).write(tmp_path / "sweep")
    (own := tmp_path / "own").write_text("mine")
    (folder / "trade_off.png").symlink_to(own)
    assert main(["figure", str(folder), "--to", str(folder)]) == 0
    assert own.read_text() == "mine"
    assert (folder / "trade_off.png").read_bytes().startswith(b"\x89PNG")


def test_full_fine_tuning_alone_is_drawn(tmp_path):
    folder = SyntheticSweep(trials=4, full_every=1).write(tmp_path / "full")
    assert {record.config.method for record in open_sweeps([folder])[0].trials} == {"full"}
    assert main(["figure", str(folder), "--to", str(tmp_path / "full.png")]) == 0


def test_what_cannot_be_drawn_or_written_is_said(tmp_path, capsys):
    failed = dict.fromkeys(range(4), TrialStatus.FAILED)
    bare = SyntheticSweep(trials=4, failures=failed).write(tmp_path / "bare")
    assert main(["figure", str(bare), "--to", str(tmp_path / "x.png")]) == 2
    assert "no complete trial with forgetting" in capsys.readouterr().err
    whole = SyntheticSweep(trials=4).write(tmp_path / "whole")
    assert main(["figure", str(whole), "--to", str(tmp_path / "x.v2")]) == 2
    assert "--to: cannot be written" in capsys.readouterr().err


def test_a_disk_that_is_full_is_told_in_a_line(tmp_path, results, capsys):
    sweep_dir = str(results.sweeps[0].ledger.folder.root)
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill(disk)
        assert main(["figure", sweep_dir, "--to", str(disk / "figures")]) == 2
    assert capsys.readouterr().err == (
        f"error: disk full: {disk}/figures has 0.0 MiB free of 0.1 MiB; make room, and type the "
        "same command again\n"
    )
