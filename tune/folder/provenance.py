"""Where a sweep comes from: versions, code, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainables.records.schema import Provenance

_PACKAGES = (
    "forgetting-sweeps",
    "ray",
    "torch",
    "transformers",
    "peft",
    "trl",
    "deepspeed",
    "optuna",
    "wandb",
    "lm_eval",
    "datasets",
)


def provenance() -> Provenance:
    """The provenance of this process, now."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Provenance(
        created=time.time(),
        command=shlex.join(["python", _from_project(sys.argv[0]), *sys.argv[1:]]),
        git_commit=_git_commit(),
        python=platform.python_version(),
        versions=versions,
    )


def _from_project(script: str) -> str:
    path, project = Path(script).resolve(), Path(__file__).resolve().parents[2]
    return str(path.relative_to(project)) if path.is_relative_to(project) else path.name


def _git_commit() -> str | None:
    """The commit of this code; None outside a repository, or if it is only installed in one."""
    try:
        found = subprocess.run(
            # An error unless the commit holds this file, too.
            ["git", "rev-parse", "HEAD", "HEAD:./provenance.py"],  # noqa: S607 - the user's git
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split()[0]
