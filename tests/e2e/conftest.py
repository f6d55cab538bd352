"""The bundled quickstart, run once through the command line for all tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """Folder of the finished sweep, and the command that made it."""
    output_dir = tmp_path_factory.mktemp("sweeps")
    command = run_command("quickstart", "--output-dir", output_dir)
    assert command.exit_code == 0, command.output + command.errors
    return output_dir / "quickstart", command
