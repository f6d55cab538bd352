"""The running sweep on the terminal: a live table, or plain lines."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from builders import (
    BEGAN,
    GAIN,
    LOSS,
    OOD,
    base_record,
    measurement,
    repeat_of,
    running,
    sweep_config,
    sweep_record,
    trial,
)
from rich.console import Console

from analysis.results.formatting import duration
from trainables import metric_keys
from trainables.records.schema import TrialRecord, TrialStatus
from tune.terminal.console import ConsoleListener

SWEEP = sweep_record(sweep_config(trials=20))
BASE = base_record(metrics={GAIN: 0.4, metric_keys.RETENTION_ACC: 0.65, LOSS: 0.0, OOD: 0.38})


class Clock:
    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now


def begun(number: int, metrics: dict[str, float] | None = None, **fields: Any) -> TrialRecord:
    """A running trial; those of this file begin when the clock does."""
    return running(number, metrics, started=BEGAN, **fields)


def complete(number: int, gain: float = 0.5, seconds: float = 60.0, **fields: Any) -> TrialRecord:
    return trial(number, {GAIN: gain, LOSS: 0.01}, started=BEGAN, seconds=seconds, **fields)


def failed(number: int, reason: str, seconds: float = 1.0, **fields: Any) -> TrialRecord:
    fields = {"status": TrialStatus.FAILED, **fields}
    return trial(number, reason=reason, started=BEGAN, seconds=seconds, **fields)


def terminal(width: int = 100, height: int = 30) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        height=height,
        color_system=None,
        _environ={},
    )


def no_terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, _environ={})


def listen(console: Console | None = None, clock: Clock | None = None, **config: Any):
    """A listener for a sweep with this configuration."""
    config = sweep_config(**{"trials": 20, **config})
    return ConsoleListener(config, console or no_terminal(), clock or Clock())


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_frame(console: Console) -> list[str]:
    """What stays on the screen when the display has stopped."""
    drawn = re.split(r"\x1b\[2K(?:\x1b\[1A\x1b\[2K)+", text(console))[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "").rstrip().splitlines()


def test_plain_lines_report_each_event():
    console, clock = no_terminal(), Clock()
    listener = listen(console, clock)
    warned = ["base at chance", "[b] odd", "base at chance"]
    sample = {"context": "Question: [b]\nAnswer:", "learned": " 2</s>"}
    base = base_record(metrics=BASE.metrics, warnings=warned, sample=sample)
    listener.sweep_started(SWEEP, base, [])
    listener.trial_started(begun(0))
    listener.trial_started(begun(1, method="full", attempt=2))
    curve = {metric_keys.TRAIN_LOSS: 0.7}
    listener.measured(begun(0, curve, step=60), measurement(60, curve))
    evaluated = {metric_keys.TRAIN_LOSS: 0.512, GAIN: 0.733, LOSS: -0.0214, OOD: 0.7}
    listener.measured(begun(0, evaluated, step=120), measurement(120, evaluated))
    at = {"strength": 0.4, "metrics": {GAIN: 0.7, LOSS: 0.001}}
    listener.point_measured(begun(0), measurement(120).model_copy(update=at))
    clock.now += 60
    listener.trial_ended(complete(0))
    reason = "ValueError: [/red] \x1b[31mbad\n  thing " + "x" * 100
    listener.trial_ended(failed(1, reason, 3.0, status=TrialStatus.OUT_OF_MEMORY))
    listener.sweep_ended([])
    assert text(console).splitlines() == [
        r"a training sample, context: 'Question: [b]\nAnswer:'",
        "a training sample, learned: ' 2</s>'",
        "warning: base at chance",
        "warning: [b] odd",
        "base: in-domain 0.400, retention 0.650, forgetting +0.000, OOD 0.380",
        "trial 0 started: lora, rank 8, alpha 16, lr 3.2e-04",
        "trial 1 started again, attempt 2: full, lr 3.2e-04",
        "trial 0 step 120: loss 0.512, in-domain 0.733, forgetting -0.021, OOD 0.700",
        "trial 0 at strength 0.4: in-domain 0.700, forgetting +0.001",
        # 18 trials of 60 s that wait, two at a time.
        "trial 0 complete after 1 min 00 s "
        "(1/20 finished, 1 running, 1 min 00 s elapsed, about 9 min 00 s left)",
        f"trial 1 out of memory after 3 s: ValueError: [/red] bad thing {'x' * 100} "
        "(2/20 finished, 1 min 00 s elapsed, about 9 min 00 s left)",
    ]


def test_the_table_has_the_base_first_and_all_columns():
    console = terminal(width=82)
    listener = listen(console)
    start = SWEEP.provenance.model_copy(update={"warnings": ("careful", "a large batch")})
    sweep = SWEEP.model_copy(update={"provenance": start})
    listener.sweep_started(sweep, base_record(metrics=BASE.metrics, warnings=["careful"]), [])
    listener.trial_started(begun(0))
    evaluated = {metric_keys.TRAIN_LOSS: 0.512, GAIN: 0.733, LOSS: 0.0214, OOD: 0.7}
    listener.measured(begun(0, evaluated, step=120), measurement(120, evaluated))
    # A point of the training curve moves the loss and leaves the scores.
    curve = {metric_keys.TRAIN_LOSS: 0.3}
    listener.measured(begun(0, curve, step=120), measurement(120, curve))
    listener.trial_started(begun(1, method="full"))
    listener.sweep_ended([])
    header, titles, *rows = last_frame(console)
    assert header == "tiny: 0/20 finished, 2 interrupted, 0 s elapsed"
    assert [" ".join(line.split()) for line in (titles, *rows)] == [
        "trial recipe capacity lr step loss in-domain forgetting OOD status",
        "base - - - - - 0.400 +0.000 0.380 -",
        "0 lora rank 8 3.2e-04 120 0.300 0.733 +0.021 0.700 interrupted",
        "1 full - 3.2e-04 - - - - - interrupted",
    ]
    assert text(console).count("careful") == text(console).count("a large batch") == 1
    assert "trial 0 started" not in text(console)
    assert not [line for line in (header, titles, *rows) if len(line) > 82]


@pytest.mark.parametrize(("width", "height"), [(30, 3), (30, 24), (80, 12), (160, 24)])
def test_hundreds_of_trials_fit_the_terminal(width, height):
    console = terminal(width, height)
    listener = listen(console, trials=500)
    listener.sweep_started(SWEEP, BASE, [complete(n) for n in range(300)])
    for number in range(300, 310):
        listener.trial_started(begun(number))
    listener.sweep_ended([])
    frame = last_frame(console)
    assert len(frame) <= max(height - 1, 4)
    assert max(len(line) for line in frame) <= width
    assert "status" in frame[1]
    assert "…" in frame[-1]


def test_running_trials_come_first_then_the_best_then_the_newest():
    console = terminal(height=20)
    listener = listen(console, trials=300)
    listener.sweep_started(SWEEP, BASE, [])
    for number in range(200):
        gain = {17: 0.9, 23: 0.8, 5: 0.7}.get(number, 0.5)
        listener.trial_ended(complete(number, gain))
    listener.trial_ended(trial(200, {GAIN: 0.95}, TrialStatus.STOPPED_EARLY))
    for number in range(201, 210):
        listener.trial_started(begun(number))
    listener.sweep_ended([])
    frame = last_frame(console)
    shown = [int(line.split()[0]) for line in frame[3:-1]]
    assert shown[:9] == list(range(201, 210))
    assert shown[9:] == [17, 23, 5, 200, 199, 198][: len(shown) - 9]
    assert len(shown) >= 13
    assert frame[-1].startswith(f"… and {210 - len(shown)} more")


def test_events_while_the_table_is_drawn_do_not_deadlock():
    console = terminal()
    listener = listen(console, trials=400)
    listener.sweep_started(SWEEP, BASE, [])
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            listener._live.refresh()
            time.sleep(0.001)  # or it takes the lock again before anyone else can

    with ThreadPoolExecutor() as pool:
        drawing = pool.submit(draw)
        for number in range(40):
            listener.trial_started(begun(number))
            listener.trial_ended(failed(number, "r"))
        done.set()
        drawing.result(20)
    listener.sweep_ended([])
    assert text(console).count("failed after 1 s: r") == 40


def test_interrupted_trials_are_reported_and_not_counted_as_running():
    console = no_terminal()
    listener = listen(console)
    listener.sweep_started(SWEEP, BASE, [])
    for number in (1, 2):
        listener.trial_started(begun(number))
    listener.trial_interrupted(begun(1, reason="its process or node was lost:\nSocket closed."))
    listener.trial_interrupted(begun(2))
    assert listener._progress() == "0/20 finished, 2 interrupted, 0 s elapsed"
    listener.trial_started(begun(2, attempt=2))
    assert listener._progress() == "0/20 finished, 1 running, 1 interrupted, 0 s elapsed"
    listener.sweep_stopping()
    assert "trial 1 interrupted: its process or node was lost: Socket closed;" in text(console)
    assert "trial 2 interrupted: its node is going away;" in text(console)
    assert "1 running trial\n" in text(console)


def test_time_left_without_waiting_trials_is_that_of_the_longest():
    clock = Clock()
    listener = listen(clock=clock, trials=4)
    for number in range(4):
        listener.trial_started(begun(number))
    for number in range(2):
        listener.trial_ended(complete(number, seconds=100))
    clock.now += 70
    assert "about 30 s left" in listener._progress()
    clock.now += 40
    assert "left" not in listener._progress()


def test_time_left_ends_with_the_hours_budget_and_one_trial_more():
    clock = Clock()
    listener = listen(clock=clock, budget={"trials": 40, "hours": 1})
    listener.trial_ended(trial(0, started=BEGAN, seconds=100))
    clock.now += 3300
    assert listener._progress().endswith(f"about {duration(300 + 100)} left")
    clock.now += 300
    assert "left" not in listener._progress()


def test_earlier_runs_and_the_repeats_of_winners_are_counted():
    console = no_terminal()
    listener = listen(console, trials=4, confirm={"top_k": 1, "seeds": 2})
    points = [complete(n, gain=0.1 * n, learning_rate=1e-4 * (1 + n)) for n in range(4)]
    earlier = [repeat_of(points[2], 4, {}), repeat_of(points[2], 5, {})]
    listener.sweep_started(SWEEP, BASE, [*points[:3], *earlier])
    assert "3 trials and 2 repeats of earlier runs: 5 complete" in text(console)
    assert listener._progress().startswith("5/6 finished, ")
    listener.trial_started(begun(3))
    assert listener._progress().startswith("5/6 finished, 1 running, ")


def test_objectives_on_single_tasks_keep_their_columns_in_a_narrow_terminal():
    aims = ["forgetting/hellaswag", "in_domain/extraction/exact_match", "forgetting/arc_challenge"]
    roles = {"in_domain": ["extraction"], "retention": ["hellaswag", "arc_challenge"]}
    objectives = [{"metric": metric, "mode": "min"} for metric in aims]
    measured = {GAIN: 0.5, LOSS: 0.01} | dict.fromkeys(aims, 0.123)
    for width, titles in (
        (80, ["trial", "in-domain", *aims[:2], "status"]),
        (99, ["trial", *aims, "status"]),
        (100, ["trial", "OOD", *aims, "status"]),
    ):
        console = terminal(width)
        listener = listen(console, eval=roles, objectives=objectives)
        listener.sweep_started(SWEEP, BASE, [trial(0, measured)])
        listener.sweep_ended([])
        _, header, _, row = last_frame(console)
        assert header.split() == titles, width
        assert row.count("0.123") == sum(aim in titles for aim in aims)


ON_A_TERMINAL = """
import os, sys, warnings
sys.path.insert(0, {tests!r})
from pathlib import Path
from builders import GAIN, base_record, running, sweep_config, sweep_record, trial
from tune.terminal.log_redirect import redirect_logs
from tune.terminal.console import ConsoleListener

