"""Training data and no task of one's own: a sweep, its page, its figures and its winner."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from analysis.__main__ import main
from trainables.metric_keys import IN_DOMAIN_ACC, OOD_ACC, VALIDATION_LOSS
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.sweep import Sweep
from tune.terminal.console import ConsoleListener

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")
DATA_ALONE = (
    "eval.in_domain=[]",
    "eval.retention=[recall_capitals]",
    "eval.ood=[]",
    "eval.general_text=null",
    "objectives=[{metric: validation/loss, mode: min}, {metric: forgetting/mean, mode: min}]",
    "constraints=[validation/loss <= 12]",
    "early_stopping={}",
    "confirm={top_k: 1, seeds: 1}",
    "search={lora: {rank: [8, 32], alpha: 64, learning_rate: [3.0e-3]}}",
    "sampler=grid",
    "budget.trials=2",
    "resources.lora.slots=2",
)


@pytest.mark.slow
def test_data_without_a_task_of_their_own_are_swept_shown_and_exported(
    load: Callable[..., SweepConfig],
    base_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, config, told = tmp_path / "sweep", load(*DATA_ALONE), io.StringIO()
    listener = ConsoleListener(config, Console(file=told, width=200))
    trials = Sweep(config, folder, base_cache).run([listener]).records
    assert [trial.status for trial in trials] == [TrialStatus.COMPLETE] * 3  # one is a repeat
    ledger = Ledger(folder)
    # The time that a sweep takes begins before the base is evaluated, as its budget of hours does.
    assert ledger.sweep().created < ledger.folder.base_json.stat().st_ctime
    before = ledger.base().metrics[VALIDATION_LOSS]
    assert f"base: validation loss {before:.3f}, retention" in told.getvalue()
    for trial in trials:
        after = trial.metric(VALIDATION_LOSS)
        assert after is not None
        assert after < 0.9 * before
        assert f"validation loss {after:.3f}, retention" in told.getvalue()
    with ledger.folder.results_csv.open(newline="") as stream:
        columns = set(next(csv.reader(stream)))
    assert VALIDATION_LOSS in columns
    assert not {IN_DOMAIN_ACC, OOD_ACC} & columns

    for command in (
        ["report", str(folder)],
        ["report", str(folder), "--format", "md"],
        ["figure", str(folder), "--to", str(tmp_path / "figures")],
        ["watch", str(folder), "--once"],
        ["wandb-views", str(folder)],
        ["export", str(folder), "--to", str(tmp_path / "winner")],
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert "scatter of validation loss against forgetting by rank" in capsys.readouterr().out
    report = (folder / "report.md").read_text()
    assert "lowers the base's validation loss" in report
    assert "in-domain" not in report
    figures = {file.name for file in (tmp_path / "figures").glob("*.png")}
    assert figures == {"trade_off.png", "rank_curves.png", "forgetting_matrix.png"}
    card = (tmp_path / "winner" / "README.md").read_text()
    assert f"| `validation/loss` | {before:.3f} | " in card
