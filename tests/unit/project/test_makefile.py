"""The set-up that `make` does, where the machine's Python will not do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def make(clone: Path, python: str) -> str:
    """What `make` says, which fails with this shell script as the machine's Python."""
    script = clone / "python"
    script.write_text(f"#!/bin/sh\n{python}\n")
    script.chmod(0o755)
    command = ["make", f"PYTHON={script}", ".venv/.installed"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    return done.stderr


def test_an_old_python_is_refused_before_it_makes_an_environment(clone: Path) -> None:
    old = f"{sys.executable} -c \"import sys; sys.version_info = (3, 10); exec('''$2''')\""
    errors = make(clone, f'test "$1" = -c && exec {old}\ntest "$1" = --version && echo Python 3.10')
    assert "error: Python must be 3.11 or later, got Python 3.10; type make PYTHON=" in errors
    assert not (clone / ".venv").exists()


def test_an_environment_that_cannot_be_made_whole_is_not_taken_for_one(clone: Path) -> None:
    """Debian's Python without its package for them leaves one without pip."""
    half = "mkdir -p .venv/bin && touch .venv/bin/python && chmod +x .venv/bin/python; exit 1"
    make(clone, f'test "$1" = -c && exit 0\n{half}')
    assert not (clone / ".venv").exists()
