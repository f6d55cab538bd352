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
        UserError: W&B takes no project of that name, or the sweep's record cannot be read.
    """
    if "project" in config.wandb.model_fields_set:
        return config
    project = _recorded(config.name, output_dir) or _of_environment() or config.wandb.project
    wandb = config.wandb.model_copy(update={"project": project})
    return config.model_copy(update={"wandb": wandb})


def _recorded(name: str, output_dir: Location) -> str | None:
    section: Any = {}
    with suppress(OSError, ValueError):  # no network, or no such store: the sweep itself says so
        ledger = Ledger(join(output_dir, name))
        if ledger.exists():
            section = ledger.sweep().config.get("wandb", {})
    project: str | None = section.get("project")
    return project


def _of_environment() -> str | None:
    try:
        return project_name(project) if (project := os.environ.get(_VARIABLE)) else None
    except ValueError as error:
        rule, _, remedy = str(error).partition("; ")
        raise UserError([Fault(_VARIABLE, rule, remedy)]) from None
