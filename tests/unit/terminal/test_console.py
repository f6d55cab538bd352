"""The sweep on the terminal: live table, plain lines, and chatter kept out of both."""

from __future__ import annotations

import fcntl
import io
import logging
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

from analysis.results.formatting import STATUS, duration, metric_text, one_line, points, rate
from trainables import metric_keys
from trainables.records.schema import TrialRecord, TrialStatus
from tune.terminal.console import ConsoleListener
from tune.terminal.log_redirect import _RealConsole, chatter_to

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


def test_without_in_domain_tasks_the_validation_loss_is_told_instead():
    loss = metric_keys.VALIDATION_LOSS
    base = base_record(metrics={loss: 2.5, LOSS: 0.0})
    curve = {metric_keys.TRAIN_LOSS: 0.7}
    evaluated = curve | {loss: 1.25, LOSS: 0.02}
    config = sweep_config(objectives=[{"metric": loss, "mode": "min"}])
    plain, live = no_terminal(), terminal(width=80)
    for console in (plain, live):
        listener = ConsoleListener(config, console, Clock())
        listener.sweep_started(SWEEP, base, [])
        listener.trial_started(begun(0))
        listener.measured(begun(0, evaluated, step=60), measurement(60, evaluated))
        listener.measured(begun(0, curve, step=70), measurement(70, curve))
        listener.sweep_ended([])
    assert "base: validation loss 2.500, forgetting +0.000" in text(plain)
    told = "trial 0 step 60: loss 0.700, validation loss 1.250, forgetting +0.020"
    assert told in text(plain).splitlines()
    assert "step 70" not in text(plain)  # a point of the curve
    _, titles, before, row = map(str.split, last_frame(live))
    assert titles[-4:] == ["loss", "validation", "forgetting", "status"]  # no OOD, without tasks
    assert before[-4:] == ["-", "2.500", "+0.000", "-"]
    assert row[-3:-1] == ["1.250", "+0.020"]


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


def test_a_task_is_told_of_by_its_name_though_it_looks_like_markup():
    odd = "forgetting/hard [/b]"
    named = {"retention": ["hard [/b]"]}
    config = sweep_config(eval=EVAL | named, objectives=[{"metric": odd, "mode": "min"}])
    console = terminal()
    listener = ConsoleListener(config, console, clock=Clock())
    listener.sweep_started(sweep_record(config), BASE, [trial(0, {odd: 0.25}, started=BEGAN)])
    listener.sweep_ended([])
    header, _, row, *_ = last_frame(console)[1:]
    assert odd in header
    assert "0.250" in row


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


def test_a_repeat_says_which_trial_it_confirms():
    console = no_terminal()
    listener = ConsoleListener(CONFIG, console, Clock())
    listener.trial_started(begun(5, confirms=2))
    assert (
        text(console)
        .rstrip()
        .endswith(" started: lora, rank 8, alpha 16, lr 3.2e-04, confirms trial 2")
    )


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


def test_of_more_trials_than_are_asked_for_now_no_more_have_finished_than_there_are():
    listener = ConsoleListener(sweep_config(trials=1), no_terminal(), Clock())
    listener.sweep_started(SWEEP, BASE, [complete(0), complete(1)])
    listener.trial_started(begun(2))
    assert listener._progress().startswith("2/3 finished, 1 running")


def test_one_trial_is_told_of_as_one():
    console = no_terminal()
    listener = ConsoleListener(CONFIG, console, Clock())
    listener.sweep_started(SWEEP, BASE, [complete(0)])
    listener.trial_started(begun(1))
    listener.sweep_stopping()
    assert "\n1 trial of earlier runs: 1 complete\n" in text(console)
    assert "stopping, once a checkpoint is saved of 1 running trial\n" in text(console)


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


