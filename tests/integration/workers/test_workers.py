"""Trials in Ray's workers, as a sweep runs them: methods, neighbours, a failure, records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.listeners import SweepListener
from tune.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_trials import Run

    from trainables.config import TrialConfig
    from trainables.records.schema import TrialRecord
    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")

# A LoRA trial whose modules PEFT refuses, and one that works.
SEARCH = (
    "search={lora: {rank: 4, alpha: 8, learning_rate: [1.0e-3], "
    "target_modules: [[lm_head], all-linear]}, full: {learning_rate: [1.0e-4, 3.0e-4]}}"
)


class Finished:
    """A sweep that has run: its folder and its outcome."""

    def __init__(self, folder: Path, outcome: SweepOutcome) -> None:
        self.ledger, self.outcome = Ledger(folder), outcome

    def records(self, recipe: str) -> list[TrialRecord]:
        return [record for record in self.outcome.records if record.config.recipe == recipe]

    def curve(self, record: TrialRecord, key: str = "train/loss") -> list[float]:
        return [m.metrics[key] for m in self.ledger.measurements(record.number)]


@pytest.fixture(scope="module")
def mixed(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """LoRA and full fine-tuning, two of each, two at a time: first the two of full fine-tuning."""
    folder = tmp_path_factory.mktemp("sweep")
    config = load("sampler=grid", "budget.trials=9", "resources.lora.slots=0", SEARCH)
    return Finished(folder, Sweep(config, folder, base_cache).run([SweepListener()]))


def test_two_deepspeed_trials_run_side_by_side(
    mixed: Finished,
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
) -> None:
    first, second = mixed.records("full")
    assert max(first.started, second.started) < min(first.ended or 0, second.ended or 0)
    assert {first.config.learning_rate, second.config.learning_rate} == {1e-4, 3e-4}
    rate = second.config.learning_rate
    alone = run(make_trial("full", learning_rate=rate, deepspeed={"zero_stage": 2}))
    assert mixed.curve(second) == pytest.approx(alone.curve(), abs=1e-3)


def test_a_trial_in_a_worker_is_the_trial_in_this_process(
    mixed: Finished, make_trial: Callable[..., TrialConfig], run: Callable[[TrialConfig], Run]
) -> None:
    (record,) = (r for r in mixed.records("lora") if r.status is TrialStatus.COMPLETE)
    here = run(record.config.model_copy(update={"output_dir": make_trial().output_dir}))
    assert mixed.curve(record) == pytest.approx(here.curve(), abs=1e-5)
    expected = pytest.approx(here.curve("train/grad_norm"), rel=1e-4)
    assert mixed.curve(record, "train/grad_norm") == expected


def test_a_failing_trial_says_why_and_the_sweep_goes_on(mixed: Finished) -> None:
    (failed,) = (r for r in mixed.outcome.records if r.status is TrialStatus.FAILED)
    assert re.match(r"\w+Error: .*lm_head", str(failed.reason))
    assert (failed.last, failed.weights_dir) == (None, None)
    log = Path(failed.config.output_dir, "trial.log").read_text()
    assert "Traceback" in log
    assert "lm_head" in log
