"""`python -m analysis watch`: a sweep's folder, read while its driver writes it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import (
    BEGAN,
    SECONDS,
    measurement,
    record_sweep,
    running,
    scores,
    sweep_config,
    trial,
)
from rich.console import Console

from analysis.__main__ import main
from analysis.sweep_settings import SweepSettings
from analysis.watch import WatchedSweep
from trainables import metric_keys
from trainables.records.schema import TrialStatus
from tune.search.space import planned_trials

PROJECT = Path(__file__).parents[3]


def picture(watched: WatchedSweep, width: int = 100, height: int = 40) -> list[str]:
    console = Console(width=width, height=height)
    with console.capture() as captured:
        console.print(watched.render(console))
    return captured.get().splitlines()


def watched_at(folder: Path, seconds: float) -> WatchedSweep:
    watched = WatchedSweep(folder, clock=lambda: BEGAN + seconds)
    watched.refresh()
    return watched


def rows(watched: WatchedSweep) -> dict[str, str]:
    """The table's rows by their first cell."""
    lines = [" ".join(line.split()) for line in picture(watched)]
    return {line.split()[0]: line for line in lines[2:]}


def test_a_running_sweep_shows_its_trials_what_is_left_and_the_best(tmp_path: Path) -> None:
    trained = running(2, method="full", metrics=scores(0.75, 0.2), step=5)
    assert trained.last is not None
    at = trained.last.model_copy(update={"time": trained.started + SECONDS / 2})
    record_sweep(
        tmp_path,
        trial(0, metrics=scores(0.5, 0.1)),
        trial(1, status=TrialStatus.FAILED, reason="no\nsuch file"),
        trained.model_copy(update={"last": at}),
    )
    watched = watched_at(tmp_path, 2.5 * SECONDS)
    assert not watched.has_ended
    # Both trials that ended took 100 s: half a trial and a whole one are left, one at a time.
    assert picture(watched)[0] == (
        "tiny: 2/4 finished, 1 running, 4 min 10 s elapsed, about 2 min 30 s left"
    )
    shown = rows(watched)
    assert shown["base"] == "base - - - - - 0.250 +0.000 0.125 -"
    assert shown["0"] == "0 lora rank 8 3.2e-04 10 0.500 0.500 +0.100 0.250 complete"
    assert shown["2"] == "2 full - 3.2e-04 5 0.250 0.750 +0.200 0.375 running"
    assert shown["highest"] == (
        "highest in_domain/acc_mean so far: 0.500, trial 0 (lora, rank 8, alpha 16, lr 3.2e-04)"
    )
    assert shown["29"].startswith("29 trials/h, newest record ")  # two in 250 s
    assert shown["trial"] == "trial 1 failed: no such file"


def test_the_best_keeps_the_constraints_and_at_the_end_is_recommended(tmp_path: Path) -> None:
    trade_off = [(1.0, 0.9), (0.9, 0.1), (0.1, 0.0), (0.05, 0.0)]
    bound = [f"{metric_keys.FORGETTING_MEAN} <= 0.5"]
    records = [trial(n, metrics=scores(*of)) for n, of in enumerate(trade_off)]
    record_sweep(tmp_path / "running", *records[:2], constraints=bound)
    line = rows(watched_at(tmp_path / "running", 10))["highest"]
    assert line.startswith(
        "highest in_domain/acc_mean so far within all constraints: 0.900, trial 1 ("
    )
    record_sweep(tmp_path / "ended", *records)
    shown = rows(watched_at(tmp_path / "ended", 5 * SECONDS))
    assert "highest" not in shown
    assert shown["recommended:"].startswith("recommended: trial 1 (lora, rank 8, alpha 16, ")


def test_the_best_is_named_with_the_strength_at_which_it_keeps_the_constraints(
    tmp_path: Path,
) -> None:
    bound = [f"{metric_keys.FORGETTING_MEAN} <= 0.2"]
    wild, tame = trial(0, metrics=scores(1.0, 0.9)), trial(1, metrics=scores(0.5, 0.1))
    assert wild.last is not None
    at = {"strength": 0.4, "metrics": scores(0.9, 0.1)}
    record_sweep(tmp_path, wild.after(wild.last.model_copy(update=at)), tame, constraints=bound)
    shown = rows(watched_at(tmp_path, 10))
    assert "0.900, trial 0 at strength 0.4 (lora" in shown["highest"]
    assert shown["0"].split()[7:9] == ["1.000", "+0.900"]  # a row has what training left
    (tmp_path / "results.csv").touch()
    assert rows(watched_at(tmp_path, 900))["recommended:"].startswith(
        "recommended: trial 0 at strength 0.4 (lora"
    )


