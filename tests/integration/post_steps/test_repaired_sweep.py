"""A sweep that repairs its trials' weights: recorded, exported, and not done twice."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from plain_scores import assert_scores, loaded
from safetensors.torch import load_file

from analysis.chosen_point import choose_point
from analysis.export.weights import export
from analysis.sweeps import open_sweeps
from trainables.errors import UserError
from trainables.evaluation.base_scores import Base
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord
from tune.listeners import SweepListener
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig

REPAIRED = (
    "train.steps=30",
    "train.report_every=30",
    "search.lora={rank: 4, alpha_ratio: 2, learning_rate: 1e-2}",
    "search.full={learning_rate: 3e-3}",
    "budget.trials=2",
    "confirm={top_k: 1, per_recipe: true, seeds: 1}",
    "rewind={repair: [no_intruders, seed_mean]}",
    "wandb.mode=disabled",
)


class Told(SweepListener):
    """What the driver says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def preparing(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def run(
    cluster: None,
    load: Callable[..., SweepConfig],
    base_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], tuple[Path, Told]]:
    """One start of the command, each on the same folder."""
    folder = tmp_path_factory.mktemp("repaired") / "sweep"

    def run() -> tuple[Path, Told]:
        told = Told()
        outcome = Sweep(load(*REPAIRED), folder, base_cache).run([told])
        assert not outcome.interrupted
        return folder, told

    run()
    return run


@pytest.fixture(scope="module")
def sweep_dir(run: Callable[[], tuple[Path, Told]]) -> Path:
    return run()[0]


def searched(folder: Path) -> list[TrialRecord]:
    return [record for record in Ledger(folder).trials() if record.confirms is None]


def test_each_searched_trial_has_a_row_for_each_repair(sweep_dir: Path) -> None:
    records = searched(sweep_dir)
    assert {record.config.recipe for record in records} == {"lora", "full"}
    for record in records:
        assert {view.repair for view in record.repaired} == {"no_intruders", "seed_mean"}
        for view in record.repaired:
            assert view.metrics.keys() == record.metrics.keys()
            assert len(Ledger(sweep_dir).items(view)) == len(Ledger(sweep_dir).items(record))
            assert view.point_id in {point.point_id for point in records_of(sweep_dir)}
    with (sweep_dir / "results.csv").open() as file:
        rows = [row["repair"] for row in csv.DictReader(file) if row["repair"]]
    assert sorted(rows) == ["no_intruders"] * 2 + ["seed_mean"] * 2


def records_of(folder: Path) -> list[TrialRecord]:
    [sweep] = open_sweeps(folder)
    return [view for record in sweep.trials for view in (record, *record.repaired)]


def test_a_second_start_repairs_nothing(run: Callable[[], tuple[Path, Told]]) -> None:
    folder, _ = run()
    before = Ledger(folder).trials()
    _, told = run()
    assert not [line for line in told.lines if "repair" in line]
    assert Ledger(folder).trials() == before


def test_a_start_that_lacks_one_repairs_it(run: Callable[[], tuple[Path, Told]]) -> None:
    folder, _ = run()
    ledger, (first, *_) = Ledger(folder), searched(folder)
    kept = [point for point in first.points if point.repair == "seed_mean"]
    ledger.write_trial(first.model_copy(update={"points": tuple(kept)}))
    _, told = run()
    (line,) = [line for line in told.lines if line.startswith("repairing")]
    assert line == f"repairing weights: trial {first.number} without intruder dimensions ..."
    again = searched(folder)[0]
    for view, known in zip(
        sorted(again.repaired, key=lambda view: str(view.repair)),
        sorted(first.repaired, key=lambda view: str(view.repair)),
        strict=True,
    ):
        assert view.metrics == known.metrics


@pytest.mark.parametrize("recipe", ["lora", "full"])
@pytest.mark.parametrize("repair", ["no_intruders", "seed_mean"])
def test_an_exported_repair_scores_what_was_recorded(
    sweep_dir: Path, tmp_path: Path, recipe: str, repair: str
) -> None:
    [sweep] = open_sweeps(sweep_dir)
    [trial] = [r for r in searched(sweep_dir) if r.config.recipe == recipe]
    view = choose_point(sweep, trial.number, None, repair)
    export(sweep, view, tmp_path / "export")
    assert view.last is not None
    base = Base.load(sweep_dir / "base")
    assert_scores(view.last, loaded(trial.config, tmp_path / "export"), trial.config, base)
    assert f"--trial {trial.number}" in (tmp_path / "export" / "README.md").read_text()


def test_the_mean_of_full_models_is_that_of_both_trainings(sweep_dir: Path) -> None:
    ledger = Ledger(sweep_dir)
    full = [record for record in ledger.trials() if record.config.recipe == "full"]
    first, second = (tensors(ledger.weights(record)) for record in full)
    [mean] = [view for view in full[0].repaired if view.repair == "seed_mean"]
    found = tensors(ledger.weights(mean))
    for name, values in found.items():
        torch.testing.assert_close(values, (first[name] + second[name]) / 2)
    assert any(not torch.equal(first[name], second[name]) for name in found)


def tensors(folder: Path | None) -> dict[str, Any]:
    assert folder is not None
    return dict(load_file(folder / "model.safetensors"))


def test_a_repair_that_was_not_done_is_refused(sweep_dir: Path) -> None:
    [sweep] = open_sweeps(sweep_dir)
    repeat = next(record for record in sweep.trials if record.confirms is not None)
    with pytest.raises(UserError, match=r"--repair: trial \d was not repaired so"):
        choose_point(sweep, repeat.number, None, "seed_mean")
