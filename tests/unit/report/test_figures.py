"""Figures for a paper: the numbers drawn are the sweep's."""

from __future__ import annotations

import pytest
from builders import adapter
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.figures import capacity_curves, trade_off
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables import metric_keys
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


def test_curves_go_through_the_best_of_each_rank_of_four_trials(results):
    [sweep] = results.sweeps
    lora = results.sized("lora", sweep)
    tried = [group for group in lora if group.is_tried]
    assert 0 < len(tried) < len(lora)
    axes = capacity_curves(results).axes
    assert len(axes) == 3
    keys = (metric_keys.IN_DOMAIN_ACC, metric_keys.OOD_ACC, metric_keys.FORGETTING_MEAN)
    for one, key in zip(axes, keys, strict=True):
        lines = [line for line in one.lines if line.get_marker() == "o"]
        for line, joined_by, own in zip(
            lines, ("-", "None"), (tried, [g for g in lora if not g.is_tried]), strict=True
        ):
            assert line.get_linestyle() == joined_by
            assert line.get_xdata().tolist() == [group.capacity.number for group in own]
            assert line.get_ydata().tolist() == [group.best.metric(key) for group in own]


def test_recipes_of_any_methods_are_drawn_over_trained_parameters(tmp_path):
    recipes = {
        "lora": (adapter(rank=4), adapter(rank=8)),
        "dora_wide": (adapter("dora", rank=16, alpha=32),),
        "full": (adapter("full"),),
        "layer_norms": (adapter("lntuning"),),
    }
    results = Results(open_sweeps([SyntheticSweep(trials=40, recipes=recipes).write(tmp_path)]))
    [first, *_] = capacity_curves(results).axes
    assert first.get_xlabel() == "trained parameters"
    [against, *_] = trade_off(results).axes
    titles = {"LoRA", "dora_wide", "full fine-tuning", "layer_norms", "base"}
    for axes in (first, against):
        assert titles <= {*axes.get_legend_handles_labels()[1]}


def test_a_folder_gets_all_figures_and_a_file_the_trade_off(tmp_path, results):
    sweep_dir = str(results.sweeps[0].ledger.folder.root)
    assert main(["figure", sweep_dir, "--to", str(tmp_path / "figures")]) == 0
    names = {"trade_off", "capacity_curves"}
    files = sorted((tmp_path / "figures").iterdir())
    assert {file.stem for file in files} == names
    assert {file.suffix for file in files} == {".pdf", ".png"}
    assert all(file.stat().st_size > 4000 for file in files)
    for file in files:
        assert file.suffix == ".png" or b"/Type3" not in file.read_bytes()
    assert main(["figure", sweep_dir, "--to", str(tmp_path / "one.svg")]) == 0
    assert (tmp_path / "one.svg").read_text().startswith("<?xml")


def test_a_link_in_the_folder_is_replaced_not_followed(tmp_path):
    folder = SyntheticSweep(trials=8).write(tmp_path / "sweep")
    (own := tmp_path / "own").write_text("mine")
    (folder / "trade_off.png").symlink_to(own)
    assert main(["figure", str(folder), "--to", str(folder)]) == 0
    assert own.read_text() == "mine"
    assert (folder / "trade_off.png").read_bytes().startswith(b"\x89PNG")


def test_figures_that_cannot_be_drawn_or_written_are_refused(tmp_path, capsys):
    failed = dict.fromkeys(range(4), TrialStatus.FAILED)
    bare = SyntheticSweep(trials=4, failures=failed).write(tmp_path / "bare")
    assert main(["figure", str(bare), "--to", str(tmp_path / "x.png")]) == 2
    assert "no complete trial with forgetting" in capsys.readouterr().err
    whole = SyntheticSweep(trials=4).write(tmp_path / "whole")
    assert main(["figure", str(whole), "--to", str(tmp_path / "x.v2")]) == 2
    assert "--to: cannot be written" in capsys.readouterr().err
