"""The command, code and versions that a sweep was started with."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainables.records.sweep_record import Provenance, SweepRecord

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
# These do not decide a trial's numbers.
_WITHOUT_PART = ("ray", "optuna", "wandb")


def provenance() -> Provenance:
    """The provenance of this process, now."""
    versions = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Provenance(
        created=time.time(),
        command=shlex.join(["python", *sys.argv]),
        git_commit=_git_commit(),
        python=platform.python_version(),
        versions=versions,
    )


def version_warnings(sweep: SweepRecord) -> Iterator[str]:
    """A warning if packages that decide a trial's numbers have changed since the first start."""
    first = (*sweep.earlier, sweep.provenance)[0].versions
    changed = [
        f"{name} {first[name]} (now {now})"
        for name, now in sweep.provenance.versions.items()
        if name not in _WITHOUT_PART and first.get(name, now) != now
    ]
    if changed:
        yield (
            f"the sweep began with {', '.join(changed)}: where these compute otherwise, "
            "trials differ by that alone; install the earlier versions, or give the sweep another "
            "name"
        )


def warned(sweep: SweepRecord, *warnings: str) -> SweepRecord:
    """The record with more warnings of its newest start."""
    newest = sweep.provenance
    newest = newest.model_copy(update={"warnings": (*newest.warnings, *warnings)})
    return sweep.model_copy(update={"provenance": newest})


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
