"""What the sweep writes to W&B, and the analysis finds there again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from trainables.records.schema import TrialRecord, TrialStatus
from trainables.storage.storage import Location

SETTING_GROUP = "setting/group"
"""Key of a W&B run's configuration by which runs are grouped."""
BASE_GROUP = "base"
STRENGTH = "strength/value"
"""The x axis of a run's curve over the strengths of its update."""
DELETED = "was previously created and deleted"
"""What W&B says of a run that its user has deleted: it takes none under that id any more."""
RUN_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    # Collect nothing from this machine: it does not train, its metadata would show the wrong one,
    # and git state and versions are in the sweep's own record.
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
    # The sweep waits meanwhile, so a lost network must not block it for long.
    "init_timeout": 30,
}


def over_strength(metric: str) -> str:
    """Key of a metric's curve over strengths."""
    return f"strength/{metric}"


def base_run_id(sweep_id: str) -> str:
    """The id of the run that shows the sweep's base model."""
    return f"{sweep_id}-base"


def upload_command(folder: Path) -> str:
    """What uploads the offline runs in a folder; W&B joins a run's parts by their starts."""
    return f"wandb sync {_from_here(folder)}/offline-run-*"


def views_command(location: Location) -> str:
    """What makes the views of a sweep whose runs are at W&B."""
    return f"python -m analysis wandb-views {_from_here(location)}"


def _from_here(location: Location) -> str:
    if isinstance(location, Path) and location.is_relative_to(Path.cwd()):
        location = location.relative_to(Path.cwd())
    return shlex.quote(str(location))


def setting_group(record: TrialRecord) -> str:
    """Group of trials that a trial is averaged with, such as `LoRA, rank 8`.

    Trials that did not complete and repeat runs have groups of their own kind, such as
    `LoRA, rank 8, diverged` or `full fine-tuning, repeat`.
    """
    group = record.config.group_label
    if record.confirms is not None:
        return f"{group}, repeat"
    if record.status is not TrialStatus.COMPLETE:
        return f"{group}, {record.status.in_words}"
    return group