def test_nothing_is_said_about_the_time_left_before_a_trial_has_finished():
    listener = ConsoleListener(CONFIG, no_terminal(), Clock())
    listener.trial_started(begun(0))
    assert listener._progress() == "0/20 finished, 1 running, 0 s elapsed"
    listener.trial_ended(trial(0, status=TrialStatus.CANCELLED, ended=None))
    assert "left" not in listener._progress()


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


def test_a_trial_that_outlasts_those_that_ended_has_left_what_longer_ones_took_or_its_pace_tells():
    """The first to end are those that were stopped early, which the others outlast."""
    clock = Clock()
    listener = ConsoleListener(sweep_config(trials=3), no_terminal(), clock)
    listener.trial_started(begun(0))
    listener.trial_started(begun(1))
    stopped = trial(2, status=TrialStatus.STOPPED_EARLY, started=BEGAN, seconds=100)
    listener.trial_ended(stopped)
    clock.now += 150
    at_first = measurement(0).model_copy(update={"total_steps": 200, "time": clock.now - 90})
    listener.measured(begun(0).model_copy(update={"last": at_first}), at_first)
    assert "left" not in listener._progress()
    of_quarter = {"total_steps": 200, "time": clock.now - 30}
    last = measurement(50).model_copy(update=of_quarter)
    listener.measured(begun(0).model_copy(update={"last": last}), last)
    assert "about 5 min 30 s left" in listener._progress()  # 120 s for a quarter, and 30 s since
    listener.trial_ended(complete(1, seconds=400))
    assert "about 4 min 10 s left" in listener._progress()


def test_of_trials_to_come_nothing_is_foretold_from_such_as_were_stopped_early_alone():
    listener = ConsoleListener(sweep_config(trials=4), no_terminal(), Clock())
    for number in range(3):
        stopped = trial(number, status=TrialStatus.STOPPED_EARLY, started=BEGAN, seconds=100)
        listener.trial_ended(stopped)
        assert "left" not in listener._progress()
    listener.trial_ended(complete(2, seconds=400))
    assert listener._progress().endswith("about 3 min 20 s left")


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


def test_a_grid_plans_no_more_trials_than_it_has_points():
    listener = ConsoleListener(sweep_config(trials=20, sampler="grid"), no_terminal(), Clock())
    assert listener._progress().startswith("0/5 finished")


def test_repeats_of_the_winners_are_planned_and_nothing_is_left_at_the_end():
    config = sweep_config(trials=4, confirm={"top_k": 2, "seeds": 3})
    console = terminal()
    listener = ConsoleListener(config, console, Clock())
    searched = [complete(n, gain=0.1 * n, learning_rate=1e-4 * (1 + n)) for n in range(4)]
    listener.sweep_started(SWEEP, BASE, searched)
    assert listener._progress() == "4/10 finished, 0 s elapsed, about 6 min 00 s left"
    listener.sweep_ended([])
    assert last_frame(console)[0] == "tiny: 4/10 finished, 0 s elapsed"
    few = sweep_config(trials=2, confirm={"top_k": 30, "seeds": 3})
    assert ConsoleListener(few, no_terminal(), Clock())._progress().startswith("0/8 finished")


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


def test_the_best_keep_the_constraints():
    config = sweep_config(constraints=[f"{LOSS} <= 0.05"])
    listener = ConsoleListener(config, no_terminal(), Clock())
    forgetful = trial(1, {GAIN: 0.9, LOSS: 0.3})
    listener.sweep_started(SWEEP, BASE, [complete(0, 0.5), forgetful, complete(2, 0.6)])
    assert [record.number for record in listener._table.best_first(9)] == [2, 0, 1]


def test_few_trials_are_all_shown_running_ones_first():
    console = terminal()
    listener = ConsoleListener(CONFIG, console, Clock())
    listener.sweep_started(SWEEP, BASE, [])
    for number in range(3):
        listener.trial_started(begun(number))
    listener.trial_ended(complete(0))
    listener.trial_ended(failed(2, "KeyError: k"))
    # An ending of which only the ledger knows counts as well.
    listener.sweep_ended([complete(0), complete(3)])
    frame = last_frame(console)
    assert [line.split()[0] for line in frame[3:]] == ["1", "3", "2", "0"]
    assert "trial 2 failed after 1 s: KeyError: k" in text(console)
    assert "3/20 finished" in frame[0]


