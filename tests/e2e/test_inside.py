"""A sweep that looks inside its trials' models when they are done."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import run_command

from analysis.sweep_settings import SweepSettings
from trainables.inside.notable_trials import notable_trials
from trainables.inside.records import InsideFolder
from trainables.records.ledger import Ledger

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
SMALL = (
    "budget.trials=2",
    "search.full=null",  # DeepSpeed takes its time to start
    "eval.limit=20",
    "eval.kl_prompts=0",
    "train.steps=4",
    "wandb.mode=disabled",
)


@pytest.mark.slow
def test_an_option_that_can_be_turned_on_afterwards(tmp_path: Path) -> None:
    def run(*settings: str) -> None:
        overrides = [part for setting in settings for part in ("--set", setting)]
        command = run_command("quickstart", "--output-dir", tmp_path, *overrides)
        assert command.exit_code == 0, command.output + command.errors

    run(*SMALL)
    ledger, inside = Ledger(tmp_path / "quickstart"), InsideFolder(tmp_path / "quickstart")
    assert not inside.root.exists()
    finished = ledger.trials()
    run(*SMALL, "inspect=true")
    assert ledger.trials() == finished
    records = [found for trial in finished if (found := inside.read(trial.number))]
    assert (
        [r.number for r in records]
        == notable_trials(SweepSettings.of(ledger.sweep()), finished)
        != []
    )
    for record in records:
        assert record.reason is None
        assert len(record.matrices) == 7 * 4
        assert len(record.attention) == len(record.representation) == 4
