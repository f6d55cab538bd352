"""A trial in which nothing happens for too long loses its process, and says where it hung."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig


SCRIPT = textwrap.dedent(
    """
    import sys, time
    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement
    from trainables.training.reporter import ListReporter
    from trainables.workers.reporters import Watched

    def hang(seconds):
        time.sleep(seconds)

    total, pause, last = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    reporter = Watched(TrialConfig.model_validate_json(sys.argv[1]), ListReporter().report)
    for step in range(1, 4):
        hang(pause)
        reporter.report(Measurement(step=step, total_steps=total, metrics={}, time=0))
    hang(last)
    print("still alive")
    """
)

PASSES = textwrap.dedent(
    """
    import sys, time, torch
    from trainables.config import TrialConfig
    from trainables.models.loading import load_model
    from trainables.training.reporter import ListReporter
    from trainables.workers.reporters import Watched

    trial = TrialConfig.model_validate_json(sys.argv[1])
    model = load_model(trial.model)
    Watched(trial, ListReporter().report)
    for _ in range(6):
        time.sleep(1.1)
        model(input_ids=torch.ones(1, 2, dtype=torch.long))
    print("still alive", flush=True)
    time.sleep(50)
    """
)

HOST = textwrap.dedent(
    """
    import asyncio, sys, time
    from trainables.config import TrialConfig
    from trainables.packing.engine import SlotEngine
    from trainables.packing.host import SlotHost

    def hang(engine):
        time.sleep(60)

    async def main(trial):
        SlotEngine.step = hang
        host = SlotHost()
        await host.join(trial, slots=2)
        while True:
            print(await host.next_event(trial.trial_id), flush=True)

    asyncio.run(main(TrialConfig.model_validate_json(sys.argv[1])))
    """
)


def run(trial: TrialConfig, *arguments: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, trial.model_dump_json(), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_process_ends_and_tells_where(make_trial: Callable[..., TrialConfig]) -> None:
    done = run(make_trial(minutes_per_report=2 / 60), "9", "0", "55", script=SCRIPT)
    assert done.returncode == 1
    assert "still alive" not in done.stdout
    assert "in hang" in done.stderr


def test_each_report_winds_the_watch_and_the_last_one_stops_it(
    make_trial: Callable[..., TrialConfig],
) -> None:
    done = run(make_trial(minutes_per_report=4 / 60), "3", "1.5", "4.5", script=SCRIPT)
    assert (done.returncode, done.stdout) == (0, "still alive\n")


def test_so_does_each_pass_of_the_model_while_an_evaluation_takes_longer(
    make_trial: Callable[..., TrialConfig],
) -> None:
    done = run(make_trial(minutes_per_report=4 / 60), script=PASSES)
    assert (done.returncode, done.stdout) == (1, "still alive\n")


def test_a_host_of_slots_that_hangs_ends_and_tells_where(
    make_trial: Callable[..., TrialConfig],
) -> None:
    done = run(make_trial(minutes_per_report=0.2), script=HOST)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "in hang" in done.stderr
