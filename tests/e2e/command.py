"""The command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Command:
    """What a run of the command line left behind."""

    exit_code: int
    output: str
    errors: str
    seconds: float


def run_command(*arguments: object, **environment: str) -> Command:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tune" / "run.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=560,  # on a slow machine; a test's own, if shorter, comes first
        check=False,
        env={**os.environ, **environment},
    )
    return Command(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any]) -> None:
    """Until the condition holds, which must be while the command still runs, and not very late."""
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)
    assert process.poll() is None, "it ended at the same time"