with redirect_logs(Path({log!r})) as console:
    assert tuple(console.size) == (91, 17), console.size
    config = sweep_config(trials=400)
    listener = ConsoleListener(config, console)
    history = [trial(n, {{GAIN: 0.5}}) for n in range(200)]
    listener.sweep_started(sweep_record(config), base_record(warnings=["careful"]), history)
    listener.trial_started(running(200))
    os.write(2, b"from a library\\n")
    warnings.warn("a library's warning")
    raise RuntimeError("the driver broke")
"""


def test_on_a_real_terminal_the_table_is_drawn_and_a_failure_restores_the_cursor(tmp_path):
    log = tmp_path / "log"
    code = ON_A_TERMINAL.format(tests=str(Path(__file__).parents[2]), log=str(log))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 17, 91, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,  # the size must come from stdout's terminal
        stdout=slave,
        stderr=slave,
        env=environment | {"TERM": "xterm-256color", "PYTHONUTF8": "1"},
    )
    os.close(slave)
    received = bytearray()
    with suppress(OSError):  # Linux's way to say that the other end is closed
        while chunk := os.read(master, 65536):
            received += chunk
    os.close(master)
    assert process.wait() == 1
    plain = re.sub(r"\x1b\[[0-9;]*m", "", received.decode())  # Python 3.13 colours tracebacks
    for shown in ("careful", "in-domain", "running", "… and "):
        assert shown in plain
    assert "library" not in plain
    assert plain.index("\x1b[?25l") < plain.index("\x1b[?25h")
    assert plain.index("\x1b[?25h") < plain.index("RuntimeError: the driver broke")
    logged = log.read_text()
    for line in ("from a library\n", "UserWarning: a library's", "RuntimeError: the driver broke"):
        assert line in logged
