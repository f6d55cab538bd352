"""Sweeps as frames: what is read, in which units, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from synthetic_sweep import STEPS, TASKS, SyntheticSweep

from analysis.frame import (
    describe_metrics,
    items_frame,
    load_trials,
    measurements_frame,
    tasks_frame,
    trials_frame,
)
from analysis.report.formats import as_json, as_markdown
from analysis.results.recommendation import recommend
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.errors import UserError
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC, METRICS
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialStatus
from tune.folder.recorder import Recorder


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    first = SyntheticSweep(
        trials=6,
        failures={2: TrialStatus.FAILED, 3: TrialStatus.DIVERGED, 5: TrialStatus.RUNNING},
    )
    second = SyntheticSweep(trials=4, name="another")
    return open_sweeps([first.write(folder / "first"), second.write(folder / "second")])


def test_every_trial_of_every_sweep_has_a_row(sweeps):
    trials = trials_frame(sweeps)
    assert trials.index.is_unique
    assert trials["sweep"].value_counts().to_dict() == {"synthetic": 6, "another": 4}
    assert trials.loc["synthetic-id-0002", "reason"] == "ValueError: no <b>luck</b>"
    assert math.isnan(trials.loc["synthetic-id-0002", IN_DOMAIN_ACC])
    for sweep in sweeps:
        for record in sweep.trials:
            row = trials.loc[record.config.trial_id]
            assert row["status"] == record.status.value
            assert row["learning_rate"] == record.config.learning_rate
            if record.config.lora:
                assert row["lora/rank"] == record.config.lora.rank
                assert row["lora/scaling"] == record.config.lora.scaling
            else:
                assert math.isnan(row["lora/rank"])


def test_weights_of_a_sweep_that_was_moved_are_named_where_they_are_now(tmp_path, monkeypatch):
    before = SyntheticSweep(trials=3).write(tmp_path / "before")
    best = before / "trials/0001/attempt_1/best"
    for folder in (before / "trials/0000/attempt_1/weights", best):
        folder.mkdir(parents=True)
    ledger = Ledger(before)
    gone_on = {"attempt": 2, "weights_dir": None, "best_weights_dir": str(best)}
    ledger.write_trial(ledger.trials()[1].model_copy(update=gone_on))
    before.rename(tmp_path / "now")
    (before / "trials/0002/attempt_1/weights").mkdir(parents=True)  # of another sweep by now
    monkeypatch.chdir(tmp_path)
    now = Ledger(Path("now"))
    Recorder(now).sweep_ended(now.trials())
    for trials in (load_trials(Path("now")), pd.read_csv("now/results.csv")):
        kept = {
            name: trials[name].dropna().tolist() for name in ("weights_dir", "best_weights_dir")
        }
        assert kept == {
            "weights_dir": [f"{tmp_path}/now/trials/0000/attempt_1/weights"],
            "best_weights_dir": [f"{tmp_path}/now/trials/0001/attempt_1/best"],
        }


def test_measurements_are_those_of_the_ledger(sweeps):
    frame = measurements_frame(sweeps)
    one = frame[(frame["trial_id"] == "another-id-0001") & (frame["metric"] == IN_DOMAIN_ACC)]
    assert one["step"].tolist() == [STEPS // 2, STEPS]
    assert one["share"].tolist() == [0.5, 1.0]
    written = sweeps[1].ledger.measurements(1)
    assert one["value"].tolist() == [
        m.metrics[IN_DOMAIN_ACC] for m in written if IN_DOMAIN_ACC in m.metrics
    ]


def test_tasks_carry_base_gain_and_forgetting_whose_mean_is_the_metric(sweeps):
    frame = tasks_frame(sweeps)
    assert set(frame["task"]) == set(TASKS)
    trials = trials_frame(sweeps)
    forgetting = frame.groupby("trial_id")["forgetting"].mean()
    assert len(forgetting) >= 6
    for trial_id, value in forgetting.items():
        assert value == pytest.approx(trials.loc[trial_id, FORGETTING_MEAN])
    assert (frame.loc[frame["role"] == "ood", "forgetting"].isna()).all()
    assert (frame["gain"] == frame["score"] - frame["base"]).all()


def test_items_give_the_tasks_scores(sweeps):
    items = items_frame(sweeps, numbers=[1])
    assert set(items["number"]) == {1}
    means = items.groupby(["trial_id", "task"])[["base", "tuned"]].mean()
    tasks = tasks_frame(sweeps).set_index(["trial_id", "task"])
    for key, row in means.iterrows():
        assert row["tuned"] == pytest.approx(tasks.loc[key, "score"])
        assert row["base"] == pytest.approx(tasks.loc[key, "base"])


def test_every_metric_column_has_a_unit_and_a_direction(sweeps):
    described = describe_metrics(sweeps)
    logged = {key for s in sweeps for r in s.trials if r.last for key in r.last.metrics}
    assert logged <= set(described.index)
    assert described.loc[FORGETTING_MEAN, "better"] == METRICS[FORGETTING_MEAN].better
    assert described.loc["flips/sorting/forgotten", "better"] == "min"
    assert "flips/sums/forgotten" not in described.index  # of the domain


def refusal(*folders) -> str:
    with pytest.raises(UserError) as caught:
        load_trials(folders)
    return str(caught.value)


def test_what_is_no_sweep_or_has_nothing_yet_is_refused_all_at_once(tmp_path):
    fresh = SyntheticSweep(trials=0).write(tmp_path / "fresh")
    message = refusal(tmp_path / "nothing", fresh)
    assert f"holds no sweep: {tmp_path / 'nothing'}" in message
    assert f"has no trial yet: {fresh}" in message
    unevaluated = SyntheticSweep(trials=1).write(tmp_path / "unevaluated")
    (unevaluated / "base" / "base.json").unlink()
    assert "the base model is not evaluated yet" in refusal(unevaluated)


def test_a_trial_that_fails_after_its_evaluation_keeps_the_scores(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=3).write(tmp_path))
    record = ledger.trials()[1]
    later = Measurement(step=10_000, metrics={"train/loss": 9.0}, time=1.0)
    ledger.append(1, later)
    ledger.write_trial(record.model_copy(update={"status": TrialStatus.FAILED, "last": later}))
    failed = load_trials(tmp_path).iloc[1]
    assert failed["train/loss"] == 9.0
    assert failed["in_domain/acc_mean"] == record.metric("in_domain/acc_mean")


def test_a_trial_that_runs_again_is_as_it_measured_last(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=3).write(tmp_path))
    record = ledger.trials()[1]
    ledger.append(1, Measurement(step=10_000, metrics={"train/loss": 0.5}, time=1.0))
    ledger.write_trial(record.model_copy(update={"status": TrialStatus.RUNNING}))
    (sweep,) = open_sweeps([tmp_path])
    assert sweep.trials[1].last.step == 10_000
    assert sweep.trials[1].metric("train/loss") == 0.5
    assert sweep.trials[1].metric("in_domain/acc_mean") == record.metric("in_domain/acc_mean")


def test_items_without_those_of_the_base_are_refused(tmp_path):
    folder = SyntheticSweep(trials=1).write(tmp_path)
    missing = folder / "base" / "items.jsonl"
    missing.unlink()
    with pytest.raises(UserError) as caught:
        items_frame(open_sweeps(folder))
    rule = f"SWEEP_DIR: lacks the items of the base: {missing}"
    assert str(caught.value) == f"{rule}; copy that file, too, from where the sweep ran"


def test_other_models_and_other_evaluations_are_refused(tmp_path):
    one = SyntheticSweep(trials=1).write(tmp_path / "one")
    other = SyntheticSweep(trials=1, model="other/model").write(tmp_path / "other")
    longer = SyntheticSweep(trials=1, items=50).write(tmp_path / "longer")
    assert "different base models, some/model and other/model" in refusal(one, other)
    quantised = SyntheticSweep(trials=1).write(tmp_path / "quantised")
    record = json.loads((quantised / "sweep.json").read_text())
    record["config"]["model"]["load_in_4bit"] = True
    (quantised / "sweep.json").write_text(json.dumps(record))
    assert "different base models, some/model and some/model in 4 bits" in refusal(one, quantised)
    assert "different evaluations" in refusal(one, longer)


def test_an_unfinished_sweep_says_how_far_it_is(tmp_path):
    running = SyntheticSweep(trials=3, budget=8, failures={2: TrialStatus.RUNNING})
    (sweep,) = open_sweeps([running.write(tmp_path / "a")])
    assert sweep.unfinished == "2 of 8 trials ended, 1 running or interrupted"
    (done,) = open_sweeps([SyntheticSweep(trials=3).write(tmp_path / "b")])
    assert done.unfinished is None
    folder = SyntheticSweep(trials=3, budget=8).write(tmp_path / "c")
    assert open_sweeps([folder])[0].unfinished == "3 of 8 trials ended"


def test_repeats_are_missing_as_long_as_the_command_would_make_them(tmp_path):
    folder = SyntheticSweep(trials=3, full_every=0).write(tmp_path)
    record = json.loads((folder / "sweep.json").read_text())
    record["config"] |= {"confirm": {"top_k": 1, "seeds": 3}, "budget": {"trials": 2}}
    (folder / "sweep.json").write_text(json.dumps(record))
    (sweep,) = open_sweeps([folder])
    one, other, last = sweep.trials
    best = recommend(sweep.settings, [one, other]).trial
    for repeated in (one, other):
        own = {"number": last.number, "trial_id": last.config.trial_id, "seed": 7}
        config = repeated.config.model_copy(update=own)
        repeat = {"confirms": repeated.number, "config": config}
        sweep.ledger.write_trial(last.model_copy(update=repeat))
        # One that is no winner any more, as the search was extended, is not repeated further.
        missing = 2 if repeated is best else 3
        told = f"2 of 2 trials ended, {missing} repeats missing"
        assert open_sweeps([folder])[0].unfinished == told
    *_, repeat = open_sweeps([folder])[0].trials
    sweep.ledger.write_trial(repeat.model_copy(update={"status": TrialStatus.RUNNING}))
    told = f"2 of 2 trials ended, 1 repeat running or interrupted, {missing} repeats missing"
    (found,) = open_sweeps([folder])
    assert found.unfinished == told
    assert f"is unfinished: {told}." in as_markdown(Results([found]))
    assert json.loads(as_json(Results([found])))["unfinished"] == {found.title: told}
    sweep.ledger.write_trial(repeat)
    record["config"]["budget"] = {"trials": 4}  # whose winners are not known yet
    (folder / "sweep.json").write_text(json.dumps(record))
    assert open_sweeps([folder])[0].unfinished == "2 of 4 trials ended"
    record["config"]["budget"] = {"trials": 2, "hours": 2}
    (folder / "sweep.json").write_text(json.dumps(record))
    assert open_sweeps([folder])[0].unfinished is None


def test_a_sweep_in_an_object_store_reads_as_the_same_sweep_on_a_disk(
    tmp_path, bucket, monkeypatch
):
    monkeypatch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path / "cache"))
    local = Ledger(SyntheticSweep(trials=3).write(tmp_path / "sweep"))
    remote = Ledger(f"{bucket}/read-by-analysis")
    remote.write_sweep(local.sweep())
    for record in local.trials():
        remote.write_trial(record)
        for measurement in local.measurements(record.number):
            remote.append(record.number, measurement)
    files = [*local.folder.root.glob("base/*"), *local.folder.root.rglob("items/*.jsonl")]
    for file in files:
        remote.storage.write(local.folder.name(file), file.read_bytes())
    far, near = open_sweeps([remote.folder.location]), open_sweeps([local.folder.root])
    assert trials_frame(far).equals(trials_frame(near))
    assert measurements_frame(far).equals(measurements_frame(near))
    assert items_frame(far).equals(items_frame(near))
    assert len(items_frame(far)) == 3 * 6 * 40
