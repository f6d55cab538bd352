"""A sweep's folder as a driver leaves it, for the tests of what reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainables import metric_keys
from trainables.config import LoraConfig, TrialConfig
from trainables.ledger import Ledger
from trainables.records import (
    BaseRecord,
    Measurement,
    Provenance,
    SweepRecord,
    TrialRecord,
    TrialStatus,
)
from tune.sweep_config import SweepConfig

SWEEP_ID = "tiny-0a1b2c3d"
BEGAN = 1_000_000.0
SECONDS = 100.0


def sweep_config(**sections: Any) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "tiny",
            "model": {"name": "some/model"},
            "data": {"path": "rows.jsonl"},
            "eval": {"in_domain": ["a"], "retention": ["b", "c"], "ood": ["d"]},
            "search": {
                "lora": {"rank": [4, 8], "alpha_ratio": 2, "learning_rate": [1e-4, 1e-3]},
                "full": {"learning_rate": [1e-5]},
            },
            "objectives": [
                {"metric": metric_keys.IN_DOMAIN_ACC, "mode": "max"},
                {"metric": metric_keys.FORGETTING_MEAN, "mode": "min"},
            ],
            "budget": {"trials": 4},
            **sections,
        }
    )


def scores(gain: float, forgetting: float, **more: float) -> dict[str, float]:
    return {
        metric_keys.IN_DOMAIN_ACC: gain,
        metric_keys.FORGETTING_MEAN: forgetting,
        metric_keys.OOD_ACC: gain / 2,
        metric_keys.TRAIN_LOSS: 1 - gain,
        **more,
    }


def trial(
    number: int,
    status: TrialStatus = TrialStatus.COMPLETE,
    *,
    full: bool = False,
    metrics: dict[str, float] | None = None,
    step: int = 10,
    **fields: Any,
) -> TrialRecord:
    config = sweep_config()
    trial_config = TrialConfig(
        trial_id=f"{SWEEP_ID}-{number:04d}",
        number=number,
        seed=0,
        data_seed=0,
        method="full" if full else "lora",
        learning_rate=1e-4,
        lora=None if full else LoraConfig(rank=4, alpha=8),
        model=config.model,
        data=config.data,
        eval=config.eval,
        train=config.train,
        output_dir="o",
        base_dir="b",
    )
    ended = None if status is TrialStatus.RUNNING else BEGAN + (number + 1) * SECONDS
    return TrialRecord(
        config=trial_config,
        status=status,
        last=measurement(step, metrics) if metrics else None,
        **{"params": {}, "started": BEGAN + number * SECONDS, "ended": ended, **fields},
    )


def measurement(step: int, metrics: dict[str, float]) -> Measurement:
    return Measurement(step=step, total_steps=10, metrics=metrics, time=BEGAN)


def base_record() -> BaseRecord:
    return BaseRecord(
        key="k",
        scores={},
        metrics=scores(0.25, 0.0),
        general_nll=None,
        parameters=1000,
        train_samples=90,
        skipped_samples=0,
        seconds=1.0,
    )


def record_sweep(folder: Path, *records: TrialRecord, **sections: Any) -> Ledger:
    """Write a sweep's records; what is given in `sections` replaces a part of its file."""
    ledger = Ledger(folder)
    provenance = Provenance(
        created=BEGAN, command="tune", git_commit="c0ffee", python="3", versions={"peft": "0.21"}
    )
    config = sweep_config(**sections).model_dump(mode="json")
    ledger.write_sweep(SweepRecord(sweep_id=SWEEP_ID, config=config, provenance=provenance))
    folder.joinpath("base").mkdir(exist_ok=True)
    ledger.folder.base_json.write_text(base_record().model_dump_json())
    for record in records:
        ledger.write_trial(record)
        if record.last:
            ledger.append(record.number, record.last)
    return ledger
