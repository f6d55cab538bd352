"""Trials read back from W&B, for users without the sweep folder: fewer columns, less data.

W&B has no items, so there are no intervals or flips; the folder is the source of truth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from trainables.errors import Fault, UserError, first_line

_KEY = "WANDB_API_KEY"
_SECONDS = 60
_PER_PAGE = 200
_OF_TRAINING = ("learning_rate", "batch_size", "epochs", "steps", "warmup", "weight_decay")
# Columns of `analysis.frame.trials_frame` and their keys in the runs' configuration.
_SETTINGS = {
    "number": "trial/number",
    "confirms": "trial/confirms",
    **{name: name for name in ("recipe", "method", "loss", "capacity", "capacity_name")},
    **{name: f"train/{name}" for name in _OF_TRAINING},
    "seed": "seed",
    "attempt": "trial/attempt",
}


def load_wandb_runs(project: str, sweep_id: str) -> pd.DataFrame:
    """Every trial of a sweep, as in `trials_frame`.

    Args:
        project: `ENTITY/PROJECT`, or `PROJECT` for the key's own entity.
        sweep_id: the runs' group; `sweep_id` in the sweep's `sweep.json`.

    Raises:
        UserError: no key in the environment, W&B refuses or cannot be reached, or no such runs.
    """
    if not os.environ.get(_KEY):
        remedy = "set it; the key is taken from nowhere else, and kept nowhere"
        raise UserError([Fault(_KEY, "is not set", remedy)])
    found = _runs(project, sweep_id)
    if not found:
        raise UserError([Fault("SWEEP_ID", f"{project} has no runs in the group {sweep_id}")])
    trials = [run for run in found if run.config.get("method") != "base"]
    if not trials:
        raise UserError([Fault("SWEEP_ID", f"the group {sweep_id} has no trial yet")])
    frame = pd.DataFrame([_row(run, sweep_id) for run in trials])
    return frame.set_index("trial_id").sort_values("number")


def _runs(project: str, sweep_id: str) -> list[Any]:
    """The group's runs; a refusal by W&B is one line, without the key."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        # With `lazy=False`, every page of runs includes configuration and summary.
        api = wandb.Api(timeout=_SECONDS, api_key=os.environ[_KEY])
        runs = api.runs(project, filters={"group": sweep_id}, per_page=_PER_PAGE, lazy=False)
        return list(runs)
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        rule = f"cannot read {project} from W&B: {first_line(error)}"
        raise UserError([Fault("PROJECT", rule)]) from error


def _row(run: Any, sweep_id: str) -> dict[str, object]:
    summary = dict(run.summary)
    settings = {column: run.config.get(key) for column, key in _SETTINGS.items()}
    if settings["steps"] is not None:  # they set the length of training
        settings["epochs"] = None
    return {
        "trial_id": run.id,
        "sweep": sweep_id,
        **settings,
        **_recipe_settings(run.config),
        "status": summary.get("status"),
        "reason": summary.get("reason"),
        **_metrics(summary),
    }


def _recipe_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run's method and loss, under their names."""
    prefixes = f"{config.get('method')}/", f"{config.get('loss')}/"
    own = {key: value for key, value in config.items() if key.startswith(prefixes)}
    return {key: " ".join(v) if isinstance(v, list) else v for key, v in own.items()}


def _metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Final values; keys of W&B's own begin with an underscore, best values with `best/`."""
    return {
        key: float(value)
        for key, value in summary.items()
        if isinstance(value, int | float) and not key.startswith(("_", "best/"))
    }
