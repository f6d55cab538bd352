"""Configs and records of a small sweep, for tests that care about a part of one alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables import metric_keys
from trainables.config import TrialConfig
from trainables.methods import METHODS, Method
from trainables.records.ledger import Ledger
from trainables.records.schema import BaseRecord, Measurement, TrialRecord, TrialStatus
from trainables.records.sweep_record import Provenance, SweepRecord
from trainables.training.checkpoint_files import checkpoint_dir, digest
from tune.config.sweep_config import SweepConfig

GAIN, LOSS, OOD = metric_keys.IN_DOMAIN_ACC, metric_keys.FORGETTING_MEAN, metric_keys.OOD_ACC
SWEEP_ID = "tiny-0a1b2c3d"
BEGAN = 1_000_000.0
SECONDS = 100.0
EVAL = {"in_domain": ["a"], "retention": ["b", "c"], "ood": ["d"]}


def sweep_config(trials: int = 4, **sections: Any) -> SweepConfig:
    """What is given in `sections` replaces a part of the file."""
    return SweepConfig.model_validate(
        {
            "name": "tiny",
            "model": {"name": "some/model"},
            "data": {"path": "rows.jsonl"},
            "eval": EVAL,
            "search": {
                "lora": {"rank": [4, 8], "alpha_ratio": 2, "learning_rate": [1e-4, 1e-3]},
                "full": {"learning_rate": [1e-5]},
            },
            "objectives": [{"metric": GAIN, "mode": "max"}, {"metric": LOSS, "mode": "min"}],
            "budget": {"trials": trials},
            **sections,
        }
    )


def adapter(method: str = "lora", **settings: Any) -> Method:
    """A method with these settings; LoRA has rank 8 and alpha 16 by default."""
    usual = {"rank": 8, "alpha": 16} if method == "lora" else {}
    return METHODS.find(method).model_validate({**usual, **settings})


def trial_config(number: int = 0, method: str | Method = "lora", **fields: Any) -> TrialConfig:
    """The recipe is named after the method unless `fields` say otherwise."""
    sweep = sweep_config()
    chosen = method if isinstance(method, Method) else adapter(method)
    return TrialConfig.model_validate(
        {
            "trial_id": f"{SWEEP_ID}-{number:04d}",
            "number": number,
            "seed": 0,
            "data_seed": 0,
            "recipe": chosen.name,
            "method": chosen,
            "learning_rate": 3.2e-4,
            "model": sweep.model,
            "data": sweep.data,
            "eval": sweep.eval,
            "train": sweep.train,
            "output_dir": "out",
            "base_dir": "base",
            **fields,
        }
    )


def trial(
    number: int = 0,
    metrics: dict[str, float] | None = None,
    status: TrialStatus = TrialStatus.COMPLETE,
    *,
    step: int = 10,
    seconds: float = SECONDS,
    **fields: Any,
) -> TrialRecord:
    """What is given in `fields` replaces a part of the record or of its config."""
    of_config = {name: fields.pop(name) for name in TrialConfig.model_fields if name in fields}
    started = fields.get("started", BEGAN + number * SECONDS)
    return TrialRecord.model_validate(
        {
            "config": trial_config(number, **of_config),
            "params": {},
            "status": status,
            "started": started,
            "ended": None if status is TrialStatus.RUNNING else started + seconds,
            "last": measurement(step, metrics) if metrics else None,
            **fields,
        }
    )


def running(number: int = 0, metrics: dict[str, float] | None = None, **fields: Any) -> TrialRecord:
    return trial(number, metrics, TrialStatus.RUNNING, **fields)


def measurement(
    step: int, metrics: dict[str, float] | None = None, attempt: int = 1
) -> Measurement:
    metrics = metrics or {metric_keys.TRAIN_LOSS: 1 / 3}
    return Measurement(attempt=attempt, step=step, metrics=metrics, time=BEGAN)


def scores(gain: float, forgetting: float, **more: float) -> dict[str, float]:
    return {
        GAIN: gain,
        LOSS: forgetting,
        OOD: gain / 2,
        metric_keys.TRAIN_LOSS: 1 - gain,
        **more,
    }


def with_metrics(record: TrialRecord, metrics: Mapping[str, float], **fields: Any) -> TrialRecord:
    """What it measured last is these metrics; `fields` replace other parts of the record."""
    assert record.last is not None
    last = record.last.model_copy(update={"metrics": dict(metrics)})
    return record.model_copy(update={"last": last, **fields})


def repeat_of(
    trial: TrialRecord,
    number: int,
    metrics: Mapping[str, float],
    status: TrialStatus = TrialStatus.COMPLETE,
) -> TrialRecord:
    """A run of a trial's point with another seed; metrics that are not given are as the trial's."""
    assert trial.last is not None
    own = {"number": number, "trial_id": f"{trial.config.trial_id}-{number}", "seed": number}
    return with_metrics(
        trial,
        {**trial.last.metrics, **metrics},
        config=trial.config.model_copy(update=own),
        confirms=trial.number,
        status=status,
    )


def base_record(**fields: Any) -> BaseRecord:
    return BaseRecord.model_validate(
        {
            "key": "k",
            "scores_key": "k",
            "scores": {},
            "metrics": scores(0.25, 0.0),
            "general_nll": None,
            "parameters": 1000,
            "train_samples": 90,
            "validation_samples": 10,
            "skipped_samples": 0,
            "seconds": 1.0,
            "replayed_tokens": 0.0,
            "sample": {"context": "1 + 1 =", "learned": " 2"},
            **fields,
        }
    )


def sweep_record(config: SweepConfig) -> SweepRecord:
    provenance = Provenance(
        created=BEGAN, command="tune", git_commit="c0ffee", python="3", versions={"peft": "0.21"}
    )
    raw = config.model_dump(mode="json")
    return SweepRecord(sweep_id=SWEEP_ID, config=raw, provenance=provenance)


def record_sweep(folder: Path, *records: TrialRecord, **sections: Any) -> Ledger:
    """Write a sweep's folder as a driver leaves it."""
    ledger = Ledger(folder)
    ledger.write_sweep(sweep_record(sweep_config(**sections)))
    ledger.folder.base.mkdir(exist_ok=True)
    ledger.folder.base_json.write_text(base_record().model_dump_json(indent=2))
    ledger.folder.base_items.touch()
    for record in records:
        ledger.write_trial(record)
        if record.last:
            ledger.append(record.number, record.last)
    return ledger


def change_base(ledger: Ledger, **changes: Any) -> None:
    """Record parts of the base's evaluation otherwise."""
    base = ledger.base().model_copy(update=changes)
    ledger.folder.base_json.write_text(base.model_dump_json())


def change_config(ledger: Ledger, **sections: Any) -> None:
    """Record whole sections of the sweep file otherwise."""
    sweep = ledger.sweep()
    ledger.write_sweep(sweep.model_copy(update={"config": sweep.config | sections}))


def save_checkpoint(attempt_dir: Path, step: int) -> Path:
    """A checkpoint as far as its validity goes."""
    folder = checkpoint_dir(attempt_dir, step)
    folder.mkdir(parents=True)
    (folder / "training.safetensors").write_bytes(b"%d" % step * 1000)
    files = {file.name: digest(file) for file in folder.iterdir()}
    (folder / "files.json").write_text(json.dumps(files))
    return folder
