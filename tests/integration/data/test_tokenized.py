"""The data of a sweep: tokenised once, read by all its trials."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainables.data.dataset import tokenize
from trainables.data.tokenized import read_data, write_data
from trainables.models.loading import load_model
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


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 0.9}, {"temperature": 0.9, "do_sample": True}),
        ({"temperature": 0.9, "do_sample": False}, {"do_sample": False}),
        ({"length_penalty": 2.0, "early_stopping": True}, {}),
        ({"length_penalty": 2.0, "num_beams": 2}, {"length_penalty": 2.0, "num_beams": 2}),
        ({"pad_token_id": -1, "repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"pad_token_id": -1, "top_p": 0.6}, {"top_p": 0.6, "do_sample": True}),
    ],
)
def test_a_model_is_saved_with_the_settings_of_its_generation_that_are_valid(
    settings: dict[str, Any], kept: dict[str, Any], sweep_config: SweepConfig, tmp_path: Path
) -> None:
    """Transformers saves none, once they were changed, of which one is not."""
    folder = shutil.copytree(resolve(sweep_config.model.name), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(settings))
    loaded = load_model(sweep_config.model.model_copy(update={"name": str(folder)}))
    loaded.generation_config.eos_token_id = 1
    loaded.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    saved.pop("transformers_version", None)
    assert saved == kept | {"eos_token_id": 1}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("slots", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_trials_read_no_row_themselves(
    load: Callable[..., SweepConfig],
    sweep_config: SweepConfig,
    base_cache: Path,
    tmp_path: Path,
    slots: int,
) -> None:
    rows = tmp_path / "rows.jsonl"
    shutil.copy(resolve(sweep_config.data.path), rows)
    method = "lora: {rank: 4, alpha: 8, learning_rate: 1.0e-3}"
    methods = method if slots else f"{method}, full: {{learning_rate: 1.0e-3}}"
    config = load(
        f"data.path={rows}",
        f"search={{{methods}}}",
        "sampler=grid",
        "budget.trials=2",
        f"resources.lora.slots={slots}",
    )
    outcome = Sweep(config, tmp_path / "sweep", base_cache).run([Deletes(rows)])
    assert {record.status for record in outcome.records} == {TrialStatus.COMPLETE}
    assert {r.config.method for r in outcome.records} == ({"lora"} if slots else {"lora", "full"})
