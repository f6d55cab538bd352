"""The user's `WANDB_*` variables, settled before anything runs."""

from __future__ import annotations

import os
import re

from pydantic import ValidationError

from trainables.errors import Fault, UserError, first_line
from tune.config.sweep_config import WandbConfig

_PREFIX, _MODE = "WANDB_", "WANDB_MODE"
# Keys, headers, and passwords in addresses, as in http://me:password@proxy.
_SECRET = re.compile(r"KEY|TOKEN|HEADERS|PROXY|@").search


def asked_mode(config: WandbConfig) -> str | None:
    """The sweep file's mode, else the environment's; None leaves it to W&B's own settings."""
    return config.mode or os.environ.get(_MODE) or None


def check_variables(config: WandbConfig) -> None:
    """Check that W&B takes every variable: of a wrong one, it opens no run, not even offline.

    Empty ones that it refuses, as job scripts leave them for none, are removed.

    Raises:
        UserError: it refuses a variable, and is not disabled.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}
    if not given or asked_mode(config) == "disabled":
        return
    refused = {name: rule for name, value in given.items() if (rule := _refusal(name, value))}
    for name in [name for name in refused if not given[name]]:
        del os.environ[name], refused[name]
    if refused:
        remedy = "set it otherwise or unset it, or give wandb.mode: disabled"
        raise UserError([Fault(name, rule, remedy) for name, rule in refused.items()])


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
