"""What changed inside the models, as tables in the summaries of the trials' W&B runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import wandb

from analysis.sweep_settings import Wandb
from analysis.sweeps import Sweep
from trainables.results.records import TrialRecord

SPECTRA, ATTENTION, REPRESENTATION = "inside/spectra", "inside/attention", "inside/representation"

_RUN_SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
    "init_timeout": 30,
}


def inside_records(sweep: Sweep) -> Iterator[tuple[TrialRecord, Any]]:
    """The inspected trials, with what `python -m analysis inside` found."""
    for trial in sweep.trials:
        file = sweep.ledger.folder.root / "inside" / f"{trial.number:04d}" / "record.json"
        if file.exists():
            yield trial, json.loads(file.read_bytes())


def log_inside(sweep: Sweep, target: Wandb, mode: Literal["online", "offline"]) -> None:
    """Add the tables to the trials' runs, each only once."""
    done_file = sweep.ledger.folder.root / "wandb" / "inside.json"
    done: dict[str, Any] = json.loads(done_file.read_bytes()) if done_file.exists() else {}
    for trial, found in inside_records(sweep):
        tables = tables_of(found)
        if tables and done.get(trial.config.trial_id) != found["key"]:
            _log(sweep, trial, target, mode, tables)
            done[trial.config.trial_id] = found["key"]
            done_file.write_text(json.dumps(done))


def tables_of(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The non-empty tables' rows: one per matrix, head or layer."""
    matrices = [
        {name: value for name, value in matrix.items() if not isinstance(value, list)}
        for matrix in found.get("matrices", [])
    ]
    attention = [
        {"layer": layer["layer"], "head": head}
        | {name: values[head] for name, values in layer.items() if isinstance(values, list)}
        for layer in found.get("attention", [])
        for head in range(len(layer["js"]))
    ]
    tables = {
        SPECTRA: matrices,
        ATTENTION: attention,
        REPRESENTATION: found.get("representation", []),
    }
    return {key: rows for key, rows in tables.items() if rows}


def _log(
    sweep: Sweep,
    trial: TrialRecord,
    target: Wandb,
    mode: Literal["online", "offline"],
    tables: dict[str, list[dict[str, Any]]],
) -> None:
    """Resume the trial's run and set its summary; nothing is added to its curves."""
    run = wandb.init(
        project=target.project,
        entity=target.entity,
        id=trial.config.trial_id,
        group=sweep.record.sweep_id,
        job_type=trial.config.method,
        dir=str(sweep.ledger.folder.root),
        mode=mode,
        reinit="create_new",
        resume="allow",
        settings=wandb.Settings(**_RUN_SETTINGS),
    )
    for key, rows in tables.items():
        run.summary[key] = _table(rows)
    run.finish(exit_code=0)


def _table(rows: list[dict[str, Any]]) -> wandb.Table:
    columns = list(rows[0])
    return wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in rows])