def test_every_status_has_its_own_word_and_colour():
    assert set(STATUS) == set(TrialStatus)
    assert len({word.short for word in STATUS.values()}) == len(TrialStatus)
    console = terminal(color_system="standard")
    listener = ConsoleListener(CONFIG, console, Clock())
    listener.sweep_started(SWEEP, BASE, [complete(0), trial(1, status=TrialStatus.DIVERGED)])
    listener.sweep_ended([])
    assert "\x1b[32mcomplete" in text(console)
    assert "\x1b[35mdiverged" in text(console)


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


def test_the_end_of_the_sweep_stops_the_display():
    console = terminal()
    listener = ConsoleListener(CONFIG, console, Clock())
    threads = threading.active_count()
    listener.sweep_started(SWEEP, BASE, [])
    assert threading.active_count() == threads + 1
    assert text(console).count("\x1b[?25l") == 1
    listener.sweep_ended([])
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert text(console).count("\x1b[?25h") == 1
    listener.sweep_ended([])  # again: nothing to stop


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


def test_rates_and_reasons_are_short():
    assert rate(0.00032) == "3.2e-04"
    assert (points(0.0312), points(-0.0001)) == ("+3.1", "+0.0")
    assert one_line("a\n\n  b\x1b[1mc\x1b[0m\r\nd") == "a bc d"


# --- chatter -------------------------------------------------------------------------------------


def test_all_chatter_goes_to_the_log_and_the_console_to_stdout(tmp_path, capfd):
    log = tmp_path / "new" / "sweep.log"
    logger = logging.getLogger("some.library")
    with chatter_to(log) as console:
        os.write(2, b"from C++\n")
        os.write(1, b"from C\n")
        print("from print", flush=False)
        sys.stderr.write("from stderr\n")
        logger.warning("from logging")
        subprocess.run(["sh", "-c", "echo child out; echo child err >&2"], check=True)
        console.print("from the sweep")
    out, err = capfd.readouterr()
    assert (out, err) == ("from the sweep\n", "")
    said = log.read_text()
    for source in ("C++", "C", "print", "stderr", "logging"):
        assert f"from {source}\n" in said
    assert "child out\nchild err\n" in said
    assert re.search(r"^\d{4}-\S+ \S+ WARNING some.library: from logging$", said, re.MULTILINE)
    assert "from the sweep" not in said


def test_everything_is_as_before_afterwards(tmp_path, capfd):
    root = logging.getLogger()
    printed = logging.StreamHandler()
    root.addHandler(printed)
    handlers = list(root.handlers)
    streams = (sys.stdout, sys.stderr)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    try:
        with chatter_to(tmp_path / "log") as console:
            assert sys.stdout is not streams[0]
            logging.getLogger("x").warning("once")
            library = logging.StreamHandler()  # as Ray's is made: on what stderr is just now
        assert (sys.stdout, sys.stderr) == streams
        assert root.handlers == handlers
    finally:
        root.removeHandler(printed)
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    os.write(2, b"err\n")
    os.write(1, b"out\n")
    console.print("console")
    library.emit(logging.makeLogRecord({"msg": "library"}))
    del library  # and with it the last use of the stream, which must leave descriptor 2 open
    os.write(2, b"raw\n")
    assert capfd.readouterr() == ("out\nconsole\n", "err\nlibrary\nraw\n")
    assert (tmp_path / "log").read_text().count("once") == 1


def test_the_log_is_appended_to(tmp_path):
    for word in ("one", "two"):
        with chatter_to(tmp_path / "log"):
            os.write(1, word.encode())
    assert (tmp_path / "log").read_text() == "onetwo"