def test_a_torn_line_waits_for_its_rest_and_a_damaged_record_is_named(tmp_path: Path) -> None:
    ledger = record_sweep(tmp_path, running(0, metrics=scores(0.5, 0.1), step=5))
    line = measurement(10, scores(0.75, 0.1)).model_dump_json() + "\n"
    with ledger.folder.metrics(0).open("a") as stream:
        stream.write(line[:20])
        stream.flush()
        watched = watched_at(tmp_path, 10)
        assert rows(watched)["0"].split()[5] == "5"
        stream.write(line[20:])
    watched.refresh()
    assert rows(watched)["0"].split()[5:8] == ["10", "0.250", "0.750"]
    ledger.folder.trial_json(0).write_text("{")
    watched.refresh()
    assert rows(watched)["0"].split()[5] == "10"
    assert rows(watched)["trial"].startswith("trial 0: its record cannot be read")


def test_a_driver_is_followed_from_its_first_file_to_its_last(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "lock.json").touch()
    (folder / "sweep.log").touch()
    watched = WatchedSweep(folder)
    assert watched.refresh() == []
    assert picture(watched) == ["tiny: the base is being evaluated"]
    ledger = record_sweep(folder)
    (folder / "lock.json").unlink()
    assert watched.refresh() == []
    assert picture(watched)[0].startswith("tiny: 0/4 finished")
    ledger.write_trial(running(0))
    assert len(watched.refresh()) == 1
    assert not watched.has_ended
    # Interrupted by Ctrl-C: the driver writes its table, the trial stays RUNNING.
    time.sleep(0.01)
    ledger.folder.results_csv.touch()
    assert not watched.has_ended  # what was written before that has yet to be read
    watched.refresh()
    assert watched.has_ended
    assert picture(watched)[-1].endswith("the sweep was interrupted; the same command goes on")
    time.sleep(0.01)
    ledger.folder.lock.touch()
    record_sweep(folder, budget={"trials": 6})
    watched.refresh()
    assert not watched.has_ended
    assert picture(watched)[0].startswith("tiny: 0/6 finished, 1 running")


def test_a_sweep_that_a_driver_holds_goes_on(tmp_path: Path) -> None:
    """With `--retry-failed` the records are still those of trials that have failed."""
    ledger = record_sweep(tmp_path, *(trial(n) for n in range(4)))
    ledger.folder.lock.touch()
    modified = ledger.folder.lock.stat().st_mtime
    for seconds, has_ended in ((30, False), (90, True)):  # the second was killed
        watched = WatchedSweep(tmp_path, clock=lambda now=modified + seconds: now)
        watched.refresh()
        assert watched.has_ended is has_ended


@pytest.mark.parametrize(
    ("log", "facts"),
    [
        (False, ("holds no sweep: ", "; give a folder with a sweep.json")),
        (True, ("no sweep has begun in it, and no command runs there: ", "; start it again")),
    ],
)
def test_a_folder_without_a_sweep_is_refused(
    log: bool, facts: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if log:
        (tmp_path / "sweep.log").touch()
    assert main(["watch", str(tmp_path)]) == 2
    rule, remedy = facts
    assert f"error: SWEEP_DIR: {rule}{tmp_path}{remedy}" in capsys.readouterr().err


def test_without_a_terminal_each_change_is_a_line_until_the_end(tmp_path: Path) -> None:
    ledger = record_sweep(tmp_path, running(0), budget={"trials": 1})
    watching = subprocess.Popen(
        [sys.executable, "-m", "analysis", "watch", str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "trial 0 running, lora, rank 8, alpha 16, lr 3.2e-04\n"
    ledger.append(0, measurement(5, scores(0.5, 0.1)))
    assert "step 5: loss 0.500, in-domain 0.500" in watching.stdout.readline()
    ledger.write_trial(trial(0, metrics=scores(0.75, 0.1)))
    assert watching.stdout.readline().startswith("trial 0 complete, step 5")
    rest = watching.stdout.read()  # `communicate` would miss what was read ahead
    watching.wait(timeout=30)
    assert rest.splitlines()[0].startswith("tiny: 1/1 finished")
    assert watching.returncode == 0


@pytest.mark.parametrize(
    "sections",
    [
        {"sampler": "grid", "budget": {"trials": 3}},
        {"sampler": "grid", "budget": {"trials": 99}, "search": {
            "lora": {"rank": [4, 8, 16], "alpha_ratio": [1, 2], "learning_rate": [1e-4],
                     "target_modules": ["all-linear", ["q_proj", "v_proj"]], "batch_size": 16}}},
    ],
    ids=["part of a grid", "a grid of one method"],
)  # fmt: skip
def test_as_many_trials_are_planned_as_the_sweep_plans(
    tmp_path: Path, sections: dict[str, object]
) -> None:
    settings = SweepSettings.of(record_sweep(tmp_path, **sections).sweep())
    assert settings.planned_trials == planned_trials(sweep_config(**sections))
