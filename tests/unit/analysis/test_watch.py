"""`python -m analysis watch`: a sweep's folder, read while its driver writes it."""

from __future__ import annotations

import os
import pty
import signal
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
from analysis.watch import WatchedSweep, watch
from trainables import metric_keys
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialStatus
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


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "analysis", "watch", str(folder), *arguments]


def test_a_running_sweep_shows_its_trials_what_is_left_and_the_best(tmp_path: Path) -> None:
    seen = {metric_keys.TOKENS_SEEN: 75_000.0}
    trained = running(2, method="full", metrics=scores(0.75, 0.2, **seen), step=5)
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
    assert shown["base"] == "base - - - - - - 0.250 +0.000 0.125 -"
    assert shown["0"] == "0 lora 8 16 3.2e-04 10 0.500 0.500 +0.100 0.250 complete"
    assert shown["2"] == "2 full - - 3.2e-04 5 0.250 0.750 +0.200 0.375 running"
    assert shown["highest"] == (
        "highest in_domain/acc_mean so far: 0.500, trial 0 (lora, rank 8, alpha 16, lr 3.2e-04)"
    )
    # 75,000 tokens in 50 s; two trials in 250 s.
    assert shown["1,500"].startswith("1,500 tokens/s, 29 trials/h, newest record ")
    assert shown["trial"] == "trial 1 failed: no such file"


def test_the_best_is_one_that_keeps_the_constraints(tmp_path: Path) -> None:
    records = [trial(0, metrics=scores(0.9, 0.3)), trial(1, metrics=scores(0.6, 0.05))]
    record_sweep(tmp_path, *records, constraints=[f"{metric_keys.FORGETTING_MEAN} <= 0.05"])
    line = rows(watched_at(tmp_path, 10))["highest"]
    assert line.startswith(
        "highest in_domain/acc_mean so far within all constraints: 0.600, trial 1 ("
    )


def test_of_a_sweep_that_has_ended_the_trial_to_take_is_named(tmp_path: Path) -> None:
    trade_off = [(1.0, 0.9), (0.9, 0.1), (0.1, 0.0), (0.05, 0.0)]
    record_sweep(tmp_path, *(trial(n, metrics=scores(*of)) for n, of in enumerate(trade_off)))
    shown = rows(watched_at(tmp_path, 5 * SECONDS))
    assert "highest" not in shown
    assert shown["recommended:"].startswith("recommended: trial 1 (lora, rank 8, alpha 16, ")


def test_only_what_has_changed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = record_sweep(tmp_path, *(trial(n, metrics=scores(0.5, 0.1)) for n in range(3)))
    watched = watched_at(tmp_path, 10)
    read: list[int] = []
    plain = Ledger.measurements

    def noted(ledger: Ledger, number: int) -> list[Measurement]:
        read.append(number)
        return plain(ledger, number)

    monkeypatch.setattr(Ledger, "measurements", noted)
    assert watched.refresh() == []
    assert read == []
    ledger.write_trial(trial(1, status=TrialStatus.DIVERGED, reason="NaN"))
    ledger.write_trial(running(3))
    assert [record.number for record in watched.refresh()] == [1, 3]
    assert sorted(read) == [1, 3]


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


def test_what_is_seen_follows_the_driver_from_its_first_file_to_its_last(tmp_path: Path) -> None:
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
    time.sleep(0.01)
    ledger.folder.lock.touch()
    record_sweep(folder, budget={"trials": 6})
    watched.refresh()
    assert not watched.has_ended
    assert picture(watched)[0].startswith("tiny: 0/6 finished, 1 running")


@pytest.mark.parametrize(("width", "kind"), [(100, "lora "), (80, "")])
def test_what_ctrl_c_left_running_is_interrupted(tmp_path: Path, width: int, kind: str) -> None:
    seen = {metric_keys.TOKENS_SEEN: 75_000.0}
    left = running(0, metrics=scores(0.5, 0.1, **seen), step=5)
    ledger = record_sweep(tmp_path, left, trial(1, scores(0.5, 0.1)))
    time.sleep(0.01)
    ledger.folder.results_csv.touch()
    first, *_, row, ended, _, last = picture(watched_at(tmp_path, 10), width=width)
    assert first == "tiny: 1/4 finished, 1 interrupted, 3 min 20 s elapsed"
    told = " ".join(row.split())
    assert told == f"0 {kind}8 16 3.2e-04 5 0.500 0.500 +0.100 0.250 interrupted"
    assert ended.split()[-1] == "complete"
    assert last.endswith("the sweep was interrupted; the same command goes on")
    console = Console(width=200)
    with console.capture() as captured:
        watch(tmp_path, once=False, console=console)
    assert "\ntrial 0 interrupted, lora, " in captured.get()


def test_a_sweep_that_a_driver_holds_goes_on(tmp_path: Path) -> None:
    """With `--retry-failed` the records are still those of trials that have failed."""
    ledger = record_sweep(tmp_path, *(trial(n) for n in range(4)))
    watched = watched_at(tmp_path, 5 * SECONDS)
    taken, renewed = watched._clock() - 90, watched._clock() - 30
    lock, heartbeat = ledger.folder.lock, ledger.folder.heartbeat("token")
    for file, modified in ((lock, taken), (heartbeat, renewed)):
        file.touch()
        os.utime(file, (modified, modified))
    watched.refresh()
    assert not watched.has_ended
    os.utime(heartbeat, (taken, taken))  # it was killed
    watched.refresh()
    assert watched.has_ended


