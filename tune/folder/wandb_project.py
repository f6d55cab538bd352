"""The W&B project of a sweep, settled before anything runs: its runs and its views share it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from trainables.errors import Fault, UserError
from trainables.files.storage import Location, join
from trainables.results.ledger import Ledger
from tune.config.sweep_config import SweepConfig, project_name

_VARIABLE = "WANDB_PROJECT"


def in_its_project(config: SweepConfig, output_dir: Location) -> SweepConfig:
    """The configuration with the project that the file names, else the sweep's, else W&B's own.

    A sweep that has begun stays in its project, whatever the shell that goes on with it has set.

    Raises:
        UserError: W&B takes no project of that name.
    """
    if (config.wandb.mode or os.environ.get("WANDB_MODE")) == "disabled":
        return config
    of_environment = _of_environment()  # W&B starts with no wrong one, even if it is not used
    if "project" in config.wandb.model_fields_set:
        return config
    project = _recorded(config.name, output_dir) or of_environment or config.wandb.project
    wandb = config.wandb.model_copy(update={"project": project})
    return config.model_copy(update={"wandb": wandb})


def _recorded(name: str, output_dir: Location) -> str | None:
    # No network, no such store, a damaged record: the sweep says so; or a name that W&B refuses.
    with suppress(OSError, ValueError, UserError):
        ledger = Ledger(join(output_dir, name))
        if ledger.exists():
            section: Any = ledger.sweep().config.get("wandb", {})
            return project_name(section["project"]) if "project" in section else None
    return None


def _of_environment() -> str | None:
    try:
        return project_name(project) if (project := os.environ.get(_VARIABLE)) else None
    except ValueError as error:
        rule, _, remedy = str(error).partition("; ")
        raise UserError([Fault(_VARIABLE, rule, remedy)]) from None
