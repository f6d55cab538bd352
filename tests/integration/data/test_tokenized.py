"""The data of a sweep: tokenised once, read by all its trials."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainables.data.dataset import tokenize
from trainables.data.tokenized import read_data, write_data
from trainables.records.schema import TrialStatus
from trainables.storage.locations import resolve
from tune.listeners import SweepListener
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig


@pytest.mark.parametrize("validation_fraction", [0.25, 0])
def test_data_come_back_as_they_were_written(
    sweep_config: SweepConfig, tokenizer: Any, tmp_path: Path, validation_fraction: float
) -> None:
    changes = {"validation_path": None, "validation_fraction": validation_fraction, "limit": 40}
    tokenized = tokenize(sweep_config.data.model_copy(update=changes), tokenizer, seed=3)
    write_data(tokenized, tmp_path)
    found = read_data(tmp_path)
    assert replace(found, train=list(found.train)) == tokenized
    assert found.train[7] == tokenized.train[7]
    assert len(found.validation) == 40 * validation_fraction


class Deletes(SweepListener):
    """Takes the rows away once the sweep has begun."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def sweep_started(self, *arguments: Any) -> None:
        self._file.unlink()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_trials_read_no_row_themselves(
    load: Callable[..., SweepConfig],
    sweep_config: SweepConfig,
    base_cache: Path,
    tmp_path: Path,
) -> None:
    rows = tmp_path / "rows.jsonl"
    shutil.copy(resolve(sweep_config.data.path), rows)
    config = load(
        f"data.path={rows}",
        "search={lora: {rank: 4, alpha: 8, learning_rate: 1.0e-3}}",
        "sampler=grid",
        "budget.trials=2",
        "resources.lora.slots=2",
    )
    outcome = Sweep(config, tmp_path / "sweep", base_cache).run([Deletes(rows)])
    assert {record.status for record in outcome.records} == {TrialStatus.COMPLETE}
