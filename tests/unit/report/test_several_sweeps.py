"""Sweeps that are shown together: which may be, what is said of it, which trial is whose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from builders import change_base, change_config
from synthetic_sweep import SyntheticSweep

from analysis.comparability import notices
from analysis.paper_table import paper_table, summary_texts
from analysis.report.cost import failures
from analysis.report.formats import as_json, as_markdown
from analysis.report.page import render
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.errors import UserError
from trainables.metric_keys import VALIDATION_LOSS
from trainables.records.ledger import Ledger
from trainables.records.schema import ItemScore, TrialStatus


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    folder = tmp_path_factory.mktemp("sweeps")
    failed = {3: TrialStatus.FAILED, 5: TrialStatus.FAILED}
    sweeps = [SyntheticSweep(trials=8, name=name, failures=failed) for name in ("one", "two")]
    return Results(open_sweeps([sweep.write(folder / sweep.name) for sweep in sweeps]))


def test_failures_say_whose_they_are(results):
    [failure] = failures(results)
    assert failure.trials == "trials 3, 5 of one, trials 3, 5 of two"


def test_the_table_says_whose_its_trials_are(results):
    table = paper_table(results)
    for row, group in zip(table.rows[1:], results.groups, strict=True):
        name, trial, _ = summary_texts(row, [])
        assert name.endswith(f" of {results.sweep(group.best).name}")
        assert trial == f"{group.best.number} (of {len(group.trials)})"
    ids = {row["trial_id"] for row in json.loads(as_json(results))["table"]}
    assert ids == {None, *(group.best.config.trial_id for group in results.groups)}


def test_trials_that_are_as_good_are_those_of_their_sweep(results):
    """Both sweeps drew the same, so the one to take has its like in the other."""
    trial = results.recommendation.trial
    assert results.sweep(trial).name == "one"
    assert f"(as good: trial {trial.number} of two)" in results.recommendation.reason


def test_trials_of_one_sweep_are_their_numbers(results):
    alone = Results(results.sweeps[:1])
    [failure] = failures(alone)
    assert failure.trials == "trials 3, 5"
    row = paper_table(alone).rows[1]
    assert summary_texts(row, [])[1] == f"{row.trial} (of {row.trials})"


def named_alike(folder, names: tuple[str, ...], name: str) -> list:
    """Folders of sweeps that were started under one name; their ids differ."""
    folders = [SyntheticSweep(trials=4, name=n, budget=9).write(folder / n) for n in names]
    for ledger in map(Ledger, folders):
        change_config(ledger, name=name)
    return folders


def test_sweeps_of_one_name_are_told_apart_by_their_ids(tmp_path):
    folders = named_alike(tmp_path, ("one", "two"), "mine")
    results = Results(open_sweeps(folders))
    names = {results.name(record) for record in results.complete}
    assert len(names) == len(results.complete) == 8
    assert (
        results.names(results.complete)
        == "trials 0, 1, 2, 3 of one-id, trials 0, 1, 2, 3 of two-id"
    )
    told = json.loads(as_json(results))
    assert told["unfinished"] == dict.fromkeys(("one-id", "two-id"), "4 of 9 trials ended")
    assert {row["sweep"] for row in told["trials"]} == {"one-id", "two-id"}
    for text in (render(results), as_markdown(results)):
        assert "one-id, two-id" in text
        assert "two-id is unfinished" in text
    assert Results(open_sweeps(folders[:1])).sweeps[0].title == "mine"


def test_a_copy_of_a_sweep_does_not_count_twice(tmp_path):
    folder = SyntheticSweep(trials=4).write(tmp_path / "sweep")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(UserError, match=f"{folder} and {copy} are copies of one sweep") as caught:
        open_sweeps([folder, copy])
    assert len(caught.value.faults) == 1


def test_a_folder_that_is_given_twice_is_read_once(tmp_path):
    folder = SyntheticSweep(trials=4).write(tmp_path / "sweep")
    [sweep] = open_sweeps([folder, f"{folder}/"])
    assert sweep.ledger.folder.root == folder


def with_base_keys(tmp_path, *sweeps: tuple[SyntheticSweep, str, str]) -> Results:
    """Sweeps whose bases have these keys, and these keys of their scores."""
    folders = []
    for sweep, key, scores_key in sweeps:
        folder = sweep.write(tmp_path / sweep.name)
        change_base(Ledger(folder), key=key, scores_key=scores_key)
        folders.append(folder)
    return Results(open_sweeps(folders))


def test_a_trial_that_is_deleted_while_its_sweep_is_opened_has_no_measurements(
    tmp_path, monkeypatch
):
    folder = SyntheticSweep(trials=4).write(tmp_path / "sweep")
    read = Ledger.trials

    def deleted_after(ledger):
        trials = read(ledger)
        shutil.rmtree(folder / "trials" / "0003")
        return trials

    monkeypatch.setattr(Ledger, "trials", deleted_after)
    [sweep] = open_sweeps([folder])
    assert [bool(sweep.histories[trial.number]) for trial in sweep.trials] == [True] * 3 + [False]


def test_sweeps_that_differ_in_the_seed_open_together_and_say_that_kl_does_not_compare(tmp_path):
    one, two = (SyntheticSweep(trials=4, name=f"seed{seed}", seed=seed) for seed in (1, 2))
    results = with_base_keys(tmp_path, (one, "a", "same"), (two, "b", "same"))
    page, text = render(results), as_markdown(results)
    assert all("compare neither KL nor validation losses" in told for told in (page, text))
    alike = with_base_keys(tmp_path / "alike", (one, "a", "same"), (two, "a", "same"))
    assert "compare neither KL" not in as_markdown(alike)
    other = SyntheticSweep(trials=4, name="other", seed=1)  # evaluated in other batches
    batches = with_base_keys(tmp_path / "batches", (one, "a", "same"), (other, "b", "same"))
    assert "compare neither KL" not in as_markdown(batches)


def test_sweeps_of_other_seeds_with_a_validation_file_held_no_other_rows_out(tmp_path):
    one, two = (SyntheticSweep(trials=4, name=f"seed{seed}", seed=seed) for seed in (1, 2))
    results = with_base_keys(tmp_path, (one, "a", "same"), (two, "b", "same"))
    for sweep in results.sweeps:
        data = {**sweep.record.config["data"], "validation_path": "held_out.jsonl"}
        change_config(sweep.ledger, data=data)
    (told,) = notices(open_sweeps([sweep.ledger.folder.root for sweep in results.sweeps]))
    assert "do not compare kl/base_to_tuned" in told
    assert told.endswith("Accuracies, forgetting and validation losses compare.")


def test_the_json_has_what_was_measured_of_each_base(tmp_path):
    """Its validation loss and KL are of rows that each sweep held out itself."""
    folders = [SyntheticSweep(trials=1, name=name).write(tmp_path / name) for name in ("a", "b")]
    for folder, loss in zip(folders, (2.0, 3.0), strict=True):
        ledger = Ledger(folder)
        change_base(ledger, metrics=ledger.base().metrics | {VALIDATION_LOSS: loss})
    told = json.loads(as_json(Results(open_sweeps(folders))))["bases"]
    assert {title: metrics[VALIDATION_LOSS] for title, metrics in told.items()} == {"a": 2, "b": 3}


def test_sweeps_whose_scores_differ_are_refused(tmp_path):
    one, two = (SyntheticSweep(trials=4, name=f"of{n}", items=n) for n in (100, 120))
    with pytest.raises(UserError, match="different evaluations"):
        with_base_keys(tmp_path, (one, "a", "x"), (two, "b", "y"))
    of_another_version = SyntheticSweep(trials=4, name="alike", items=100)
    with_base_keys(tmp_path / "alike", (one, "a", "x"), (of_another_version, "b", "y"))


def test_sweeps_that_score_alike_on_other_questions_are_refused(tmp_path):
    """A base that knows nothing of the domain scores 0 on any."""
    one = SyntheticSweep(trials=1, name="one")
    two = SyntheticSweep(trials=1, name="two", prompt="What is the other item {}?")
    with pytest.raises(UserError, match="different evaluations"):
        with_base_keys(tmp_path, (one, "a", "x"), (two, "b", "y"))
    (tmp_path / "two" / "base" / "items.jsonl").unlink()  # a copy without the bulk of it
    open_sweeps([tmp_path / "one", tmp_path / "two"])


def torn(file: Path) -> None:
    """Cut its second line, as a disk that was full or failed may have."""
    first, second, *others = file.read_text().splitlines(keepends=True)
    file.write_text("".join([first, f"{second[:20]}\n", *others]))


def test_damaged_items_of_the_bases_to_compare_are_named_with_what_to_do(tmp_path):
    one, two, three = (SyntheticSweep(trials=1, name=name) for name in ("one", "two", "three"))
    with_base_keys(tmp_path, (one, "a", "x"), (two, "b", "y"), (three, "c", "z"))
    bases = [tmp_path / name / "base" for name in ("one", "two", "three")]
    torn(bases[0] / "items.jsonl")
    with pytest.raises(UserError) as caught:
        open_sweeps([base.parent for base in bases])
    [fault] = caught.value.faults  # although both others are compared with it
    assert str(fault).startswith(f"{bases[0] / 'items.jsonl'}:2: is not JSON: ")
    assert str(fault).endswith(f"; delete {bases[0]} to evaluate the base anew")


def test_items_of_bases_that_cannot_be_read_are_said_not_to_be(tmp_path, monkeypatch):
    one, two = (SyntheticSweep(trials=1, name=name) for name in ("one", "two"))
    with_base_keys(tmp_path, (one, "a", "x"), (two, "b", "y"))

    def read(self: Ledger) -> list[ItemScore]:
        raise OSError("the store did not answer")

    monkeypatch.setattr(Ledger, "base_items", read)
    folders = [tmp_path / "one", tmp_path / "two"]
    told = f"cannot be read: {folders[0]} and {folders[1]} \\(the store did not answer\\)"
    with pytest.raises(UserError, match=told):
        open_sweeps(folders)


def evaluated_otherwise(
    tmp_path, inputs=(), general_nll=2.5, scores_key="y", **suite: object
) -> list[str]:
    """What is said of two sweeps whose bases score alike, the second's with these changes.

    `inputs`: digests of its files by field; the first's are all `first`.
    """
    sweeps = [SyntheticSweep(trials=1, name=name) for name in ("one", "two")]
    results = with_base_keys(tmp_path, (sweeps[0], "a", "x"), (sweeps[1], "b", scores_key))
    first, second = (sweep.ledger for sweep in results.sweeps)
    digests = dict.fromkeys(inputs, "first")
    first.write_sweep(first.sweep().model_copy(update={"inputs": digests}))
    second.write_sweep(second.sweep().model_copy(update={"inputs": dict(inputs)}))
    change_config(second, eval=second.sweep().config["eval"] | suite)
    change_base(second, general_nll=general_nll)
    return notices(open_sweeps([first.folder.root, second.folder.root]))


@pytest.mark.parametrize(
    ("inputs", "nll"),
    [({}, 3.9), ({"eval.general_text": "second"}, 2.5), ({"eval.general_text": "second"}, 2.501)],
)
def test_sweeps_with_other_general_texts_are_said_to_have_them(tmp_path, inputs, nll):
    [told] = evaluated_otherwise(tmp_path, inputs, general_nll=nll)
    assert told.startswith("These sweeps were measured on other general texts (eval.general_text)")
    assert "do not compare forgetting/nll" in told


@pytest.mark.parametrize(("inputs", "nll"), [({"eval.general_text": "first"}, 2.501), ({}, None)])
def test_one_general_text_up_to_rounding_or_measured_by_one_alone_is_no_other(
    tmp_path, inputs, nll
):
    assert evaluated_otherwise(tmp_path, inputs, general_nll=nll) == []


@pytest.mark.parametrize("suite", [{"kl_prompts": 8}, {"kl_tokens": 8}])
def test_sweeps_that_sampled_otherwise_for_kl_are_said_to_have(tmp_path, suite):
    [told] = evaluated_otherwise(tmp_path, **suite)
    assert "do not compare kl/base_to_tuned" in told


def test_a_sweep_without_kl_has_none_to_compare(tmp_path):
    assert evaluated_otherwise(tmp_path, kl_prompts=0) == []


def test_sweeps_whose_files_of_tasks_differ_are_said_to(tmp_path):
    inputs = {"eval.task_dirs.0": "first", "eval.in_domain.sums.data_files.test": "second"}
    [told] = evaluated_otherwise(tmp_path / "other", inputs)
    files = "content of eval.in_domain.sums.data_files.test"
    assert told.startswith(f"These sweeps were evaluated with other files ({files})")
    assert evaluated_otherwise(tmp_path / "same", inputs, scores_key="x") == []


@pytest.mark.parametrize("keys", ["aa", "ab"])
def test_sweeps_that_were_trained_on_other_data_are_said_to_be(tmp_path, keys):
    one, two = SyntheticSweep(trials=4, name="one"), SyntheticSweep(trials=4, name="two")
    results = with_base_keys(tmp_path, (one, keys[0], "same"), (two, keys[1], "same"))
    other = {"path": "rows.jsonl", "completion": "{{ rationale }}"}
    change_config(results.sweeps[1].ledger, data=other)
    [told] = notices(open_sweeps([sweep.ledger.folder.root for sweep in results.sweeps]))
    assert told.startswith("These sweeps were trained on other data (data.completion)")


def test_sweeps_whose_files_of_data_differ_are_said_to_be_of_other_data(tmp_path):
    folders = [SyntheticSweep(trials=4, name=n).write(tmp_path / n) for n in ("one", "two")]
    for number, ledger in enumerate(map(Ledger, folders)):
        inputs = {"data.path": f"digest {number}", "data.replay.path": "same"}
        ledger.write_sweep(ledger.sweep().model_copy(update={"inputs": inputs}))
    [told] = notices(open_sweeps(folders))
    assert told.startswith("These sweeps were trained on other data (content of data.path)")


def test_of_sweeps_that_replay_other_data_kl_and_validation_losses_compare(tmp_path):
    """No rows are held out of these."""
    folders = [SyntheticSweep(trials=4, name=n).write(tmp_path / n) for n in ("one", "two")]
    ledger = Ledger(folders[1])
    before = ledger.sweep().config["data"]

    def notice_with(**data: object) -> str:
        change_config(ledger, data=before | data)
        [told] = notices(open_sweeps(folders))
        return told

    replay = {"path": "general.jsonl", "share": 0.5}
    differs = "what differs between trials of one and of another may come from there."
    assert notice_with(replay=replay).endswith(f"(data.replay): {differs}")
    assert "neither KL nor validation losses" in notice_with(replay=replay, max_length=9)


def test_of_sweeps_with_one_validation_file_other_training_rows_change_no_validation_loss(tmp_path):
    folders = [SyntheticSweep(trials=4, name=n).write(tmp_path / n) for n in ("one", "two")]
    ledgers = list(map(Ledger, folders))
    before = ledgers[0].sweep().config["data"]

    def notice_with(*paths: str, digests: str = "aa", **data: object) -> str:
        for ledger, path, other, digest in zip(ledgers, paths, ({}, data), digests, strict=True):
            change_config(ledger, data=before | {"validation_path": path} | other)
            inputs = {"data.validation_path": digest}
            ledger.write_sweep(ledger.sweep().model_copy(update={"inputs": inputs}))
        [told] = notices(open_sweeps(folders))
        return told

    one = ("held_out.jsonl", "held_out.jsonl")
    neither = "neither KL nor validation losses compare."
    compare = "Validation losses compare, and KL unless fewer rows are held out"
    assert compare in notice_with(*one, path="other.jsonl")
    assert notice_with(*one, path="other.jsonl", limit=9).endswith(neither)  # of both files
    assert notice_with(*one, digests="ab").endswith(neither)
    assert notice_with("held_out.jsonl", "other.jsonl").endswith(neither)


def test_sweeps_that_were_trained_otherwise_are_said_to_be(tmp_path):
    first, second = (
        SyntheticSweep(trials=4, name=name).write(tmp_path / name) for name in ("one", "two")
    )
    ledger = Ledger(second)
    before = ledger.sweep().config["train"]

    def notices_with(**train: object) -> list[str]:
        change_config(ledger, train=before | train)
        return notices(open_sweeps([first, second]))

    assert notices_with() == notices_with(micro_batch_size=4, report_every=0.5) == []
    [told] = notices_with(steps=7, warmup=0.2, log_every=3)
    assert "(train.steps, train.warmup)" in told
