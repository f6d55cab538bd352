"""Sweeps as frames: what is read, in which units, and what is refused."""

from __future__ import annotations

import math

import pytest
from builders import change_config, repeat_of
from synthetic_sweep import STEPS, TASKS, SyntheticSweep

from analysis.frame import (
    items_frame,
    load_trials,
    measurements_frame,
    tasks_frame,
    trials_frame,
)
from analysis.results.recommendation import recommend
from analysis.sweeps import open_sweeps
from trainables.errors import UserError
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC
from trainables.records.ledger import Ledger
from trainables.records.schema import Measurement, TrialStatus


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
    for record in sweeps[0].trials:
        row = trials.loc[record.config.trial_id]
        assert row["status"] == record.status.value
        assert row["learning_rate"] == record.config.learning_rate
        if record.config.capacity:
            assert (row["capacity_name"], row["capacity"]) == ("rank", row["lora/rank"])
            assert row["lora/rank"] == record.config.method.rank
        else:
            assert math.isnan(row["lora/rank"])


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


def refusal(*folders) -> str:
    with pytest.raises(UserError) as caught:
        load_trials(folders)
    return str(caught.value)


def test_folders_without_a_sweep_or_trials_or_base_are_refused(tmp_path):
    fresh = SyntheticSweep(trials=0).write(tmp_path / "fresh")
    message = refusal(tmp_path / "nothing", fresh)
    assert f"holds no sweep: {tmp_path / 'nothing'}" in message
    assert f"has no trial yet: {fresh}" in message
    unevaluated = SyntheticSweep(trials=1).write(tmp_path / "unevaluated")
    (unevaluated / "base" / "base.json").unlink()
    assert "the base model is not evaluated yet" in refusal(unevaluated)


def test_other_models_and_other_evaluations_are_refused(tmp_path):
    one = SyntheticSweep(trials=1).write(tmp_path / "one")
    other = SyntheticSweep(trials=1, model="other/model").write(tmp_path / "other")
    longer = SyntheticSweep(trials=1, items=50).write(tmp_path / "longer")
    assert "different base models, some/model and other/model" in refusal(one, other)
    assert "different evaluations" in refusal(one, longer)


def test_a_trial_that_goes_on_after_its_record_has_its_newest_measurement(tmp_path):
    ledger = Ledger(SyntheticSweep(trials=3).write(tmp_path))
    record = ledger.trials()[1]
    ledger.append(1, Measurement(step=10_000, metrics={"train/loss": 0.5}, time=1.0))
    ledger.write_trial(record.model_copy(update={"status": TrialStatus.RUNNING}))
    (sweep,) = open_sweeps([tmp_path])
    assert sweep.trials[1].metric("train/loss") == 0.5
    assert sweep.trials[1].metric(IN_DOMAIN_ACC) == record.metric(IN_DOMAIN_ACC)


def test_an_unfinished_sweep_says_what_is_missing(tmp_path):
    running = SyntheticSweep(trials=3, budget=8, failures={2: TrialStatus.RUNNING})
    (sweep,) = open_sweeps([running.write(tmp_path / "a")])
    assert sweep.unfinished == "2 of 8 trials ended, 1 running or interrupted"
    folder = SyntheticSweep(trials=3).write(tmp_path / "b")
    (done,) = open_sweeps([folder])
    assert done.unfinished is None
    change_config(done.ledger, confirm={"top_k": 1, "seeds": 3})
    done.ledger.write_trial(repeat_of(recommend(done.settings, done.trials).trial, 100, {}))
    assert open_sweeps([folder])[0].unfinished == "3 of 3 trials ended, 2 repeats missing"


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
