"""Which earlier trials a sweep may go on from, and what it says of those it may not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from builders import EVAL, GAIN, LOSS, change_config, measurement, sweep_record, trial
from faults import faults
from simulated_search import Judge, judge, run, searcher_of, sweep

from analysis.results.recommendation import numbers_text
from trainables.errors import UserError
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.same_sweep import check_same_sweep
from tune.config.sweep_config import SweepConfig
from tune.search.earlier_trials import (
    LEFT_OUTSIDE,
    EarlierTrials,
    earlier_trials,
    import_trials,
    own_trials,
)
from tune.search.searcher import OptunaSearcher
from tune.search.space import params_of

PLAIN: dict[str, Any] = {
    "lora": {
        "rank": [2, 8, 32],
        "alpha_ratio": [1, 2],
        "learning_rate": {"low": 1e-5, "high": 1e-3},
    },
    "full": {"learning_rate": {"low": 1e-5, "high": 1e-3}},
}

SHAPE = dict.fromkeys(
    ("hidden", "intermediate", "vocabulary", "layers", "heads", "kv_heads", "head_size"), 8
)


def finished(config: SweepConfig, judge: Judge = judge) -> list[TrialRecord]:
    return run(searcher_of(config), judge)


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
def test_every_point_comes_back_under_its_own_parameters(ratios: list[float]) -> None:
    modules = ["all-linear", ["q_proj", "v_proj"]]
    lora = PLAIN["lora"] | {"alpha_ratio": ratios, "target_modules": modules, "dropout": [0, 0.1]}
    lora |= {"warmup": [0, 0.1], "weight_decay": [0, 0.01]}
    config = sweep("random", trials=40, search=PLAIN | {"lora": lora})
    for record in finished(config):
        assert params_of(config.search, config.train, record.config) == record.params


def test_the_same_file_is_the_same_sweep() -> None:
    config = sweep()
    check_same_sweep(config.model_dump(mode="json"), config, Path("here"))


def test_the_same_modules_in_another_order_are_the_same_point() -> None:
    def of(*modules: str) -> SweepConfig:
        return sweep(search={"lora": PLAIN["lora"] | {"target_modules": [list(modules)]}})

    (record,) = run(searcher_of(of("q", "v")), trials=1)
    told = record.model_dump_json().replace('["q","v"]', '["v","q"]')
    assert '["v","q"]' in told
    for config in (of("q", "v"), of("v", "q")):
        before = TrialRecord.model_validate_json(told)
        assert own_trials(config, [before]) == [record]


def test_a_sweep_of_a_version_with_fewer_settings_goes_on() -> None:
    config = sweep()
    earlier = config.model_dump(mode="json")
    del earlier["data"]["validation_split"]
    earlier["resources"]["lora"]["gpus_per_worker"] = 2  # which was taken then
    check_same_sweep(earlier, config, Path("here"))


def test_a_sweep_of_a_version_with_more_settings_goes_on_where_none_of_them_is_used() -> None:
    config = sweep()
    later = config.model_dump(mode="json")
    later["eval"]["of_later"] = None
    check_same_sweep(later, config, Path("here"))
    later["eval"]["of_later"] = 3
    with pytest.raises(UserError, match=r"started with eval\.of_later 3, not null"):
        check_same_sweep(later, config, Path("here"))


def test_a_sweep_goes_on_that_was_begun_with_another_way_to_its_files(tmp_path: Path) -> None:
    """Through a link, or with `..` in it, as earlier versions recorded it."""
    folder, rows = tmp_path / "folder", tmp_path / "rows.jsonl"
    folder.mkdir()
    rows.touch()
    data, tasks = {"path": str(rows)}, {"task_dirs": [str(folder)]}
    config = sweep(data=data, eval=EVAL | tasks)
    earlier = config.model_dump(mode="json")
    earlier["data"]["path"] = f"{folder}/../rows.jsonl"
    (tmp_path / "link").symlink_to(folder)
    earlier["eval"]["task_dirs"] = [str(tmp_path / "link")]
    check_same_sweep(earlier, config, Path("here"))
    other = sweep(data={"path": str(tmp_path / "others.jsonl")}, eval=EVAL | tasks)
    with pytest.raises(UserError, match="started with data"):
        check_same_sweep(earlier, other, Path("here"))


def test_a_sweep_with_more_kl_prompts_than_one_version_took_goes_on() -> None:
    config = sweep(eval={**EVAL, "kl_prompts": 2000})
    check_same_sweep(config.model_dump(mode="json"), config, Path("here"))


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
def test_another_question_is_another_sweep(section: str, value: object, told: str) -> None:
    with pytest.raises(UserError) as caught:
        check_same_sweep(
            sweep().model_dump(mode="json"), sweep(**{section: value}), Path("sweeps/tiny")
        )
    (fault,) = caught.value.faults
    assert fault.field == section
    assert told in fault.rule
    assert "sweeps/tiny" in fault.rule


def test_an_edited_deepspeed_file_makes_another_sweep_and_a_moved_one_does_not() -> None:
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
        ("train", {"gradient_checkpointing": True}),
        ("eval", {**EVAL, "batch_size": 2}),
        ("deepspeed", {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}),
        ("deepspeed", {"config": {"zero_optimization": {"stage": 3}, "steps_per_print": 9}}),
        ("model", {"name": "some/model", "shape": SHAPE}),
    ],
)
def test_what_trials_hold_in_memory_may_change(
    section: str, value: dict[str, Any], tmp_path: Path
) -> None:
    """As where memory ran out: `--retry-failed` runs those again then."""
    config = sweep(**{section: value})
    check_same_sweep(sweep().model_dump(mode="json"), config, Path("here"))
    earlier = written(tmp_path / "earlier", sweep(), finished(sweep()))
    found, _ = import_trials(config.model_copy(update={"warm_start": (str(earlier),)}), {})
    assert found


def test_a_wider_search_takes_every_trial_with_it() -> None:
    lora = PLAIN["lora"] | {"rank": [2, 4, 8, 32, 64], "dropout": [0.0, 0.1]}
    config = sweep(search=PLAIN | {"lora": lora}, objectives=[{"metric": LOSS, "mode": "min"}])
    records = finished(sweep())
    found = own_trials(config, records)
    assert [record.number for record in found] == [record.number for record in records]
    for record in found:
        if record.config.lora:
            assert record.params["lora/dropout"] == 0.0
    assert len(run(searcher_of(sweep(trials=30, search=PLAIN | {"lora": lora}), found))) == 6


def test_a_search_that_leaves_a_trial_outside_is_refused_with_the_reason() -> None:
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


def test_a_misspelt_value_can_be_mended_where_no_trial_measured_anything(tmp_path: Path) -> None:
    config, mended = on("nope", trials=3), on("q_proj", trials=3)
    failed = run(searcher_of(config), failing)
    begun = failed[2].model_copy(update={"status": TrialStatus.RUNNING, "ended": None})
    ledger = Ledger(written(tmp_path / "own", config, [*failed[:2], begun]))
    found = earlier_trials(mended, ledger, {})
    assert (found.own, found.outside) == ([], [*failed[:2], begun])
    (told,) = found.in_words()
    assert told.endswith("neither counted nor run again: trials 0, 1, 2")
    assert found.ended(True) == found.to_go_on(True) == []
    after = run(searcher_of(mended, outside=found.outside))
    assert [record.number for record in after] == [3, 4, 5]
    assert {record.config.lora.target_modules for record in after if record.config.lora} == {
        ("q_proj",)
    }
    diverged = failed[0].model_copy(update={"status": TrialStatus.DIVERGED})
    assert refused(mended, [diverged])  # which it may before anything is measured
    ledger.append(2, measurement(1, {LOSS: 1.0}))
    with pytest.raises(UserError, match=r"target_modules: trial 2 of this sweep has"):
        earlier_trials(mended, ledger, {})


def test_what_a_search_left_outside_goes_on_once_it_is_inside_again(tmp_path: Path) -> None:
    narrow, wide = on("q_proj", trials=3), on("v_proj", trials=3)
    begun = run(searcher_of(wide))[0].model_copy(
        update={"status": TrialStatus.RUNNING, "last": None, "best": {}, "ended": None}
    )
    ledger = Ledger(written(tmp_path / "own", wide, [begun]))
    assert earlier_trials(narrow, ledger, {}).outside == [begun]
    left = begun.ended_as(LEFT_OUTSIDE, begun.began)
    ledger.write_trial(left)
    found = earlier_trials(wide, ledger, {})
    assert (found.ended(False), found.to_go_on(False)) == ([], [left])


def test_what_was_interrupted_goes_on_and_what_failed_if_that_is_asked_for() -> None:
    own = [trial(number, status=status) for number, status in enumerate(TrialStatus)]
    found = EarlierTrials(own, [], [], is_warm_new=False)
    failed = {TrialStatus.FAILED, TrialStatus.CANCELLED, TrialStatus.OUT_OF_MEMORY}
    for retry_failed, again in ((False, set()), (True, failed)):
        going_on = found.to_go_on(retry_failed)
        assert {record.status for record in going_on} == {TrialStatus.RUNNING, *again}
        assert found.ended(retry_failed) == [record for record in own if record not in going_on]


def seen(searcher: OptunaSearcher) -> list[Any]:
    return [(trial.state, trial.values, trial.constraints) for trial in searcher.study.trials]


@pytest.mark.parametrize("goals", [{}, {"constraints": ["kl/base_to_tuned <= 1"]}])
@pytest.mark.parametrize("without", [range(1), range(2, 3), range(24)])
def test_a_sweep_goes_on_beside_trials_whose_metric_was_not_finite(
    goals: dict[str, Any], without: range
) -> None:
    def overflowing(trial: Any) -> Any:
        status, metrics = judge(trial)
        if trial.number in without:
            return status, metrics | {LOSS: math.inf, "kl/base_to_tuned": math.nan}
        return status, metrics | {"kl/base_to_tuned": 0.1}

    config = sweep(**goals)
    live = searcher_of(config)
    whole = run(live, overflowing)
    for done in (1, 20):
        known = own_trials(config, whole[:done])
        after = run(searcher_of(config, known), overflowing)
        assert [r.params for r in [*known, *after]] == [r.params for r in whole]
    assert seen(searcher_of(config, whole)) == seen(live)


def test_a_warm_start_takes_what_fits_and_says_what_it_leaves_out(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("began_as", [None, "tpe", "grid"])
def test_a_grid_takes_no_warm_start(tmp_path: Path, began_as: str | None) -> None:
    """Its points would count as run: with another seed none was left."""
    earlier = written(tmp_path / "earlier", sweep(), finished(sweep()))
    methods = {"lora": PLAIN["lora"] | {"learning_rate": [1e-4]}}
    if began_as:
        warm = sweep(began_as, search=methods, warm_start=[str(earlier)])
        written(tmp_path / "own", warm, [])
    own = Ledger(tmp_path / "own")
    config = sweep("grid", search=methods, warm_start=[str(earlier)])
    with pytest.raises(UserError, match="warm_start: must not be given to a grid"):
        earlier_trials(config, own, {})
    without = earlier_trials(sweep("grid", search=methods), own, {})
    assert (without.is_warm_new, without.warm) == (True, []) if began_as else without.is_warm_new


def test_a_warm_start_leaves_out_trials_of_another_optimizer(tmp_path: Path) -> None:
    """Of full fine-tuning alone; sharding otherwise changes no result."""
    other = {"config": {"optimizer": {"type": "OneBitAdam"}, "gradient_clipping": 0.1}}
    trained = sweep(deepspeed=other)
    records = finished(trained)
    earlier = str(written(tmp_path / "earlier", trained, records))
    found, (line,) = import_trials(sweep(warm_start=[earlier]), {})
    assert {record.config.method for record in found} == {"lora"}
    assert "was trained with another deepspeed.config" in line
    other["config"]["zero_optimization"] = {"stage": 3}
    sharded = sweep(warm_start=[earlier], deepspeed=other)
    taken, left_out = import_trials(sharded, {})
    assert not left_out
    assert {record.config.method for record in taken} == {"lora", "full"}


def test_a_warm_start_from_another_question_or_from_nothing_is_refused(tmp_path: Path) -> None:
    other = written(tmp_path / "other", sweep(model={"name": "other"}), [])
    with pytest.raises(UserError) as caught:
        import_trials(sweep(warm_start=[str(other), str(tmp_path / "nothing")]), {})
    first, second = map(str, caught.value.faults)
    assert first == (
        f'warm_start: {other} was started with model.name "other", not "some/model": its '
        "results mean other things; leave it out, or give model, data and eval as there"
    )
    assert "no sweep in" in second


def test_a_warm_start_whose_trials_are_known_already_is_refused(tmp_path: Path) -> None:
    """The sampler would count them twice, and later ones have other seeds."""
    config = sweep()
    own, copy = (written(tmp_path / name, config, finished(config)) for name in ("own", "copy"))
    for folders in ([str(own)], [str(copy)]):
        with pytest.raises(UserError, match="is this sweep or one that is named before it"):
            earlier_trials(sweep(warm_start=folders), Ledger(own), {})
    twice = sweep(warm_start=[str(own), str(copy)], seed=1)
    with pytest.raises(UserError, match=f"warm_start: {copy} is this sweep or one that is named"):
        earlier_trials(twice, Ledger(tmp_path / "new"), {})


def test_a_warm_start_from_before_an_edit_of_its_files_is_refused(tmp_path: Path) -> None:
    earlier = written(tmp_path / "earlier", sweep(), finished(sweep()))
    ledger, config = Ledger(earlier), sweep(warm_start=[str(earlier)])
    record = ledger.sweep()
    ledger.write_sweep(record.model_copy(update={"inputs": {"data.path": "a", "model.name": "m"}}))
    assert import_trials(config, {"data.path": "a", "eval.general_text": "g"})[0]
    with pytest.raises(UserError, match=r"was started with other content in data\.path: "):
        import_trials(config, {"data.path": "b"})


def test_a_warm_start_from_another_version_is_one_with_another_section(tmp_path: Path) -> None:
    earlier = written(tmp_path / "earlier", sweep(), finished(sweep()))
    ledger, config = Ledger(earlier), sweep(warm_start=[str(earlier)])
    of_before = {"path": "rows.jsonl"}  # before there were the others
    change_config(ledger, data=of_before)
    assert import_trials(config, {})[0]
    change_config(ledger, data={**of_before, "shuffled": True})
    with pytest.raises(UserError, match=r"was started with data\."):
        import_trials(config, {})


def nothing_taken(config: SweepConfig) -> str:
    (fault,) = faults(import_trials, config, {})
    assert fault.field == "warm_start"
    return fault.rule


def test_a_warm_start_that_takes_no_trial_is_refused(tmp_path: Path) -> None:
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


def test_a_sweep_that_began_with_such_a_warm_start_goes_on(tmp_path: Path) -> None:
    earlier = written(tmp_path / "earlier", sweep(), [])
    config = sweep(warm_start=[str(earlier)])
    found = earlier_trials(config, Ledger(written(tmp_path / "own", config, [])), {})
    assert (found.warm, found.in_words()) == ([], [])


def test_trials_of_another_seed_warm_start(tmp_path: Path) -> None:
    records = finished(sweep(trials=5))
    earlier = written(tmp_path / "earlier", sweep(trials=5), records)
    found, left_out = import_trials(sweep(seed=3, warm_start=[str(earlier)]), {})
    complete = [record for record in records if record.status is TrialStatus.COMPLETE]
    assert ([record.params for record in found], left_out) == ([r.params for r in complete], [])


def test_complete_trials_without_an_objective_do_not_warm_start(tmp_path: Path) -> None:
    def half(trial: Any) -> Any:
        return TrialStatus.COMPLETE, {GAIN: 0.5}

    earlier = written(tmp_path / "earlier", sweep(), finished(sweep(trials=3), half))
    assert f"never logged {LOSS}" in nothing_taken(sweep(warm_start=[str(earlier)]))
