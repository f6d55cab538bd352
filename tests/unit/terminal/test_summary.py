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
        trial(0, {GAIN: 0.5, LOSS: -0.00004, OOD: 0.4}),
        trial(1, {GAIN: 0.8, LOSS: 0.02, OOD: 0.5}, weights_dir=weights),
        trial(2, {GAIN: 1.0, LOSS: 0.1, OOD: 0.3}, method="full"),
        trial(3, {GAIN: 0.1, LOSS: 0.9, OOD: 0.3}),
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


def test_infeasible_trials_alone_give_a_recommendation_and_no_front(tmp_path):
    config = sweep_config(constraints=[f"{LOSS} < 0"])
    record = trial(0, {GAIN: 0.5, LOSS: 0.0}, weights_dir=kept(tmp_path, 0))
    text = summary(config, [record], tmp_path)
    assert "Pareto front" not in text
    assert "\nNearest: trial 0 (" in text
    assert "Recommended" not in text
    assert "--to winner   # the nearest trial" in text
    assert "no trial keeps every constraint" in text


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


def test_hundreds_of_trials_give_a_short_summary(tmp_path):
    records = [trial(n, {GAIN: n / 500, LOSS: n / 500, OOD: 0.0}) for n in range(300)]
    records += [
        trial(n, status=TrialStatus.FAILED, reason="so" * (n % 50)) for n in range(300, 600)
    ]
    text = summary(sweep_config(), records, tmp_path)
    assert "and 280 more, see results.csv" in text
    assert "and 42 more reasons, see results.csv" in text
    assert len(text.splitlines()) < 60
