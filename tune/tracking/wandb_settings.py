"""Checks the user's W&B variables and settles the sweep's project, before anything runs."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from trainables.errors import Fault, UserError, first_line
from trainables.records.ledger import Ledger
from trainables.storage.storage import Location, join
from tune.config.sweep_config import SweepConfig, WandbConfig, project_name

_PREFIX, _MODE, _PROJECT, _ENTITY = "WANDB_", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"
# Keys, headers, and passwords in addresses, as in http://me:password@proxy.
_SECRET = re.compile(r"KEY|TOKEN|HEADERS|PROXY|@").search


def asked_mode(config: WandbConfig) -> str | None:
    """The sweep file's mode, else the environment's; None leaves it to W&B's own settings."""
    return config.mode or os.environ.get(_MODE) or None


def check_variables(config: WandbConfig) -> None:
    """Check that W&B accepts every variable; otherwise it opens no run, not even offline.

    Empty variables that it refuses, as job scripts leave them, are removed.

    Raises:
        UserError: it refuses a variable, and is not disabled.
    """
    if asked_mode(config) == "disabled":
        return
    remedy = "set it otherwise or unset it, or give wandb.mode: disabled"
    faults: list[Fault] = []
    for name, value in list(os.environ.items()):
        if name.startswith(_PREFIX) and (rule := _refusal(name, value)):
            if value:
                faults.append(Fault(name, rule, remedy))
            else:
                del os.environ[name]
    if faults:
        raise UserError(faults)


def _refusal(name: str, value: str) -> str | None:
    """Why W&B refuses a variable, with its value unless that may be secret; None if it does not."""
    import wandb  # takes a second, and most starts have no variable to check

    try:
        wandb.Settings().update_from_env_vars({name: value})
        return None
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
    except wandb.Error as error:
        why = first_line(error)
    shown = "" if _SECRET(f"{name}={value}") else f", got {value!r}"
    return f"is refused by W&B: {why}{shown}"


def in_its_project(config: SweepConfig, output_dir: Location) -> SweepConfig:
    """The configuration with the project that the file names, else the sweep's, else W&B's own.

    A sweep that has begun keeps its project, and the entity that it named or has been online with,
    whatever the environment of a later start says.
    """
    recorded = _recorded(config.name, output_dir)
    own: str | None = None
    with suppress(ValueError):  # a name that W&B refuses may be left where W&B is disabled
        own = project_name(os.environ.get(_PROJECT, ""))
    found = {
        "project": recorded.get("project") or own,
        "entity": recorded.get("entity") or os.environ.get(_ENTITY),
    }
    given = config.wandb.model_fields_set
    update = {field: value for field, value in found.items() if value and field not in given}
    return config.model_copy(update={"wandb": config.wandb.model_copy(update=update)})


def _recorded(name: str, output_dir: Location) -> dict[str, Any]:
    """The section `wandb` of a sweep that has begun; empty if there is none."""
    with suppress(OSError, ValueError, UserError):  # the sweep itself reports that
        ledger = Ledger(join(output_dir, name))
        if ledger.exists():
            section: Any = ledger.sweep().config.get("wandb", {})
            return dict(section)
    return {}


def keep_entity(entity: str, location: Location) -> None:
    """Record the entity with a sweep that has begun."""
    with suppress(OSError, UserError):  # the next record cannot be written either
        ledger = Ledger(location)
        if ledger.exists():
            record = ledger.sweep()
            section: Any = record.config.get("wandb", {})
            config = {**record.config, "wandb": {**section, "entity": entity}}
            ledger.write_sweep(record.model_copy(update={"config": config}))
