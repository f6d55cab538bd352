"""A trial that reports nothing for too long loses its process, and says where it hung."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

pytestmark = pytest.mark.integration

SCRIPT = textwrap.dedent(
    """
    import sys, time
    from trainables.config import TrialConfig
    from trainables.records import Measurement
    from trainables.reporter import ListReporter
    from trainables.under_ray.reporting import Watched

    def hang(seconds):
        time.sleep(seconds)

    reporter = Watched(TrialConfig.model_validate_json(sys.argv[1]), ListReporter())
    for step in range(1, 4):
        hang(0.4)
        reporter.report(Measurement(step=step, total_steps=int(sys.argv[2]), metrics={}, time=0))
    hang(3)
    print("still alive")
    """
)


def run(trial: TrialConfig, total_steps: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, trial.model_dump_json(), str(total_steps)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_process_ends_and_tells_where(make_trial: Callable[..., TrialConfig]) -> None:
    done = run(make_trial(minutes_per_report=1 / 60), total_steps=9)
    assert done.returncode == 1
    assert "still alive" not in done.stdout
    assert "in hang" in done.stderr


def test_watch_ends_with_the_last_report(make_trial: Callable[..., TrialConfig]) -> None:
    done = run(make_trial(minutes_per_report=1 / 60), total_steps=3)
    assert (done.returncode, done.stdout) == (0, "still alive\n")
