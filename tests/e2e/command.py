"""The command line as a user calls it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

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
        timeout=280,
        check=False,
        env={**os.environ, **environment},
    )
    return Command(done.returncode, done.stdout, done.stderr, time.monotonic() - started)
