"""Refuses to resume a sweep whose file or inputs have changed since its first start.

What determines a trial's result must not change between two starts, nor between a sweep and one
that it warm-starts from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from trainables.data.chats import without_nulls
from trainables.errors import Fault, UserError
from trainables.records.sweep_record import SweepRecord
from trainables.storage.storage import Location
from tune.config.deepspeed_settings import deciding_settings
from tune.config.sweep_config import SweepConfig

_QUESTION = ("model", "data", "eval")  # they give a sweep's metrics their meaning
_FIXED = ("name", "seed", *_QUESTION, "train", "deepspeed")
# Keys that affect memory and time only.
_FREE = {
    "model": {"shape"},
    "eval": {"batch_size"},
    "train": {"micro_batch_size", "gradient_checkpointing"},
    # The content of `config_file` counts; any ZeRO stage resumes from any other's checkpoint.
    "deepspeed": {"config_file", "zero_stage", "offload_optimizer", "offload_parameters"},
}


def check_same_sweep(saved: dict[str, Any], config: SweepConfig, folder: Location) -> None:
    """Check that the sweep in a folder may continue under this configuration.

    Raises:
        UserError: it is another sweep; names every section that differs.
    """
    remedy = (
        "give this one another name or --output-dir; if model, data and evaluation are the same, "
        "it can `warm_start` from the trials there that were trained the same way"
    )
    faults = [
        Fault(section, f"the sweep in {folder} was started with {difference}", remedy)
        for section, difference in _changed(saved, config, _FIXED).items()
    ]
    if faults:
        raise UserError(faults)


def check_same_inputs(recorded: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Check that no file has changed since the sweep's first start.

    Args:
        recorded: the digests then.
        now: those of this start.

    Raises:
        UserError: files have changed, or were not recorded then; names them all.
    """
    rename = "give the sweep another name or --output-dir"
    changed = "has changed since this sweep's first start", f"put it back, or {rename}"
    unknown = "was not recorded at this sweep's first start, so it may have changed", rename
    faults = [
        Fault(field, *(changed if field in recorded else unknown))
        for field, digest in now.items()
        if recorded.get(field) != digest
    ]
    if faults:
        raise UserError(faults)


def _changed(saved: dict[str, Any], config: SweepConfig, sections: Sequence[str]) -> dict[str, str]:
    """The sections that differ, each with its first difference."""
    current = config.model_dump(mode="json")
    found = {}
    for section in sections:
        before = _deciding(section, _with_defaults(saved, config, section))
        now = _deciding(section, current[section])
        if before != now:
            found[section] = _difference(section, before, now)
    return found


def _with_defaults(saved: dict[str, Any], config: SweepConfig, section: str) -> Any:
    """A recorded section, with defaults for fields unknown to the version that wrote it."""
    part, recorded = getattr(config, section), saved.get(section)
    if isinstance(part, BaseModel):
        with suppress(ValidationError):
            return type(part).model_validate(recorded).model_dump(mode="json")
    return recorded


def _deciding(section: str, part: Any) -> Any:
    """The keys of a section that change its trials' results by more than rounding."""
    if not isinstance(part, dict):
        return part
    free = _FREE.get(section, ())
    kept = {key: value for key, value in part.items() if key not in free}
    if section == "deepspeed":
        kept["config"] = deciding_settings(kept.get("config"))
    return {key: value for key, value in kept.items() if value is not None}


def _difference(section: str, before: Any, now: Any) -> str:
    field = section
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**now, **before} if before.get(key) != now.get(key))
        field = f"{section}.{key}"
        before, now = without_nulls(before.get(key)), without_nulls(now.get(key))
    was, is_now = (json.dumps(value, ensure_ascii=False) for value in (before, now))
    return f"{field} {was}, not {is_now}"


def other_questions(
    sweep: SweepRecord, config: SweepConfig, inputs: Mapping[str, str]
) -> list[str]:
    """The settings and files that give another sweep's metrics a different meaning."""
    edited = [f for f, digest in inputs.items() if sweep.inputs.get(f, digest) != digest]
    settings = _changed(sweep.config, config, _QUESTION).values()
    return [*settings, *(f"other content in {field}" for field in edited)]
