"""The W&B project of a sweep, settled before anything runs: its runs and its views share it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from trainables.errors import Fault, UserError
from trainables.files.storage import Location, join
from trainables.records.ledger import Ledger
from tune.config.sweep_config import SweepConfig, project_name
from tune.tracking.wandb_variables import asked_mode

_PROJECT, _ENTITY = "WANDB_PROJECT", "WANDB_ENTITY"


def in_its_project(config: SweepConfig, output_dir: Location) -> SweepConfig:
    """The configuration with the project that the file names, else the sweep's, else W&B's own.

    A sweep that has begun keeps its project, and the entity that it named or has been online with,
    whatever the environment of a later start says.

    Raises:
        UserError: W&B takes no project of that name, and is not disabled.
    """
    found = {"project": _project_of_environment(config), "entity": os.environ.get(_ENTITY)}
    found |= {field: value for field, value in _recorded(config.name, output_dir).items() if value}
    given = config.wandb.model_fields_set
    update = {field: value for field, value in found.items() if value and field not in given}
    return config.model_copy(update={"wandb": config.wandb.model_copy(update=update)})


def keep_entity(entity: str, location: Location) -> None:
    """Record with a sweep that has begun whose project its runs are in."""
    with suppress(OSError, UserError):  # the next record cannot be written either
        ledger = Ledger(location)
        if ledger.exists():
            record = ledger.sweep()
            section: Any = record.config.get("wandb", {})
            config = {**record.config, "wandb": {**section, "entity": entity}}
            ledger.write_sweep(record.model_copy(update={"config": config}))


def _recorded(name: str, output_dir: Location) -> dict[str, Any]:
    # No network, no such store, a damaged record: the sweep says so; or a name that W&B refuses.
    with suppress(OSError, ValueError, UserError):
        ledger = Ledger(join(output_dir, name))
        if ledger.exists():
            section: Any = ledger.sweep().config.get("wandb", {})
            project = project_name(section.get("project", ""))
            return {"project": project, "entity": section.get("entity")}
    return {}


def _project_of_environment(config: SweepConfig) -> str | None:
    try:
        return project_name(project) if (project := os.environ.get(_PROJECT)) else None
    except ValueError as error:
        if asked_mode(config.wandb) == "disabled":
            return None
        # W&B starts with no wrong project, even if it is not used.
        rule, _, remedy = str(error).partition("; ")
        raise UserError([Fault(_PROJECT, rule, remedy)]) from None
