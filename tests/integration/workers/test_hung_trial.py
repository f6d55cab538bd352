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


def run(trial: TrialConfig, *arguments: str, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, trial.model_dump_json(), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_hung_trial_loses_its_process_and_says_where(
    make_trial: Callable[..., TrialConfig],
) -> None:
    done = run(make_trial(minutes_per_report=1 / 60), "9", "0", "55", script=SCRIPT)
    assert done.returncode == 1
    assert "still alive" not in done.stdout
    assert "in hang" in done.stderr


def test_each_report_restarts_the_watch_and_the_last_one_stops_it(
    make_trial: Callable[..., TrialConfig],
) -> None:
    done = run(make_trial(minutes_per_report=2 / 60), "3", "0.8", "2.2", script=SCRIPT)
    assert (done.returncode, done.stdout) == (0, "still alive\n")
