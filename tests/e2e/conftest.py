"""The bundled quickstart, run once through the command line for all tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import Command, run_command

# bitsandbytes would load the compiler into each process that imports PEFT: a second or more.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """Folder of the finished sweep, and the command that made it."""
    output_dir = tmp_path_factory.mktemp("sweeps")
    command = run_command("quickstart", "--output-dir", output_dir)
    assert command.exit_code == 0, command.output + command.errors
    return output_dir / "quickstart", command