def test_an_exception_escapes_whole_and_is_logged(tmp_path, capfd):
    def break_off() -> None:
        with chatter_to(tmp_path / "log"):
            sys.stdout.write("half a line ")
            raise ValueError("what went wrong")

    streams = (sys.stdout, sys.stderr)
    with pytest.raises(ValueError, match="what went wrong"):
        break_off()
    assert (sys.stdout, sys.stderr) == streams
    os.write(2, b"err\n")
    assert capfd.readouterr() == ("", "err\n")
    said = (tmp_path / "log").read_text()
    assert said.startswith("half a line ")
    assert "Traceback" in said
    assert "ValueError: what went wrong" in said


def test_a_log_that_cannot_be_opened_leaves_the_streams_alone(tmp_path, capfd):
    streams = (sys.stdout, sys.stderr)
    with pytest.raises(IsADirectoryError), chatter_to(tmp_path):
        pass
    assert (sys.stdout, sys.stderr) == streams
    os.write(1, b"out\n")
    assert capfd.readouterr().out == "out\n"


def test_the_log_may_be_emptied_meanwhile(tmp_path):
    """As one does with a log that has grown too long; no hole is left at its start."""
    log = tmp_path / "log"
    with chatter_to(log):
        os.write(1, b"old\n")
        os.truncate(log, 0)
        os.write(2, b"new\n")
    assert log.read_text() == "new\n"


def test_handlers_that_write_elsewhere_stay_and_those_added_meanwhile_too(tmp_path):
    root, file = logging.getLogger(), tmp_path / "own.log"
    own, added = logging.FileHandler(file), logging.NullHandler()
    root.addHandler(own)
    try:
        with chatter_to(tmp_path / "log"):
            root.addHandler(added)
            root.warning("to both")
        assert added in root.handlers
        assert own in root.handlers
    finally:
        root.removeHandler(own)
        root.removeHandler(added)
        own.close()
    assert "to both" in file.read_text()
    assert "to both" in (tmp_path / "log").read_text()


IN_A_PIPE = """
import sys
from pathlib import Path
from tune.terminal.log_redirect import chatter_to

sys.stdout.write("before ")
with chatter_to(Path({log!r})) as console:
    sys.__stdout__.write("by a library ")
    sys.stdin.readline()
    console.print("caf\u00e9")
    print("went on")
"""


@pytest.mark.parametrize("is_read", [True, False])
def test_into_a_pipe_goes_what_is_said_however_it_ends_and_is_encoded(tmp_path, is_read):
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_PIPE.format(log=str(log))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""},
    )
    assert process.stdin
    assert process.stdout
    if not is_read:
        assert process.stdout.read(7) == "before "
        process.stdout.close()  # as `head` does
    process.stdin.write("\n")
    process.stdin.close()
    received = process.stdout.read() if is_read else ""
    assert process.wait(60) == 0
    assert received == ("before caf?\n" if is_read else "")
    assert log.read_text() == "went on\nby a library "


def test_a_terminal_without_a_size_has_the_usual_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("LINES", "20")
    master, slave = pty.openpty()  # its size is 0 by 0 until someone sets it
    try:
        with os.fdopen(slave, "w") as file:
            assert tuple(_RealConsole(file).size) == (70, 20)
    finally:
        os.close(master)


def test_without_a_terminal_nothing_redraws_even_in_colour(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with chatter_to(tmp_path / "log") as console:
        assert console.is_terminal
        listener = ConsoleListener(CONFIG, console, Clock())
        listener.sweep_started(SWEEP, BASE, [])
        listener.sweep_ended([])
    out = capfd.readouterr().out
    assert "base: in-domain" in out
    assert "\x1b[?25l" not in out


ON_A_TERMINAL = """
import os, sys, warnings
sys.path.insert(0, {tests!r})
from pathlib import Path
from builders import GAIN, base_record, running, sweep_config, sweep_record, trial
from tune.terminal.log_redirect import chatter_to
from tune.terminal.console import ConsoleListener

with chatter_to(Path({log!r})) as console:
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