def test_a_folder_that_is_no_sweep_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(tmp_path), "--once"]) == 2
    assert capsys.readouterr().err == (
        f"error: SWEEP_DIR: holds no sweep: {tmp_path}; give a folder with a sweep.json\n"
    )
    folder = tmp_path / "tiny"
    folder.mkdir()
    watched = watched_at(record_sweep(folder).folder.root, 0)
    (folder / "sweep.json").unlink()
    with pytest.raises(UserError, match="holds no sweep any more"):
        watched.refresh()


def test_a_command_that_ended_before_its_sweep_began_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by Ctrl-C in its first seconds."""
    (tmp_path / "sweep.log").touch()
    assert main(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "error: SWEEP_DIR: no sweep has begun in it, and no command runs there: "
        f"{tmp_path}; start it again; {tmp_path}/sweep.log tells why\n"
    )


def test_without_a_terminal_each_change_is_a_line_until_the_end(tmp_path: Path) -> None:
    ledger = record_sweep(tmp_path, running(0), budget={"trials": 1})
    watching = subprocess.Popen(
        command(tmp_path), cwd=PROJECT, stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert watching.stdout is not None
    assert watching.stdout.readline() == "trial 0 running, lora, rank 8, alpha 16, lr 3.2e-04\n"
    ledger.append(0, measurement(5, scores(0.5, 0.1)))
    before = files(tmp_path)
    assert "step 5: loss 0.500, in-domain 0.500" in watching.stdout.readline()
    assert files(tmp_path) == before
    ledger.write_trial(trial(0, metrics=scores(0.75, 0.1)))
    assert watching.stdout.readline().startswith("trial 0 complete, step 5")
    rest = watching.stdout.read()  # `communicate` would miss what was read ahead
    watching.wait(timeout=30)
    assert rest.splitlines()[0].startswith("tiny: 1/1 finished")
    assert watching.returncode == 0


def test_ctrl_c_on_a_terminal_leaves_quietly(tmp_path: Path) -> None:
    record_sweep(tmp_path, running(0))
    terminal, end = pty.openpty()
    watching = subprocess.Popen(
        command(tmp_path), cwd=PROJECT, stdout=end, stderr=end, env=environment()
    )
    os.close(end)
    seen = b""
    while b"running" not in seen:
        seen += os.read(terminal, 4096)
    watching.send_signal(signal.SIGINT)
    while True:
        try:
            seen += os.read(terminal, 4096)
        except OSError:
            break
    assert watching.wait(30) == 130
    assert b"Traceback" not in seen
    os.close(terminal)


def test_without_a_terminal_no_line_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "no room " * 30 + "at all"
    record_sweep(tmp_path, trial(0, status=TrialStatus.FAILED, reason=reason))
    watch(tmp_path, once=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == f"trial 0 failed: {reason}"
    assert max(map(len, shown[:-1])) < 100


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "xterm", "COLUMNS": "100"}


def files(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_a_copy_of_a_sweep_that_has_ended_is_one(tmp_path: Path) -> None:
    """Its files are as old as the copying, in whatever order."""
    confirm = {"confirm": {"top_k": 1, "seeds": 2}}
    ledger = record_sweep(tmp_path, *(trial(n, scores(0.5, 0.1)) for n in range(4)), **confirm)
    ledger.folder.results_csv.touch()
    modified = ledger.folder.results_csv.stat().st_mtime + 1
    os.utime(ledger.folder.sweep_json, (modified, modified))
    ledger.folder.lock.touch()
    assert not watched_at(tmp_path, 50 * SECONDS).has_ended  # a driver has begun anew
    ledger.folder.lock.unlink()
    watched = watched_at(tmp_path, 50 * SECONDS)
    assert watched.has_ended
    assert picture(watched)[0] == "tiny: 4/6 finished, 6 min 40 s elapsed"
    assert picture(watched)[-1].endswith("the sweep has ended")


@pytest.mark.parametrize(
    "sections",
    [
        {"sampler": "grid", "budget": {"trials": 20}},
        {"sampler": "grid", "budget": {"trials": 3}},
        {"sampler": "random", "budget": {"trials": 20}, "confirm": {"top_k": 2, "seeds": 3}},
        {"sampler": "grid", "budget": {"trials": 99}, "search": {
            "lora": {"rank": [4, 8, 16], "alpha_ratio": [1, 2], "learning_rate": [1e-4],
                     "target_modules": ["all-linear", ["q_proj", "v_proj"]], "dora": [True, False],
                     "batch_size": 16}}},
    ],
    ids=["grid", "part of a grid", "no grid", "a grid of one method"],
)  # fmt: skip
def test_as_many_trials_are_planned_as_the_sweep_itself_plans(
    tmp_path: Path, sections: dict[str, object]
) -> None:
    settings = SweepSettings.of(record_sweep(tmp_path, **sections).sweep())
    assert settings.planned_trials == planned_trials(sweep_config(**sections))
