"""What a sweep says at its end."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from builders import GAIN, LOSS, OOD, running, sweep_config, trial
from rich.console import Console

from trainables import metric_keys
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.terminal.summary import print_summary

if TYPE_CHECKING:
    from tune.config.sweep_config import SweepConfig

TWO = [{"metric": GAIN, "mode": "max"}, {"metric": LOSS, "mode": "min"}]


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


SNAPSHOT = Path(__file__).with_name("summary.txt")


def test_the_summary_reads_as_recorded(tmp_path):
    """`UPDATE_SNAPSHOTS=1 pytest tests/unit/terminal` records it anew."""
    folder = tmp_path / "x"
    weights = kept(folder, 1)
    lost = "KeyError: [/bold] \x1b[31mx\n  y"
    records = [
        trial(0, {GAIN: 0.5, LOSS: -0.00004, OOD: 0.4}, learning_rate=1e-4),
        trial(1, {GAIN: 0.8, LOSS: 0.02, OOD: 0.5}, weights_dir=weights),
        trial(2, {GAIN: 1.0, LOSS: 0.1, OOD: 0.3}, method="full"),
        trial(3, {GAIN: 0.1, LOSS: 0.9, OOD: 0.3}, learning_rate=1e-2),
        *(
            trial(n, status=TrialStatus.OUT_OF_MEMORY, reason=f"tried to allocate {n} GiB on GPU 0")
            for n in (4, 5)
        ),
        trial(6, status=TrialStatus.FAILED, reason=lost),
        running(7),
        trial(8, {GAIN: 0.1}, status=TrialStatus.STOPPED_EARLY, reason="too bad"),
        trial(9, {GAIN: 0.7, LOSS: 0.03, OOD: 0.5}, confirms=1, seed=1),
    ]
    (folder / "inspection").mkdir()
    config = sweep_config(confirm={"top_k": 1, "seeds": 2}, constraints=[f"{LOSS} <= 0.2"])
    base = {GAIN: 0.4, LOSS: 0.0}
    hint = "python tune/run.py tiny --num-trials 40"
    found = summary(config, records, folder, hint, base=base).replace(str(tmp_path), "SWEEPS")
    if os.environ.get("UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(found)
    assert found == SNAPSHOT.read_text()


@pytest.mark.parametrize(
    ("base", "constraints", "gains"),
    [
        ({GAIN: 0.4, LOSS: 0.0}, [], True),
        ({GAIN: 0.6, LOSS: 0.0}, [], False),
        ({GAIN: 0.6, LOSS: 0.0, OOD: 0.2}, [f"{OOD} >= 0.3"], True),
        ({GAIN: 0.6, LOSS: 0.0, OOD: 0.3}, [f"{OOD} >= 0.3"], False),
    ],
)
def test_a_trial_that_is_no_better_than_the_base_is_reported(tmp_path, base, constraints, gains):
    records = [trial(0, {GAIN: 0.5, LOSS: 0.0, OOD: 0.4})]
    text = summary(sweep_config(constraints=constraints), records, tmp_path, base=base)
    assert f"{GAIN} {base[GAIN]:.3f}, {LOSS} +0.000" in text
    assert ("gains nothing" not in text) is gains


def test_points_of_a_trial_have_their_strengths_beside_its_number(tmp_path):
    trained = trial(3, {GAIN: 1.0, LOSS: 0.5}, weights_dir=kept(tmp_path, 3))
    at = {"strength": 0.4, "metrics": {GAIN: 0.9, LOSS: 0.05}}
    record = trained.after(trained.last.model_copy(update=at))
    text = summary(sweep_config(), [record], tmp_path, width=400)
    titles, first, second = (line.split() for line in text.splitlines()[4:7])
    assert titles[:2] == ["trial", "strength"]
    assert (first[:2], second[:2]) == (["3", "1"], ["3", "0.4"])
    assert "\nRecommended: trial 3 at strength 0.4 (lora" in text
    assert f"strength 1, it has {GAIN} 1.000, {LOSS} +0.500" in text
    assert f"{trained.weights_dir} (at strength 1; `export` writes" in text


def test_weights_of_a_moved_sweep_are_found(tmp_path):
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


def test_without_a_complete_trial_none_is_recommended(tmp_path):
    failed = trial(0, status=TrialStatus.FAILED, reason="x")
    for records, counts in (([], "no trials"), ([failed], "1 trial: 1 failed")):
        text = summary(sweep_config(), records, tmp_path)
        assert f"tiny: {counts}\n" in text
        assert "No trial to recommend" in text
        assert "weights" not in text


def test_without_a_feasible_trial_the_nearest_is_named_and_no_front(tmp_path):
    weights = "s3://bucket/x/trials/0000/weights"
    record = trial(0, {GAIN: 0.5, LOSS: 0.0}, weights_dir=weights)
    text = summary(sweep_config(constraints=[f"{LOSS} < 0"]), [record], tmp_path)
    assert "Pareto front" not in text
    assert "\nNearest: trial 0 (" in text
    assert "no trial keeps every constraint" in text
    assert f"  weights      {weights}\n" in text
    assert "--to winner" not in text  # cannot be exported from a store


def test_a_narrow_terminal_drops_the_columns_of_constraints(tmp_path):
    bounded = [metric_keys.task_forgetting(task) for task in ("hellaswag", "arc_challenge")]
    config = sweep_config(
        eval={"in_domain": ["a"], "retention": ["hellaswag", "arc_challenge"], "ood": ["d"]},
        constraints=[f"{metric} <= 0.1" for metric in bounded],
    )
    metrics = {GAIN: 0.5, LOSS: 0.01, OOD: 0.25, bounded[0]: 0.015, bounded[1]: 0.016}
    scores = ["trial", "recipe", "capacity", "lr", "in-domain", "forgetting"]
    for width, shown in ((86, bounded[:1]), (120, bounded)):
        lines = summary(config, [trial(0, metrics)], tmp_path, width=width).splitlines()
        assert lines[4].split() == [*scores, *shown, "OOD"]
        assert lines[5].split()[7:] == [*[f"{metrics[key]:+.3f}" for key in shown], "0.250"]
        absent = ", ".join(bounded[len(shown) :])
        assert (f"too wide to show: {absent}, see results.csv" in lines) == bool(absent)
