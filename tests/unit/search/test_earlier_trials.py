"""Which earlier trials a sweep may go on from, and what it says of those it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import EVAL, sweep_record
from simulated_search import Judge, judge, make_searcher, run, sweep

from analysis.results.recommendation import numbers_text
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.same_sweep import check_same_sweep
from tune.config.sweep_config import SweepConfig
from tune.search.earlier_trials import (
    import_trials,
    own_trials,
    usable_trials,
)
from tune.search.space import recorded_params

PLAIN: dict[str, Any] = {
    "lora": {
        "rank": [2, 8, 32],
        "alpha_ratio": [1, 2],
        "learning_rate": {"low": 1e-5, "high": 1e-3},
    },
    "full": {"learning_rate": {"low": 1e-5, "high": 1e-3}},
}


def finished(config: SweepConfig, judge: Judge = judge) -> list[TrialRecord]:
    return run(make_searcher(config), judge)


def written(folder: Path, config: SweepConfig, records: list[TrialRecord]) -> Path:
    ledger = Ledger(folder)
    ledger.write_sweep(sweep_record(config))
    for record in records:
        ledger.write_trial(record)
    return folder


def refused(config: SweepConfig, records: list[TrialRecord]) -> list[str]:
    with pytest.raises(UserError) as caught:
        own_trials(config, records)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("ratios", [[1, 2], [0.1, 0.3, 3.3]])
def test_params_of_gives_back_each_point(ratios: list[float]) -> None:
    modules = ["all-linear", ["q_proj", "v_proj"]]
    lora = PLAIN["lora"] | {"alpha_ratio": ratios, "target_modules": modules, "dropout": [0, 0.1]}
    lora |= {"warmup": [0, 0.1], "weight_decay": [0, 0.01]}
    config = sweep("random", trials=40, search=PLAIN | {"lora": lora})
    for record in finished(config):
        assert recorded_params(config, record.config) == record.params


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("model", {"name": "other"}, 'model.name "some/model", not "other"'),
        ("data", {"path": "e.jsonl"}, 'data.path "rows.jsonl", not "e.jsonl"'),
        ("eval", {**EVAL, "limit": 5}, "eval.limit null, not 5"),
        ("train", {"steps": 7}, "train.steps null, not 7"),
        ("seed", 3, "seed 0, not 3"),
        ("name", "other", 'name "tiny", not "other"'),  # of a folder that was renamed
    ],
)
def test_edit_that_changes_the_question_is_refused(section: str, value: object, told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_same_sweep(
            sweep().model_dump(mode="json"), sweep(**{section: value}), Path("sweeps/tiny")
        )
    (fault,) = caught.value.faults
    assert fault.field == section
    assert told in fault.rule
    assert "sweeps/tiny" in fault.rule


def test_search_that_excludes_a_trial_is_refused() -> None:
    records = finished(sweep())
    first, *others = [r for r in records if r.config.capacity and r.config.capacity.number < 32]
    told = refused(sweep(search=PLAIN | {"lora": PLAIN["lora"] | {"rank": [32, 64]}}), records)
    (line,) = told
    these = numbers_text([first, *others])
    rule = f"excludes {these}: trial {first.number} of this sweep has rank "
    assert line.startswith(f"search.lora.rank: {rule}")
    assert len(others) > 1
    (first, *_) = refused(sweep(search={"lora": PLAIN["lora"]}), records)
    assert "search.full" in first
    assert "which is not searched" in first
    narrow = {"low": 1e-5, "high": 2e-5}
    (first, *_) = refused(sweep(search=PLAIN | {"full": {"learning_rate": narrow}}), records)
    assert "not in 1e-05 to 2e-05" in first


def on(*modules: str, **changes: Any) -> SweepConfig:
    return sweep(search={"lora": PLAIN["lora"] | {"target_modules": [list(modules)]}}, **changes)


def test_warm_start_takes_what_fits_and_reports_the_rest(tmp_path: Path) -> None:
    def measuring_at_the_end(trial: Any) -> Any:
        status, metrics = judge(trial)
        return status, metrics if status is TrialStatus.COMPLETE else {}

    repeated = sweep(confirm={"top_k": 1, "seeds": 2})
    records = finished(repeated, measuring_at_the_end)
    earlier = written(tmp_path / "earlier", repeated, records)
    lora = PLAIN["lora"] | {"rank": [2, 8]}
    config = sweep(search=PLAIN | {"lora": lora}, warm_start=[str(earlier)])
    found, left_out = import_trials(config, {})
    searched = [record for record in records if record.confirms is None]
    assert len(searched) == len(records) - 2
    ended = [r for r in searched if r.status in (TrialStatus.COMPLETE, TrialStatus.DIVERGED)]
    fitting = [r for r in ended if not (r.config.capacity and r.config.capacity.number == 32)]
    assert [record.number for record in found] == [record.number for record in fitting]
    (line,) = left_out
    assert f"{len(ended) - len(fitting)} of {earlier}" in line
    assert "has rank 32" in line


def test_a_trial_fits_the_budget_that_gives_its_capacity() -> None:
    """Also one whose rank was given as itself, as in an earlier sweep."""
    model = {"name": "package://trainables/embedded/model"}
    lora = PLAIN["lora"] | {"rank": [1, 4, 16]}
    records = finished(sweep("random", search={"lora": lora}, model=model))
    budgets = {"rank": None, "parameters": [10000, 40000]}  # ranks 1 and 4
    config = sweep(search={"lora": lora | budgets}, model=model)
    found, left_out = usable_trials(config, records)
    assert {str(record.config.capacity) for record in found} == {"rank 1", "rank 4"}
    assert {record.params["lora/parameters"] for record in found} == {10000, 40000}
    assert all("has parameters that give rank 16" in reason for reason in left_out)


def test_warm_start_from_another_question_or_nothing_is_refused(tmp_path: Path) -> None:
    other = written(tmp_path / "other", sweep(model={"name": "other"}), [])
    with pytest.raises(UserError) as caught:
        import_trials(sweep(warm_start=[str(other), str(tmp_path / "nothing")]), {})
    first, second = map(str, caught.value.faults)
    assert first == (
        f'warm_start: {other} was started with model.name "other", not "some/model": its '
        "results mean other things; leave it out, or give model, data and eval as there"
    )
    assert "no sweep in" in second
