"""The command line without a cluster: `--dry-run`, and what becomes of bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import GAIN, sweep_record, trial
from simulated_search import ask, make_searcher

from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune import cli as command_line
from tune.config.input_files import digests
from tune.config.sweep_file import load_sweep
from tune.search.searcher import OptunaSearcher
from tune.sweep import SweepOutcome
from tune.terminal.hints import to_go_on, to_retry

DONE = SweepOutcome({}, [], False, None, [])
INTERRUPTED = SweepOutcome({}, [], True, None, [])
RUN = Path(__file__).parents[3] / "tune" / "run.py"
SETTING = re.compile(r"[a-z_.0-9]+=").match
CONFIRM = "confirm={top_k: 1, seeds: 2}"
Printed = Callable[..., str]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep over local files, in a folder of its own; it trains on 40 rows and holds out one."""
    folder = tmp_path / "project"
    folder.mkdir()
    rows = [{"prompt": f"q{i}", "completion": f" a{i}"} for i in range(41)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    raw = {
        "name": "tiny",
        "model": {"name": "org/model"},
        "data": {"path": "rows.jsonl"},
        "eval": {"in_domain": ["a"]},
        "search": {"lora": {"rank": [3, 7], "alpha_ratio": 2, "learning_rate": [1.25e-4, 2.5e-4]}},
        "objectives": [{"metric": "in_domain/acc_mean", "mode": "max"}],
        "sampler": "grid",
        "train": {"batch_size": 4, "micro_batch_size": 4, "epochs": 3},
        "budget": {"trials": 3},
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def run(sweep: Path, *arguments: str) -> int:
    """The command's exit code, where `key=value` stands for `--set key=value`."""
    words = [part for word in arguments for part in (["--set"] if SETTING(word) else []) + [word]]
    return command_line.main([str(sweep), "--output-dir", str(sweep.parent / "out"), *words])


@pytest.fixture
def dry_run(sweep: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    """What a dry run with these arguments shows."""

    def dry_run(*arguments: str) -> str:
        assert run(sweep, "--dry-run", *arguments) == command_line.OK
        return capsys.readouterr().out

    return dry_run


@pytest.fixture
def refused(sweep: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Why a dry run with these arguments is refused."""

    def refused(*arguments: str) -> str:
        assert run(sweep, "--dry-run", *arguments) == command_line.BAD_INPUT
        return capsys.readouterr().err

    return refused


def begun(sweep: Path, *settings: str, folder: str = "out/tiny") -> tuple[Ledger, OptunaSearcher]:
    """Its records as its first start leaves them, and its search."""
    config = load_sweep(str(sweep), list(settings))
    ledger = Ledger(sweep.parent / folder)
    ledger.write_sweep(sweep_record(config).model_copy(update={"inputs": digests(config)}))
    return ledger, make_searcher(config)


def test_what_the_terminal_cannot_show_does_not_end_the_command(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = TextIOWrapper(BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert run(sweep, "--dry-run", "data.prompt=é{{ prompt }}") == command_line.OK
    terminal.seek(0)
    assert "prompt: ?{{ prompt }}\n" in terminal.read()


def test_the_quickstart_is_shown_from_any_folder_without_torch(tmp_path: Path) -> None:
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(RUN.parent)!r})\n"
        "sys.argv = ['run.py', 'quickstart', '--dry-run']\n"
        f"try: runpy.run_path({str(RUN)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('LOADED', *sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, "COLUMNS": "80"},  # W&B checks its variables, if there is one
    )
    assert done.returncode == 0, done.stderr
    shown, _, loaded = done.stdout.partition("LOADED")
    assert "name: quickstart" in shown
    assert re.search(r"first \d+ of \d+ trials", shown)
    for label in ("lora, rank 32", "full, ZeRO-2 on 1", "base, on 1 GPU"):  # each on one line
        assert re.search(rf"^{label} +[\d.]+ +fits ", shown, re.MULTILINE)
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert "tune.terminal.dry_run" in loaded.split()
    assert not {"torch", "transformers", "datasets", "wandb", "lm_eval"} & set(loaded.split())


def test_it_shows_points_resources_and_an_estimate(sweep: Path, dry_run: Printed) -> None:
    shown = dry_run()
    assert "\n3 trials, of the grid's 4 points:\n  trial 0" in shown
    assert re.search(r"^  trial \d: lora, rank 7, alpha 14, lr \S+$", shown, flags=re.MULTILINE)
    assert "lora: 1 worker(s) a trial, each with 1 CPU and 1 GPU where there is one\n" in shown
    assert "estimate: 40 samples, about 30 optimizer steps" in shown
    assert list(sweep.parent.iterdir()) == list(sweep.parent.glob("*.*"))


def test_of_chats_all_answers_that_are_learned_are_counted(sweep: Path, dry_run: Printed) -> None:
    turns = [{"role": role, "content": "c"} for role in ("user", "assistant")] * 3
    rows = [{"messages": turns[: 2 * (1 + i % 3)]} for i in range(12)]
    file = sweep.with_name("rows.jsonl")
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    every = "data.answers=all"
    of_nine_rows = (every, "data.validation_fraction=0.25")
    for more, samples in (((), 12), ((every,), 24), (of_nine_rows, 18)):
        shown = dry_run("data.messages=messages", *more)
        assert f"estimate: {samples} samples, about" in shown


def test_samples_to_replay_are_counted_and_their_faults_told(
    sweep: Path, dry_run: Printed, refused: Printed
) -> None:
    general = sweep.with_name("general.jsonl")
    general.write_text(json.dumps({"prompt": "q", "completion": "a"}))
    replay = f"data.replay={{path: {general}, share: 0.2}}"
    assert "estimate: 50 samples, about" in dry_run(replay)
    assert refused(replay, "data.replay.text=none").startswith("error: data.replay.text: ")


@pytest.mark.parametrize(
    ("override", "trials", "samples"),
    [
        ("budget.trials=9", 4, "480"),  # as many as the grid has points
        ("confirm={top_k: 2, seeds: 3}", 9, "1,080"),
        ("confirm={top_k: 30, seeds: 3}", 12, "1,440"),  # there are three trials to repeat
        ("search.lora.batch_size=[8]", 3, "360"),
        ("budget.trials=1", 1, "120"),
    ],
)
def test_the_estimate_is_of_all_that_will_be_trained(
    override: str, trials: int, samples: str, dry_run: Printed
) -> None:
    told = f"all {trials} trials" if trials > 1 else "1 trial"
    wanted = f"{samples} samples trained on in {told}"
    assert wanted in " ".join(dry_run(override).split())


def test_it_looks_at_the_earlier_trials_as_the_sweep_itself_would(
    sweep: Path, dry_run: Printed, refused: Printed
) -> None:
    ledger, searcher = begun(sweep)
    own = ask(searcher)
    ledger.write_trial(trial(config=own.config, params=own.params))
    before = sorted(sweep.parent.rglob("*"))
    shown = dry_run()
    assert "1 trial has ended, 2 to run" in shown
    assert "trained on in all 2 yet to run" in shown
    for override, told in {
        "seed=1": "seed: the sweep in",
        "search.lora.rank=[64]": "search.lora.rank: trial 0 of this sweep has rank",
        "warm_start=[nowhere]": "warm_start: no sweep in",
    }.items():
        assert f"error: {told}" in refused("sampler=random", override)
    (sweep.parent / "rows.jsonl").write_text('{"prompt": "q", "completion": " a"}\n')
    assert "data.path: has changed since" in refused()
    assert sorted(sweep.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "3 trials have ended, none is to run"),
        (("--num-trials", "4"), "3 trials have ended, 1 to run: trial 3: lora"),
        (("--retry-failed",), "2 trials have ended, 1 to run: trial 1: lora"),
        (
            (CONFIRM,),
            "3 trials have ended, 2 to run: trial 3: lora",
        ),
        (
            ("--num-trials", "4", CONFIRM),
            "3 trials have ended, 1 to run, then up to 2 repeats of winners; the first 1: trial 3",
        ),
    ],
)
def test_what_has_run_is_not_said_to_be_run_again(
    arguments: tuple[str, ...], told: str, sweep: Path, dry_run: Printed
) -> None:
    ledger, searcher = begun(sweep)
    for number in range(3):
        own = ask(searcher)
        status = TrialStatus.FAILED if number == 1 else TrialStatus.COMPLETE
        metrics = {GAIN: 0.1 * number}
        of_point: dict[str, Any] = {"config": own.config, "params": own.params}
        ledger.write_trial(trial(number, metrics, status, **of_point))
    shown = " ".join(dry_run(*arguments).split())
    assert told in shown
    assert ("optimizer steps" in shown) == ("none" not in told)


def test_it_says_what_a_warm_start_takes_and_what_it_leaves_out(
    sweep: Path, dry_run: Printed, refused: Printed
) -> None:
    earlier, searcher = begun(sweep, "sampler=random", folder="earlier")
    for own, epochs in ((ask(searcher), 3), (ask(searcher), 2)):
        train = own.config.train.model_copy(update={"epochs": epochs})
        changed = own.config.model_copy(update={"train": train})
        earlier.write_trial(trial(own.number, {GAIN: 0.5}, config=changed, params=own.params))
    warm = ("sampler=random", f"warm_start=[{earlier.folder.root}]")
    shown = dry_run(*warm)
    assert "warm_start: took 1 trial(s)" in shown
    assert f"left out 1 of {earlier.folder.root}: was trained with epochs 2.0, not 3.0" in shown
    told = refused(*warm, "train.epochs=1")
    assert "error: warm_start: must take a trial at least, got none" in told


def test_the_wandb_project_is_the_file_s_else_the_sweep_s_else_the_environment_s(
    monkeypatch: pytest.MonkeyPatch, sweep: Path, dry_run: Printed, refused: Printed
) -> None:
    def project(*overrides: str) -> Any:
        shown = dry_run(*overrides).partition("\n3 trials, ")[0]
        return yaml.safe_load(shown)["wandb"]["project"]

    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert project() == "forgetting-sweeps"
    monkeypatch.setenv("WANDB_PROJECT", "me/mine")
    assert "error: WANDB_PROJECT: is refused by W&B: Invalid project" in refused()
    disabled = "wandb.mode=disabled"
    assert project(disabled) == "forgetting-sweeps"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert project() == "forgetting-sweeps"
    refused("wandb.mode=offline")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert project() == "mine"
    assert project(disabled) == "mine"  # where its next start may use W&B
    begun(sweep, "wandb.project=begun")
    assert project() == "begun"
    assert project("wandb.project=other") == "other"


@pytest.mark.parametrize(
    ("trials", "ended", "interrupted", "told"),
    [
        (40, 4, 1, "4 trials have ended, 1 to run:"),
        (40, 4, 9, "4 trials have ended, 9 to run; the first 8:"),
        (6, 4, 2, "4 trials have ended, 2 to run:"),
        (40, 0, 9, "first 8 of 9 trials:"),
    ],
)
def test_where_the_budget_is_spent_only_what_was_interrupted_is_announced(
    trials: int,
    ended: int,
    interrupted: int,
    told: str,
    sweep: Path,
    dry_run: Printed,
) -> None:
    settings = ["sampler=random", f"budget.trials={trials}", "budget.gpu_hours=2"]
    settings.append(CONFIRM)
    ledger, searcher = begun(sweep, *settings)
    for number in range(ended + interrupted):
        own, metrics = ask(searcher), {GAIN: 0.5, "cost/gpu_h": 0.6}
        status = TrialStatus.RUNNING if number >= ended else TrialStatus.COMPLETE
        ledger.write_trial(
            trial(own.number, metrics, status=status, config=own.config, params=own.params)
        )
    assert told in dry_run(*settings)


def test_points_to_try_first_are_shown_first_and_as_the_file_has_them(
    sweep: Path, dry_run: Printed
) -> None:
    override = "search.first=[{rank: 7, learning_rate: 2.5e-4}, {rank: 3, learning_rate: 2.5e-4}]"
    plan, _, shown = dry_run(override).partition("\n3 trials, ")
    rows = re.findall(r"trial (\d): lora, rank (\d), .* (\S+e-04)", shown)
    assert rows[:2] == [("0", "7", "2.5e-04"), ("1", "3", "2.5e-04")]
    assert len(set(rows)) == 3
    again = sweep.with_name("again.yaml")
    again.write_text(plan)
    assert load_sweep(str(again), []) == load_sweep(str(sweep), [override])
    assert "rank: 7\n    learning_rate: 0.00025\n  - rank: 3\n" in plan


@pytest.mark.parametrize(
    "prompt",
    ["[INST] {{ prompt }} [/INST]", "[bold]{{ prompt }}", "{{ prompt }} " + "word " * 40],
)
def test_the_configuration_is_shown_as_yaml_that_can_be_run_again(
    prompt: str, sweep: Path, dry_run: Printed
) -> None:
    override = f"data.prompt={json.dumps(prompt)}"
    shown = dry_run(override).partition("\n3 trials, ")[0]
    again = sweep.with_name("again.yaml")
    again.write_text(shown)
    assert load_sweep(str(again), []) == load_sweep(str(sweep), [override])


BAD: dict[str, Any] = {
    "unknown key": (["trian.steps=5"], "trian: unknown key; did you mean train?"),
    "no such setting": (["--set", "nothing"], "--set: must read KEY=VALUE, got 'nothing'"),
    "no such data": (["data.path=none.jsonl"], "data.path: no such file: "),
    "absent field": (
        ["data.prompt='{{ question }}'"],
        "data.prompt: names question, absent from row 1 of ",
    ),
    "no such folder of tasks": (
        ["eval.task_dirs=[nowhere]"],
        "eval.task_dirs.0: no such file or folder: ",
    ),
    "no such text": (
        ["eval.general_text=nowhere.txt"],
        "eval.general_text: no such file or folder: ",
    ),
    "no such chat template": (
        ["model.chat_template=nowhere.jinja"],
        "model.chat_template: no such file or folder: ",
    ),
    "models looked into where they do not lie in a folder": (
        ["inspect=true", "--output-dir", "s3://bucket/sweeps"],
        "inspect: needs the sweep in a folder, got s3://bucket/sweeps; leave it out; copy",
    ),
    "models looked into that are not kept": (
        ["inspect=true", "train.save_weights=false"],
        "inspect: needs train.save_weights: true",
    ),
    "no such DeepSpeed file": (
        ["deepspeed.config_file=nowhere.json"],
        "deepspeed.config_file: cannot be read: [Errno 2] No such file or directory: ",
    ),
    "no such package": (
        ["model.name=package://no_such_package/m"],
        "model.name: package 'no_such_package' is not installed",
    ),
    "a folder without a model": (
        [f"model.name={RUN.parent}"],
        f"model.name: holds no config.json of a model: {RUN.parent}; paths are relative to ",
    ),
    "an unknown method's schedule": (
        ["deepspeed.config={zero_optimization: {stage: 2}, scheduler: {type: WarmupLR}}"],
        "deepspeed.config: must hold no scheduler",
    ),
    "no trials": (["--num-trials", "0"], "budget.trials: must be >= 1, got 0 (--num-trials 0)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_code_2_and_leaves_nothing_behind(
    case: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD[case]
    assert run(sweep, *arguments) == command_line.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not (sweep.parent / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "rule", "written"),
    [
        (
            "train_micro_batch_size_per_gpu",
            4,
            "leave micro-batches to train.micro_batch_size",
            "auto",
        ),
        ("train_batch_size", 32, "leave batches to train.batch_size", "auto"),
        ("gradient_clipping", 0.5, "leave clipping to train.max_grad_norm", "auto"),
        ("optimizer.params.weight_decay", 0.1, "leave weight decay to train.weight_decay", "auto"),
        ("fp16.enabled", True, "leave the precision to model.dtype", "auto"),
        ("torch_autocast.enabled", True, "leave the precision to model.dtype", "false"),
        ("sequence_parallel_size", 2, "leave each sequence to one worker", "1"),
    ],
)
def test_what_the_trainer_sets_itself_is_refused_in_deepspeed_s_settings(
    key: str, value: Any, rule: str, written: str, refused: Printed
) -> None:
    """Transformers compares it, in each full trial, once the model is loaded."""
    own = "deepspeed.config={zero_optimization: {stage: 2}, optimizer: {type: AdamW}}"
    override = f"deepspeed.config.{key}={json.dumps(value)}"
    got, remedy = json.dumps(value), f"write {written}, or leave it out"
    told = f"error: deepspeed.config: must {rule}, got {key} {got}; {remedy}\n"
    assert refused(own, override) == told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=0", "lora: trials train together in slots of one base, 4 at a time\n"),
        (
            "search.full={learning_rate: [1.0e-5]}",
            "slots of one base, 4 at a time, if the cluster has room for it beside a full trial\n",
        ),
        (
            "search.lora.dora=[true, false]",
            "lora: each trial trains by itself: DoRA's norms are not batched",
        ),
        (
            "resources.lora.workers=2",
            "lora: each trial trains by itself: resources.lora.workers",
        ),
    ],
)
def test_trials_that_will_not_share_a_base_are_not_said_to(
    override: str, told: str, dry_run: Printed
) -> None:
    arguments = ("resources.lora.slots=4", "train.micro_batch_size=1")
    assert told in dry_run(*arguments, override)


def test_faults_of_several_files_are_listed_together(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep.parent / "held_out.jsonl").write_text("oops\n{}\n")
    code = run(
        sweep,
        "eval.general_text=nowhere.txt",
        f"data.validation_path={sweep.parent / 'held_out.jsonl'}",
    )
    lines = capsys.readouterr().err.splitlines()
    assert code == command_line.BAD_INPUT
    assert [line.split(": ")[1] for line in lines] == ["data.validation_path", "eval.general_text"]


@pytest.mark.parametrize(
    ("sampler", "trials", "more"),
    [("grid", 2, 4), ("grid", 3, 4), ("grid", 4, None), ("grid", 20, None), ("tpe", 20, 40)],
)
def test_more_trials_are_offered_where_there_are_any(
    sampler: str, trials: int, more: int | None, sweep: Path
) -> None:
    options = command_line._parser().parse_args(["mine.yaml"])
    config = load_sweep(str(sweep), [f"sampler={sampler}", f"budget.trials={trials}"])
    wanted = [f"python tune/run.py mine.yaml --num-trials {more}   # more trials"] if more else []
    assert to_go_on(options, config, DONE) == wanted
    (goes_on,) = to_go_on(options, config, INTERRUPTED)
    assert "--num-trials" not in goes_on


@pytest.mark.parametrize(
    ("budget", "spent", "wanted"),
    [
        ({"gpu_hours": 3}, "gpu_hours", "tune/run.py mine.yaml --set budget.gpu_hours=6"),
        ({"hours": 3}, "hours", "tune/run.py mine.yaml   #"),
    ],
)
def test_where_a_budget_is_spent_the_line_says_so_and_has_more_of_it(
    budget: dict[str, float], spent: str, wanted: str, sweep: Path
) -> None:
    options = command_line._parser().parse_args(["mine.yaml"])
    config = load_sweep(str(sweep), [f"budget={{trials: 3, {spent}: {budget[spent]}}}"])
    (line,) = to_go_on(options, config, SweepOutcome({}, [], False, spent, []))
    assert wanted in line
    assert f"budget.{spent} is spent" in line
    assert "--num-trials" not in line


def test_what_failed_is_offered_to_be_run_again() -> None:
    options = command_line._parser().parse_args(["mine.yaml", "--num-trials", "8"])
    failed = [trial(3, status=TrialStatus.FAILED), trial(7, status=TrialStatus.CANCELLED)]
    again = "python tune/run.py mine.yaml --retry-failed --num-trials 8   # trials 3, 7 again"
    for interrupted, cut_short_by, ended, told in (
        (False, None, failed, [again]),
        (False, "hours", failed, [again]),
        (False, None, [], []),
        (True, None, failed, []),  # the same command goes on first
    ):
        outcome = SweepOutcome({}, failed, interrupted, cut_short_by, ended)
        assert to_retry(options, outcome) == told
