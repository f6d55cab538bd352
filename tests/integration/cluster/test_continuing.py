"""The same command again, with something changed: what runs, and what is refused."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fake_sweep
import pytest
import ray.tune
from ray import cloudpickle
from small_trials import SMALL

from trainables.config import TrialConfig
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import Outcome, TrialRecord, TrialStatus
from trainables.workers.reporters import OUTCOME
from tune.cli import main
from tune.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig

pytestmark = pytest.mark.usefixtures("cluster")
cloudpickle.register_pickle_by_value(fake_sweep)

LORA = "search.full=null"
THREE = ("budget.trials=3", "sampler=random", LORA)


@pytest.fixture
def start(
    load: Callable[..., SweepConfig], base_cache: Path, tmp_path: Path
) -> Callable[..., tuple[list[int], list[TrialRecord]]]:
    """One start of the command on the same folder: which trials ran, and all records."""

    def start(
        *overrides: str, retry_failed: bool = False, broken: dict[int, TrialStatus] | None = None
    ) -> tuple[list[int], list[TrialRecord]]:
        def trial(config: dict[str, Any]) -> None:
            number = TrialConfig.model_validate(config["trial"]).number
            if broken and number in broken:
                outcome = Outcome(status=broken[number], reason="broken")
                ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})
            else:
                fake_sweep.fake_trial(config)

        sweep = Sweep(load(*overrides), tmp_path / "sweep", base_cache, retry_failed, trial)
        started = fake_sweep.Started()
        return started.numbers, sweep.run([started]).records

    return start


def test_failed_trials_alone_are_run_again_on_request(start: Callable[..., Any]) -> None:
    five = (*THREE, "budget.trials=5")
    broken = {1: TrialStatus.FAILED, 2: TrialStatus.OUT_OF_MEMORY, 3: TrialStatus.CANCELLED}
    ran, before = start(*five, broken=broken)
    assert sorted(ran) == [0, 1, 2, 3, 4]
    assert {r.number: r.status for r in before if r.status is not TrialStatus.COMPLETE} == broken
    ran, records = start(*five)
    assert (ran, records) == ([], before)
    ran, records = start(*five, retry_failed=True)
    assert sorted(ran) == [1, 2, 3]
    for number in broken:
        assert records[number].status is TrialStatus.COMPLETE
        assert (records[number].attempt, records[number].reason) == (2, None)
        assert records[number].params == before[number].params
    assert [records[0], records[4]] == [before[0], before[4]]


def test_a_sweep_without_a_complete_trial_ends_with_code_1(
    monkeypatch: pytest.MonkeyPatch,
    base_cache: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken(config: dict[str, Any]) -> None:
        number = TrialConfig.model_validate(config["trial"]).number
        outcome = Outcome(status=TrialStatus.FAILED, reason=f"no file of process {number}")
        ray.tune.report({OUTCOME: outcome.model_dump(mode="json")})

    monkeypatch.setattr("tune.sweep.Sweep", partial(Sweep, trainable=broken))
    (tmp_path / ".base").symlink_to(base_cache)
    settings = [*SMALL, LORA, "wandb.mode=disabled"]
    command = ["quickstart", "--num-trials", "2", "--output-dir", str(tmp_path)]
    assert main([*command, *(word for setting in settings for word in ("--set", setting))]) == 1
    records = Ledger(tmp_path / "quickstart").trials()
    assert {record.status for record in records} == {TrialStatus.FAILED}
    output = capfd.readouterr().out
    assert "--retry-failed --num-trials 2" in output
    assert "no file of process" in output


def test_a_finished_sweep_is_extended_and_its_search_widened_but_not_narrowed(
    start: Callable[..., Any],
) -> None:
    _, before = start(*THREE)
    for change, fact in {
        "search.lora.rank=[512]": "trial 0 of this sweep has rank",
        "data.limit=7": "data.limit",
    }.items():
        with pytest.raises(UserError, match=fact):
            start(*THREE, change)
    wider = (*THREE, "search.lora.rank=[1, 2, 4, 8, 16, 32, 64]", "budget.trials=5")
    ran, records = start(*wider)
    assert sorted(ran) == [3, 4]
    assert records[:3] == before


def test_the_winner_is_confirmed_once_with_other_seeds(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    confirm = (*THREE, "confirm={top_k: 1, seeds: 2}")
    ran, records = start(*confirm)
    assert sorted(ran[:3]) == [0, 1, 2]
    confirming = [record for record in records if record.confirms is not None]
    assert [record.number for record in confirming] == [3, 4]
    (winner,) = {record.confirms for record in confirming}
    assert {r.config.seed - records[winner].config.seed for r in confirming} == {1, 2}
    assert all(record.params == records[winner].params for record in confirming)
    with (tmp_path / "sweep" / "confirmed.csv").open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert rows["in_domain/acc_mean"]["number"] == str(winner)
    assert rows["in_domain/acc_mean"]["runs"] == "2"
    assert start(*confirm) == ([], records)
