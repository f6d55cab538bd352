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
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from builders import (
    BEGAN,
    EVAL,
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

from analysis.results.formatting import duration, metric_text
from trainables import metric_keys
from trainables.records.schema import TrialRecord, TrialStatus
from tune.terminal.console import ConsoleListener

CONFIG = sweep_config(trials=20)


SWEEP = sweep_record(CONFIG)


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


class CountingFile(io.StringIO):
    """A file that knows how often it was flushed: once for each time a console draws."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1


def terminal(width: int = 100, height: int = 30, **options: Any) -> Console:
    return Console(
        file=CountingFile(),
        force_terminal=True,
        width=width,
        height=height,
        color_system=options.pop("color_system", None),
        _environ={},
        **options,
    )


def no_terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, _environ={})


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def last_frame(console: Console) -> list[str]:
    """What stays on the screen when the display has stopped."""
    drawn = re.split(r"\x1b\[2K(?:\x1b\[1A\x1b\[2K)+", text(console))[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn).replace("\r", "").rstrip().splitlines()


def test_an_objective_that_is_no_score_is_shown_too():
    drift, nll = metric_keys.KL_BASE_TO_TUNED, metric_keys.FORGETTING_NLL
    aims = [{"metric": GAIN, "mode": "max"}, {"metric": drift, "mode": "min"}]
    texts = {**EVAL, "general_text": "general.txt"}
    config = sweep_config(objectives=aims, constraints=[f"{nll} <= 0.5"], eval=texts)
    base = base_record(metrics={GAIN: 0.4, LOSS: 0.0, drift: 0.0, nll: 0.0})
    evaluated = {metric_keys.TRAIN_LOSS: 0.7, GAIN: 0.5, drift: 0.0123, nll: 0.25, LOSS: 0.1}
    plain, live = no_terminal(), terminal(width=80)
    for console in (plain, live):
        listener = ConsoleListener(config, console, Clock())
        listener.sweep_started(SWEEP, base, [])
        listener.trial_started(begun(0))
        listener.measured(begun(0, evaluated, step=60), measurement(60, evaluated))
        listener.sweep_ended([])
    lines = text(plain).splitlines()
    assert lines[2].endswith(f"forgetting +0.000, KL from the base 0, {nll} +0.000")
    assert lines[-1].endswith(f"forgetting +0.100, KL from the base 0.0123, {nll} +0.250")
    _, titles, before, row = map(str.split, last_frame(live))
    assert titles[-4:] == ["in-domain", "forgetting", drift, "status"]
    assert (before[-2], row[-2]) == ("0", "0.0123")


def test_plain_lines_tell_the_sweep_event_by_event():
    console, clock = no_terminal(), Clock()
    listener = ConsoleListener(CONFIG, console, clock)
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
        # 18 trials of 60 s that wait, two at a time.
        "trial 0 complete after 1 min 00 s "
        "(1/20 finished, 1 running, 1 min 00 s elapsed, about 9 min 00 s left)",
        f"trial 1 out of memory after 3 s: ValueError: [/red] bad thing {'x' * 100} "
        "(2/20 finished, 1 min 00 s elapsed, about 9 min 00 s left)",
    ]


def test_earlier_runs_are_counted_as_finished():
    console = no_terminal()
    listener = ConsoleListener(CONFIG, console, Clock())
    listener.sweep_started(SWEEP, BASE, [complete(0), failed(1, "x"), trial(2, confirms=0)])
    listener.trial_ended(complete(3))
    told = "2 trials and 1 repeat of earlier runs: 2 complete, 1 failed"
    assert told in text(console)
    assert "(4/20 finished" in text(console)
    listener.trial_started(begun(1))  # once more
    assert listener._progress().startswith("3/20 finished, 1 running")


@pytest.mark.parametrize("is_live", [False, True])
def test_a_trial_that_is_interrupted_is_told_and_not_awaited_at_the_stop(is_live: bool) -> None:
    console = terminal() if is_live else no_terminal()
    listener = ConsoleListener(CONFIG, console, Clock())
    listener.sweep_started(SWEEP, BASE, [])
    for number in (1, 2):
        listener.trial_started(begun(number))
    listener.trial_interrupted(begun(1, reason="its process or node was lost:\nSocket closed."))
    listener.trial_interrupted(begun(2))
    assert listener._progress() == "0/20 finished, 2 interrupted, 0 s elapsed"
    listener.sweep_stopping()
    listener.trial_started(begun(2, attempt=2))
    shown = no_terminal()
    shown.print(listener._picture())
    header, *_, of_1, of_2 = text(shown).rstrip().splitlines()
    assert header == "tiny: 0/20 finished, 1 running, 1 interrupted, 0 s elapsed"
    assert (of_1.split()[-1], of_2.split()[-1]) == ("interrupted", "running")
    listener.sweep_stopping()
    listener.sweep_ended([])
    told = re.findall(r"(?:trial \d interrupted|stopping).*", text(console).replace("\r", ""))
    assert told == [
        "trial 1 interrupted: its process or node was lost: Socket closed; goes on in its next "
        "attempt",
        "trial 2 interrupted: its node is going away; goes on in its next attempt",
        "stopping",
        "stopping, once a checkpoint is saved of 1 running trial",
    ]


def test_the_time_left_is_that_of_the_longest_where_no_trial_waits():
    console, clock = no_terminal(), Clock()
    listener = ConsoleListener(sweep_config(trials=4), console, clock)
    for number in range(4):
        listener.trial_started(begun(number))
    listener.trial_ended(complete(0, seconds=100))
    listener.trial_ended(complete(1, seconds=100))
    clock.now += 70
    assert "about 30 s left" in listener._progress()
    clock.now += 40
    assert "left" not in listener._progress()


def test_trials_stopped_early_count_for_those_to_come_but_not_for_repeats_of_winners():
    """Repeats run to their end; 20 trials take what half of them took, quarters, halves and all."""
    config = sweep_config(trials=40, confirm={"top_k": 3, "seeds": 5})
    listener = ConsoleListener(config, no_terminal(), Clock())
    hour, stopped = 3600.0, TrialStatus.STOPPED_EARLY
    for number in range(20):
        share = 0.25 if number < 11 else 0.5 if number < 13 else 1
        status = stopped if share < 1 else TrialStatus.COMPLETE
        point: dict[str, Any] = {
            "learning_rate": 1e-4 * (1 + number),
            "metrics": {GAIN: 0.01 * number, LOSS: 0.01},
        }
        record = trial(number, status=status, started=BEGAN, seconds=share * hour, **point)
        listener.trial_ended(record)
    listener.trial_ended(failed(20, "x"))
    assert listener._progress().endswith(
        f"about {duration(19 * 10.75 / 20 * hour + 15 * hour)} left"
    )
    for number in range(21, 40):
        listener.trial_ended(trial(number, status=stopped, started=BEGAN, seconds=hour / 4))
    assert listener._progress().endswith(f"about {duration(15 * hour)} left")
    listener.trial_started(begun(40, confirms=0))
    assert listener._progress().endswith(f"about {duration(15 * hour)} left")
    listener.trial_ended(trial(40, confirms=0, started=BEGAN, seconds=hour))
    listener.trial_started(begun(41))  # as of a longer search, of which 39 trials have ended
    assert listener._progress().endswith(f"about {duration(15.5 / 39 * hour + 14 * hour)} left")


def test_what_is_left_is_what_can_start_within_the_hours_and_one_trial_more():
    config, clock = sweep_config(budget={"trials": 40, "hours": 1}), Clock()
    listener = ConsoleListener(config, no_terminal(), clock)
    listener.trial_ended(trial(0, started=BEGAN, seconds=100))
    clock.now += 3300
    assert listener._progress().endswith(f"about {duration(300 + 100)} left")
    clock.now += 300
    assert "left" not in listener._progress()


def test_once_the_search_is_over_the_repeats_of_its_winners_alone_are_counted() -> None:
    """A longer search has other winners than the one before, whose repeats stay on record."""
    config = sweep_config(trials=4, confirm={"top_k": 1, "seeds": 2})
    listener = ConsoleListener(config, no_terminal(), Clock())
    points = [complete(n, gain=0.1 * n, learning_rate=1e-4 * (1 + n)) for n in range(4)]
    earlier = [repeat_of(points[2], 4, {}), repeat_of(points[2], 5, {})]
    listener.sweep_started(SWEEP, BASE, [*points[:3], *earlier])
    assert listener._progress().startswith("5/6 finished, ")
    listener.trial_started(begun(3))
    assert listener._progress().startswith("5/6 finished, 1 running, ")
    listener.trial_ended(points[3])
    assert listener._progress().startswith("6/8 finished, ")
    for number in (6, 7):
        listener.trial_ended(repeat_of(points[3], number, {}))
    assert listener._progress().startswith("8/8 finished, ")

    # Nothing is to be repeated where no trial keeps the constraints.
    bound = sweep_config(trials=4, confirm=config.confirm, constraints=[f"{LOSS} <= 0.0"])
    listener = ConsoleListener(bound, no_terminal(), Clock())
    listener.sweep_started(SWEEP, BASE, points)
    assert listener._progress() == "4/4 finished, 0 s elapsed"


def test_the_table_has_the_base_first_and_all_columns():
    console = terminal(width=82)
    listener = ConsoleListener(CONFIG, console, Clock())
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
        "trial method rank alpha lr step loss in-domain forgetting OOD status",
        "base - - - - - - 0.400 +0.000 0.380 -",
        "0 lora 8 16 3.2e-04 120 0.300 0.733 +0.021 0.700 interrupted",
        "1 full - - 3.2e-04 - - - - - interrupted",
    ]
    assert text(console).count("careful") == text(console).count("a large batch") == 1
    assert "trial 0 started" not in text(console)
    assert not [line for line in (header, titles, *rows) if len(line) > 82]


def test_objectives_on_single_tasks_take_the_room_of_others_and_none_is_cut():
    aims = ["forgetting/hellaswag", "in_domain/extraction/exact_match", "forgetting/arc_challenge"]
    config = sweep_config(
        eval={"in_domain": ["extraction"], "retention": ["hellaswag", "arc_challenge"]},
        objectives=[{"metric": metric, "mode": "min"} for metric in aims],
    )
    measured = {GAIN: 0.5, LOSS: 0.01} | dict.fromkeys(aims, 0.123)
    means = ["in-domain", "forgetting"]
    every = ["trial", "method", "rank", "alpha", "lr", "step", "loss", *means, *aims, "status"]
    for width, titles in (
        (60, ["trial", *means, *aims[:1], "status"]),
        (80, ["trial", "in-domain", *aims[:2], "status"]),
        (98, ["trial", *aims, "status"]),
        (99, ["trial", "rank", *aims, "status"]),
        (160, every),
    ):
        console = terminal(width)
        listener = ConsoleListener(config, console, Clock())
        listener.sweep_started(
            SWEEP, base_record(metrics={GAIN: 0.4, LOSS: 0.0}), [trial(0, measured)]
        )
        listener.sweep_ended([])
        _, header, _, row = last_frame(console)
        assert header.split() == titles, width
        assert row.count("0.123") == sum(aim in titles for aim in aims)
        assert row.split()[-1] == "complete"


@pytest.mark.parametrize("height", [3, 12, 24])
@pytest.mark.parametrize("width", [30, 60, 80, 160])
def test_hundreds_of_trials_fit_the_terminal(width, height):
    console = terminal(width, height)
    listener = ConsoleListener(sweep_config(trials=500), console, Clock())
    listener.sweep_started(SWEEP, BASE, [complete(n) for n in range(300)])
    for number in range(300, 310):
        listener.trial_started(begun(number))
    for _ in range(3):
        listener._live.refresh()
    listener.sweep_ended([])
    frame = last_frame(console)
    assert len(frame) <= max(height - 1, 4)
    assert max(len(line) for line in frame) <= width
    assert "status" in frame[1]
    assert "…" in frame[-1]


def test_running_trials_come_first_then_the_best_then_the_newest():
    console = terminal(height=20)
    listener = ConsoleListener(sweep_config(trials=300), console, Clock())
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


def test_events_do_not_redraw():
    console = terminal()
    listener = ConsoleListener(CONFIG, console, Clock())
    listener.sweep_started(SWEEP, BASE, [])
    listener.trial_started(begun(0))
    assert isinstance(console.file, CountingFile)
    before, began = console.file.flushes, time.monotonic()
    metrics = {GAIN: 0.5, metric_keys.TRAIN_LOSS: 1.0}
    record = begun(0, metrics)
    for step in range(5000):
        listener.measured(record, measurement(step, metrics))
    drawn, seconds = console.file.flushes - before, time.monotonic() - began
    listener.sweep_ended([])
    assert drawn <= 4 * (seconds + 1)


def test_the_display_survives_events_while_it_draws():
    """Draws again and again while events come: neither a deadlock nor an error in the drawing."""
    console = terminal()
    listener = ConsoleListener(sweep_config(trials=400), console, Clock())
    listener.sweep_started(SWEEP, BASE, [])
    errors: list[BaseException] = []
    done = threading.Event()

    def draw() -> None:
        try:
            while not done.is_set():
                listener._live.refresh()
                time.sleep(0.001)  # or it takes the lock again before anyone else can
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    for number in range(40):
        listener.trial_started(begun(number))
        listener.trial_ended(failed(number, "r"))
    done.set()
    thread.join(20)
    assert not thread.is_alive()
    assert not errors
    listener.sweep_ended([])
    assert text(console).count("failed after 1 s: r") == 40


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        (GAIN, 0.5, "0.500"),
        (LOSS, 0.0125, "+0.013"),
        (LOSS, -0.25, "-0.250"),
        (LOSS, -0.0001, "+0.000"),
        (GAIN, -0.0001, "0.000"),
        (GAIN, None, "-"),
        (metric_keys.LEARNING_RATE, 3.2e-4, "3.2e-04"),
        (metric_keys.TRAINABLE_PARAMETERS, 1234, "1234"),
        (metric_keys.KL_BASE_TO_TUNED, 0.00041234, "0.000412"),
        (metric_keys.KL_BASE_TO_TUNED, 1.5, "1.5"),
        (metric_keys.MAX_RESERVED, 1.23456, "1.235"),
        ("ood/piqa/acc", 0.75, "0.750"),
        ("forgetting/hellaswag", 0.0125, "+0.013"),
        ("forgetting_chance_adjusted/hellaswag", 0.0125, "+0.013"),
    ],
)
def test_metrics_are_shown_in_their_style(key, value, shown):
    assert metric_text(key, value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3600, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_short(seconds, shown):
    assert duration(seconds) == shown


ON_A_TERMINAL = """
import os, sys, warnings
sys.path.insert(0, {tests!r})
from pathlib import Path
from builders import GAIN, base_record, running, sweep_config, sweep_record, trial
from tune.terminal.log_redirect import redirect_logs
from tune.terminal.console import ConsoleListener

with redirect_logs(Path({log!r})) as console:
    assert console.is_terminal, "no terminal"
    assert tuple(console.size) == (91, 17), console.size
    assert console.encoding == "utf-8", console.encoding
    config = sweep_config(trials=400)
    listener = ConsoleListener(config, console)
    base = base_record(warnings=["careful"])
    listener.sweep_started(
        sweep_record(config), base, [trial(n, {{GAIN: 0.5}}) for n in range(200)]
    )
    listener.trial_started(running(200))
    os.write(2, b"chatter of a library\\n")
    print("more chatter")
    warnings.warn("a library's warning")
    if {fails}:
        raise RuntimeError("the driver broke")
    listener.sweep_ended([])
"""


def run_on_a_terminal(tmp_path: Path, *, fails: bool) -> tuple[int, str, str]:
    """Exit code, what the terminal received, and the log."""
    log = tmp_path / "log"
    code = textwrap.dedent(ON_A_TERMINAL).format(
        tests=str(Path(__file__).parents[2]),
        log=str(log),
        fails=fails,
    )
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
    try:
        while chunk := os.read(master, 65536):
            received += chunk
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(master)
    return process.wait(), received.decode(), log.read_text()


def test_on_a_real_terminal_the_table_is_drawn_and_chatter_is_not(tmp_path):
    code, received, log = run_on_a_terminal(tmp_path, fails=False)
    assert code == 0, received
    assert "careful" in received
    assert "in-domain" in received
    assert "running" in received
    assert "… and " in received
    assert received.index("\x1b[?25l") < received.index("\x1b[?25h")
    assert "chatter" not in received
    assert log.startswith("chatter of a library\nmore chatter\n")
    assert "UserWarning: a library's warning" in log
    assert "warning" not in received.replace("warning: careful", "")


def test_on_a_real_terminal_a_failure_shows_the_cursor_and_its_traceback(tmp_path):
    code, received, log = run_on_a_terminal(tmp_path, fails=True)
    assert code == 1
    plain = re.sub(r"\x1b\[[0-9;]*m", "", received)  # Python 3.13 colours tracebacks
    assert plain.index("\x1b[?25h") < plain.index("RuntimeError: the driver broke")
    assert "RuntimeError: the driver broke" in log
