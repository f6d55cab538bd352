"""What changed inside the models, as tables in the summaries of the trials' W&B runs."""

from __future__ import annotations

import json
from typing import Any, Literal

import pandas as pd
import wandb

from analysis.inspect_models import attention, inspected, matrices, representation
from analysis.results.wandb_names import DELETED, RUN_SETTINGS
from analysis.sweeps import Sweep
from trainables.inspection.inspection_records import InspectionRecord
from trainables.records.schema import TrialRecord
from trainables.storage.disk import write_whole

SPECTRA, ATTENTION, REPRESENTATION = (
    "inspection/spectra",
    "inspection/attention",
    "inspection/representation",
)


def log_inspection(sweep: Sweep, mode: Literal["online", "offline"]) -> None:
    """Add the tables to the trials' runs, each only once; not to runs that were deleted at W&B."""
    done_file = sweep.ledger.folder.root / "wandb" / "inspection.json"
    done: dict[str, Any] = json.loads(done_file.read_bytes()) if done_file.exists() else {}
    for trial, found in inspected(sweep, sweep.trials):
        tables = tables_of(found)
        logged = [found.key, *tables]  # inspecting the same model again may have found more
        if tables and done.get(trial.config.trial_id) != logged:
            try:
                _log(sweep, trial, mode, tables)
            except wandb.Error as error:
                if DELETED not in str(error):
                    raise
            done[trial.config.trial_id] = logged
            write_whole(done_file, json.dumps(done))


def tables_of(found: InspectionRecord) -> dict[str, pd.DataFrame]:
    """The non-empty tables: one row per matrix, head or layer."""
    tables = {
        SPECTRA: matrices([found]),
        ATTENTION: attention([found]),
        REPRESENTATION: representation([found]),
    }
    left_out = ["number", "shape", "singular_values"]  # the last two are no scalars
    return {
        key: table.drop(columns=left_out, errors="ignore")
        for key, table in tables.items()
        if not table.empty
    }


def _log(
    sweep: Sweep,
    trial: TrialRecord,
    mode: Literal["online", "offline"],
    tables: dict[str, pd.DataFrame],
) -> None:
    """Resume the trial's run and set its summary; nothing is added to its curves."""
    run = wandb.init(
        project=sweep.settings.wandb.project,
        entity=sweep.settings.wandb.entity,
        id=trial.config.trial_id,
        group=sweep.record.sweep_id,
        job_type=trial.config.recipe,
        dir=str(sweep.ledger.folder.root),
        mode=mode,
        reinit="create_new",
        resume="allow",
        settings=wandb.Settings(**RUN_SETTINGS),
    )
    for key, table in tables.items():
        rows = table.astype(object).where(table.notna(), None).to_numpy().tolist()
        run.summary[key] = wandb.Table(columns=list(table), data=rows)
    run.finish(exit_code=0)
