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
    """Folder of the finished sweep, and the command that made it.

    Another version of the project comes first on Python's path, as one that is installed may.
    """
    output_dir, other = tmp_path_factory.mktemp("sweeps"), tmp_path_factory.mktemp("other")
    for package in ("tune", "trainables", "analysis"):
        (other / package).mkdir()
        (other / package / "__init__.py").write_text("raise ImportError('another version')\n")
    command = run_command(
        "quickstart", "--num-trials", 12, "--output-dir", output_dir, PYTHONPATH=str(other)
    )
    assert command.exit_code == 0, command.output + command.errors
    return output_dir / "quickstart", command
