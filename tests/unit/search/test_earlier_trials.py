"""Which earlier trials a sweep may go on from, and what it says of those it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import EVAL, LOSS, measurement, sweep_record, trial
from faults import faults
from simulated_search import Judge, judge, make_searcher, run, sweep

from analysis.results.recommendation import numbers_text
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.same_sweep import check_same_sweep
from tune.config.sweep_config import SweepConfig
from tune.search.earlier_trials import (
    EarlierTrials,
    earlier_trials,
    import_trials,
    own_trials,
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
        assert recorded_params(config.search, config.train, record.config) == record.params


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        ("model", {"name": "other"}, 'model.name "some/model", not "other"'),
        (
            "model",
            {"name": "some/model", "attention": "eager"},
            'model.attention null, not "eager"',
        ),
        ("data", {"path": "e.jsonl"}, 'data.path "rows.jsonl", not "e.jsonl"'),
        ("eval", {**EVAL, "limit": 5}, "eval.limit null, not 5"),
        (
            "eval",
            {**EVAL, "system_instruction": "Réponds\nbref."},
            'eval.system_instruction null, not "Réponds\\nbref."',
        ),
        (
            "eval",
            {**EVAL, "ood": [{"task": "d", "limit": 5}]},
            'eval.ood [{"task": "d"}], not [{"task": "d", "limit": 5}]',
        ),
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


def test_edited_deepspeed_file_is_refused_and_a_moved_one_accepted() -> None:
    def of(file: str, clipping: int, **further: Any) -> SweepConfig:
        own = {"zero_optimization": {"stage": 1}, "gradient_clipping": clipping, **further}
        return sweep(deepspeed={"config_file": file, "config": own})

    saved = of("zero.json", 1).model_dump(mode="json")
    check_same_sweep(saved, of("moved/zero.json", 1), Path("here"))
    with pytest.raises(UserError, match=r"deepspeed\.config .*1.*, not .*2"):
        check_same_sweep(saved, of("zero.json", 2), Path("here"))
    sharded = {"zero_optimization": {"stage": 3}, "wall_clock_breakdown": True, "bf16": None}
    check_same_sweep(saved, of("zero.json", 1, **sharded), Path("here"))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("train", {"micro_batch_size": 1}),
        ("eval", {**EVAL, "batch_size": 2}),
        ("deepspeed", {"config": {"zero_optimization": {"stage": 3}, "steps_per_print": 9}}),
    ],
)
def test_settings_of_memory_may_change(section: str, value: dict[str, Any], tmp_path: Path) -> None:
    """As where memory ran out: `--retry-failed` runs those again then."""
    config = sweep(**{section: value})
    check_same_sweep(sweep().model_dump(mode="json"), config, Path("here"))
    earlier = written(tmp_path / "earlier", sweep(), finished(sweep()))
    found, _ = import_trials(config.model_copy(update={"warm_start": (str(earlier),)}), {})
    assert found


def test_wider_search_keeps_all_trials() -> None:
    lora = PLAIN["lora"] | {"rank": [2, 4, 8, 32, 64], "dropout": [0.0, 0.1]}
    config = sweep(search=PLAIN | {"lora": lora}, objectives=[{"metric": LOSS, "mode": "min"}])
    records = finished(sweep())
    found = own_trials(config, records)
    assert [record.number for record in found] == [record.number for record in records]
    for record in found:
        if record.config.lora:
            assert record.params["lora/dropout"] == 0.0
    assert len(run(make_searcher(sweep(trials=30, search=PLAIN | {"lora": lora}), found))) == 6


def test_search_that_excludes_a_trial_is_refused() -> None:
    records = finished(sweep())
    first, *others = [r for r in records if r.last and r.config.lora and r.config.lora.rank < 32]
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


def failing(trial: Any) -> Any:
    return TrialStatus.FAILED, {}


def test_misspelt_value_can_be_corrected_if_no_trial_measured_anything(tmp_path: Path) -> None:
    config, mended = on("nope", trials=3), on("q_proj", trials=3)
    failed = run(make_searcher(config), failing)
    begun = failed[2].model_copy(update={"status": TrialStatus.RUNNING, "ended": None})
    ledger = Ledger(written(tmp_path / "own", config, [*failed[:2], begun]))
    found = earlier_trials(mended, ledger, {})
    assert (found.own, found.outside) == ([], [*failed[:2], begun])
    (told,) = found.messages()
    assert told.endswith("neither counted nor run again: trials 0, 1, 2")
    assert found.ended(True) == found.to_go_on(True) == []
    after = run(make_searcher(mended, outside=found.outside))
    assert [record.number for record in after] == [3, 4, 5]
    assert {record.config.lora.target_modules for record in after if record.config.lora} == {
        ("q_proj",)
    }
    diverged = failed[0].model_copy(update={"status": TrialStatus.DIVERGED})
    assert refused(mended, [diverged])  # which it may before anything is measured
    ledger.append(2, measurement(1, {LOSS: 1.0}))
    with pytest.raises(UserError, match=r"target_modules: trial 2 of this sweep has"):
        earlier_trials(mended, ledger, {})


def test_interrupted_trials_go_on_and_failed_ones_on_request() -> None:
    own = [trial(number, status=status) for number, status in enumerate(TrialStatus)]
    found = EarlierTrials(own, [], [], is_warm_new=False)
    failed = {TrialStatus.FAILED, TrialStatus.CANCELLED, TrialStatus.OUT_OF_MEMORY}
    for retry_failed, again in ((False, set()), (True, failed)):
        going_on = found.to_go_on(retry_failed)
        assert {record.status for record in going_on} == {TrialStatus.RUNNING, *again}
        assert found.ended(retry_failed) == [record for record in own if record not in going_on]


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
    fitting = [r for r in ended if not (r.config.lora and r.config.lora.rank == 32)]
    assert [record.number for record in found] == [record.number for record in fitting]
    (line,) = left_out
    assert f"{len(ended) - len(fitting)} of {earlier}" in line
    assert "has rank 32" in line


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


def test_warm_start_with_known_trials_is_refused(tmp_path: Path) -> None:
    """The sampler would count them twice, and later ones have other seeds."""
    config = sweep()
    own, copy = (written(tmp_path / name, config, finished(config)) for name in ("own", "copy"))
    for folders in ([str(own)], [str(copy)]):
        with pytest.raises(UserError, match="is this sweep or one that is named before it"):
            earlier_trials(sweep(warm_start=folders), Ledger(own), {})
    twice = sweep(warm_start=[str(own), str(copy)], seed=1)
    with pytest.raises(UserError, match=f"warm_start: {copy} is this sweep or one that is named"):
        earlier_trials(twice, Ledger(tmp_path / "new"), {})


def nothing_taken(config: SweepConfig) -> str:
    (fault,) = faults(import_trials, config, {})
    assert fault.field == "warm_start"
    return fault.rule


def test_warm_start_without_a_usable_trial_is_refused(tmp_path: Path) -> None:
    """The search would begin from nothing, and only its log would say so."""
    records = finished(sweep(train={"steps": 50}))
    earlier = written(tmp_path / "earlier", sweep(train={"steps": 50}), records)
    rule = nothing_taken(sweep(train={"steps": 80}, warm_start=[str(earlier)]))
    assert rule.startswith("must take a trial at least, got none: left out ")
    assert rule.endswith(f" of {earlier}: was trained with steps 50, not 80")
    failed = [record for record in records if record.status is TrialStatus.FAILED]
    begun = written(tmp_path / "begun", sweep(train={"steps": 50}), failed)
    rule = nothing_taken(sweep(train={"steps": 50}, warm_start=[str(begun)]))
    assert rule == "must take a trial at least, got none: none there has ended well"
