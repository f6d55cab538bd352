"""The data of a sweep: tokenised once, read by all its trials."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainables.config import Replay
from trainables.data.dataset import TokenizedData, tokenize
from trainables.data.tokenized import longest, read_data, with_replay, write_data
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


def numbered(own: int, replayed: int) -> TokenizedData:
    """Own samples of the tokens 0, 1, ... and replayed ones of 100, 101, ..."""
    numbers = [*range(own), *range(100, 100 + replayed)]
    samples: Any = [{"input_ids": [n] * (1 + n % 7), "labels": [n] * (1 + n % 7)} for n in numbers]
    return TokenizedData(samples, [], 0, 0, [], replayed=replayed)


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        (None, [*range(8)]),
        (Replay(path="", share=0), [*range(8)]),
        (Replay(path="", share=0.2), [*range(8), 100, 101]),
        (Replay(path="", share=0.5), [*range(8), *range(100, 108)]),
    ],
)
def test_a_trial_replays_the_first_of_the_stored_samples(
    replay: Replay | None, expected: list[int], tmp_path: Path
) -> None:
    write_data(numbered(8, 8), tmp_path)
    seen = with_replay(read_data(tmp_path), replay, seed=1)
    assert [sample["input_ids"][0] for sample in seen.train] == expected
    assert seen.replayed == len(expected) - 8


@pytest.mark.parametrize(("share", "extra"), [(0, 0), (0.2, 2), (0.5, 8), (0.6, 12)])
def test_a_control_has_as_many_samples_of_the_data_themselves(
    share: float, extra: int, tmp_path: Path
) -> None:
    write_data(numbered(8, 12), tmp_path)
    control = Replay(path="", share=share, control=True)
    seen = with_replay(read_data(tmp_path), control, seed=1)
    first = [sample["input_ids"][0] for sample in seen.train]
    counts = [first.count(number) for number in range(8)]
    assert len(first) == sum(counts) == 8 + extra
    assert max(counts) - min(counts) <= 1
    lengths = [len(sample["input_ids"]) for sample in seen.train]
    assert [lengths[at] for at in longest(seen.train, 3)] == sorted(lengths)[:-4:-1]


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
