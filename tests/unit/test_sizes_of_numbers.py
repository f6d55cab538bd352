"""Numbers that would overflow what is computed of them are faults of their fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_files import edited, faults

from tune.config.sweep_file import load_sweep

SHAPE = ("hidden", "intermediate", "vocabulary", "layers", "heads", "kv_heads", "head_size")
SPACE = {"batch_size": 16, "epochs": 1, "warmup": 0.1, "weight_decay": 0.1}
POINT = {"method": "lora", "rank": 4, "alpha_ratio": 2, "dropout": 0, "learning_rate": 1e-4}
# Every number that a sweep file may hold.
ALL: dict[str, Any] = {
    "model__shape": dict.fromkeys(SHAPE, 8),
    "data__limit": 9,
    "data__replay": {"path": "general.jsonl", "share": 0.1, "limit": 9},
    "eval__num_fewshot": 1,
    "eval__limit": 9,
    "eval__retention": [{"task": "b", "num_fewshot": 1, "limit": 9}],
    "search__lora": {"rank": [4], "alpha_ratio": 2, "learning_rate": [1e-4], **SPACE},
    "search__full": {"learning_rate": {"low": 1e-5, "high": 1e-3}},
    "search__first": [POINT | SPACE],
    "constraints": ["forgetting/mean <= 0.2"],
    "train__steps": 9,
    "budget": {"trials": 9, "hours": 9, "gpu_hours": 9, "checkpoint_gib": 9},
    "early_stopping": {"metrics": {"in_domain/acc_mean": 1}, "first_rung": 0.3},
    "confirm": {"seeds": 2},
    "resources": {
        "lora": {"gpus_per_worker": 1, "slots": 2},
        "full": {"gpus_per_worker": 1},
        "max_concurrent": 9,
        "max_gpus": 9,
    },
}


def numbers(value: Any, field: str = "") -> Iterator[str]:
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(inner, f"{field}.{key}".lstrip("."))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield field


@pytest.mark.parametrize("number", ["5.0e-324", "1.0e+308", "9" * 400])
def test_a_number_that_overflows_is_a_fault_of_its_field(number: str, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(edited(**ALL), encoding="utf-8")
    whole = load_sweep(str(file), []).model_dump(mode="json")
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    fields = list(numbers(whole))
    assert len(fields) > 60
    for field in fields:
        told = {fault.field for fault in faults(file, f"{field}={number}")}
        told |= {each.replace(".low", ".high") for each in told}  # it may no longer be the lower
        assert any(f"{field}.".startswith(f"{each}.") for each in told), (field, told)


@pytest.mark.parametrize(
    ("number", "shown"),
    [("1.0e-320", "1.00e-320"), ("1.0e+300", "1.00e+300"), ("9" * 400, "1.00e+400")],
)
def test_the_fault_says_what_sizes_are_taken(number: str, shown: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(), encoding="utf-8")
    field = "search.lora.rank" if shown.endswith("400") else "search.lora.weight_decay"
    (fault,) = faults(file, f"{field}={number}")
    assert (fault.field, fault.rule) == (
        f"{field}.0",
        f"must be of a size from 1e-15 to 1e+15, got {shown}",
    )


def test_other_programs_numbers_may_be_of_any_size(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(deepspeed__config={"reduce_bucket_size": 1e20}), encoding="utf-8")
    assert load_sweep(str(file), []).deepspeed.config == {"reduce_bucket_size": 1e20}


def test_a_worker_holds_no_less_of_a_core_than_ray_counts(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(), encoding="utf-8")
    (fault,) = faults(file, "resources.lora.cpus_per_worker=0.00001")
    assert fault.rule == "must be >= 0.0001, got 1e-05"


def test_a_report_may_take_no_longer_than_a_clock_counts(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(), encoding="utf-8")
    (fault,) = faults(file, "budget.minutes_per_report=1.0e+9")
    assert fault.rule == "must be <= 1e+06, got 1000000000.0"
