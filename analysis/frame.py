"""A sweep as one tidy frame: a row for each trial, failed ones included."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from trainables.errors import Fault, UserError
from trainables.ledger import Ledger
from trainables.records import TrialRecord


def load_trials(sweep_dir: Path) -> pd.DataFrame:
    """Settings, status and final metrics of every trial, indexed by trial number.

    Columns of settings are named as in the W&B runs' configuration, columns of metrics by their
    keys (`trainables.metric_keys` has units and directions). What a trial never logged is NaN.

    Raises:
        UserError: the folder holds no sweep, or one that is damaged or of a newer version.
    """
    ledger = Ledger(sweep_dir)
    if not ledger.exists():
        raise UserError(
            [Fault("SWEEP_DIR", f"holds no sweep: {sweep_dir}", "give a folder with a sweep.json")]
        )
    ledger.check()
    rows = [_row(record) for record in ledger.trials()]
    if not rows:
        raise UserError([Fault("SWEEP_DIR", f"has no trial yet: {sweep_dir}")])
    return pd.DataFrame(rows).set_index("number")


def load_base(sweep_dir: Path) -> dict[str, float]:
    """The base model's metrics."""
    return Ledger(sweep_dir).base().metrics


def _row(record: TrialRecord) -> dict[str, object]:
    config = record.config
    lora = config.lora
    return {
        "number": record.number,
        "trial_id": config.trial_id,
        "method": config.method,
        "lora/rank": lora.rank if lora else None,
        "lora/alpha": lora.alpha if lora else None,
        "lora/scaling": lora.scaling if lora else None,
        "learning_rate": config.learning_rate,
        "status": record.status.value,
        "reason": record.reason,
        "weights_dir": record.weights_dir,
        **(record.last.metrics if record.last else {}),
    }
