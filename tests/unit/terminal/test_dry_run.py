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


def test_characters_that_the_terminal_lacks_are_replaced(
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


def test_points_resources_and_an_estimate_are_shown(sweep: Path, dry_run: Printed) -> None:
    shown = dry_run()
    assert "\n3 trials, of the grid's 4 points:\n  trial 0" in shown
    assert re.search(r"^  trial \d: lora, rank 7, alpha 14, lr \S+$", shown, flags=re.MULTILINE)
    assert "lora: 1 worker(s) a trial, each with 1 CPU and 1 GPU where there is one\n" in shown
    assert "estimate: 40 samples, about 30 optimizer steps" in shown
    assert list(sweep.parent.iterdir()) == list(sweep.parent.glob("*.*"))


def test_the_evaluations_that_strengths_add_are_shown(sweep: Path, dry_run: Printed) -> None:
    search = "search={lora: {rank: [3, 7], alpha_ratio: 2, learning_rate: [1e-4]}, "
    search += "deft: {rank: [4], projection: [qr], learning_rate: [1e-4]}}"
    shown = dry_run("rewind.strengths=[0.5, 0.25, 1]", search)
    assert "\nstrengths 0.25, 0.5: 2 more evaluations at the end of each trial" in shown
    assert "\ndeft: evaluated at strength 1 alone: the directions of projection qr" in shown
    assert "strengths" not in dry_run()


def test_repairs_are_shown_and_where_there_are_none(sweep: Path, dry_run: Printed) -> None:
    search = "search={lora: {rank: 3, alpha_ratio: 2, learning_rate: [1e-4]}, "
    search += "dora: {rank: 3, alpha_ratio: 2, learning_rate: [1e-4]}}"
    shown = dry_run("rewind.repair=[no_intruders]", search)
    assert "\nrepairs no_intruders: one evaluation each, once all trials are done" in shown
    assert "\ndora: not repaired: DoRA has norms beside its factors" in shown
    assert "\nlora: not" not in shown
    assert "\nrepairs" not in dry_run()


def test_earlier_trials_are_checked_as_by_the_sweep_itself(
    sweep: Path, dry_run: Printed, refused: Printed
) -> None:
    ledger, searcher = begun(sweep)
    own = ask(searcher)
    ledger.write_trial(trial(config=own.config, params=own.params))
    before = sorted(sweep.parent.rglob("*"))
    shown = dry_run()
    assert "1 trial has ended, 2 to run" in shown
    assert "trained on in all 2 yet to run" in shown
    for override, message in {
        "seed=1": "seed: the sweep in",
        "search.lora.rank=[64]": "search.lora.rank: trial 0 of this sweep has rank",
        "warm_start=[nowhere]": "warm_start: no sweep in",
    }.items():
        assert f"error: {message}" in refused("sampler=random", override)
    (sweep.parent / "rows.jsonl").write_text('{"prompt": "q", "completion": " a"}\n')
    assert "data.path: has changed since" in refused()
    assert sorted(sweep.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian.steps=5"], "trian: unknown key; did you mean train?"),
        (["--set", "nothing"], "--set: must read KEY=VALUE, got 'nothing'"),
        (["data.path=none.jsonl"], "data.path: no such file: "),
        (["data.prompt='{{ question }}'"], "data.prompt: names question, absent from row 1 of "),
        (["eval.task_dirs=[nowhere]"], "eval.task_dirs.0: no such file or folder: "),
        (["inspect=true", "train.save_weights=false"], "inspect: needs train.save_weights: true"),
        (["deepspeed.config_file=no.json"], "deepspeed.config_file: cannot be read: [Errno 2] No "),
        (["model.name=package://absent/m"], "model.name: package 'absent' is not installed"),
        (
            [f"model.name={RUN.parent}"],
            f"model.name: holds no config.json of a model: {RUN.parent};",
        ),
        (["--num-trials", "0"], "budget.trials: must be >= 1, got 0 (--num-trials 0)"),
    ],
)
def test_bad_input_ends_with_code_2_and_leaves_nothing_behind(
    arguments: list[str], message: str, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sweep, *arguments) == command_line.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not (sweep.parent / "out").exists()


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
    ("override", "trials", "samples"),
    [
        ("budget.trials=9", "all 4 trials", "480"),  # as many as the grid has points
        ("confirm={top_k: 30, seeds: 3}", "all 12 trials", "1,440"),  # of three to repeat
        ("search.lora.batch_size=[8]", "all 3 trials", "360"),
        ("budget.trials=1", "1 trial", "120"),
    ],
)
def test_the_estimate_counts_all_that_will_be_trained(
    override: str, trials: str, samples: str, dry_run: Printed
) -> None:
    wanted = f"{samples} samples trained on in {trials}"
    assert wanted in " ".join(dry_run(override).split())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), "3 trials have ended, none is to run"),
        (("--retry-failed",), "2 trials have ended, 1 to run: trial 1: lora"),
        (
            ("--num-trials", "4", CONFIRM),
            "3 trials have ended, 1 to run, then up to 2 repeats of winners; the first 1: trial 3",
        ),
    ],
)
def test_finished_trials_are_not_announced_again(
    arguments: tuple[str, ...], shown: str, sweep: Path, dry_run: Printed
) -> None:
    ledger, searcher = begun(sweep)
    for number in range(3):
        own = ask(searcher)
        status = TrialStatus.FAILED if number == 1 else TrialStatus.COMPLETE
        metrics = {GAIN: 0.1 * number}
        ledger.write_trial(trial(number, metrics, status, config=own.config, params=own.params))
    assert shown in " ".join(dry_run(*arguments).split())


def test_the_wandb_project_comes_from_the_file_then_the_sweep_then_the_environment(
    monkeypatch: pytest.MonkeyPatch, sweep: Path, dry_run: Printed, refused: Printed
) -> None:
    def project(*overrides: str) -> Any:
        return yaml.safe_load(plan(dry_run(*overrides)))["wandb"]["project"]

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert project() == "forgetting-sweeps"
    monkeypatch.setenv("WANDB_PROJECT", "me/mine")
    assert "error: WANDB_PROJECT: is refused by W&B: Invalid project" in refused()
    assert project("wandb.mode=disabled") == "forgetting-sweeps"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert project() == "mine"
    begun(sweep, "wandb.project=begun")
    assert project() == "begun"
    assert project("wandb.project=other") == "other"


@pytest.mark.parametrize(
    "override",
    [
        "search.first=[{rank: 7, learning_rate: 2.5e-4}, {rank: 3, learning_rate: 2.5e-4}]",
        "data.prompt='[INST] {{ prompt }} [/INST]'",
        f"data.prompt='[bold]{{{{ prompt }}}} {'word ' * 40}'",
    ],
)
def test_the_configuration_is_shown_as_yaml_that_can_be_run_again(
    override: str, sweep: Path, dry_run: Printed
) -> None:
    shown = dry_run(override)
    again = sweep.with_name("again.yaml")
    again.write_text(plan(shown))
    assert load_sweep(str(again), []) == load_sweep(str(sweep), [override])
    if "first" in override:
        rows = re.findall(r"trial \d: lora, rank (\d), .* (\S+e-04)", shown)
        assert rows[:2] == [("7", "2.5e-04"), ("3", "2.5e-04")]
        assert len(set(rows)) == 3


def plan(shown: str) -> str:
    """The configuration that a dry run of three trials shows first."""
    return shown.partition("\n3 trials, ")[0]


def test_settings_that_the_trainer_makes_are_refused_in_deepspeed_s(refused: Printed) -> None:
    own = "deepspeed.config={zero_optimization: {stage: 2}, optimizer: {type: AdamW}}"
    for key, value, field in (
        ("train_micro_batch_size_per_gpu", "4", "train.micro_batch_size"),
        ("train_batch_size", "32", "train.batch_size"),
        ("gradient_clipping", "0.5", "train.max_grad_norm"),
        ("optimizer.params.weight_decay", "0.1", "train.weight_decay"),
        ("fp16.enabled", "true", "model.dtype"),
        ("sequence_parallel_size", "2", "write 1"),
    ):
        error = refused(own, f"deepspeed.config.{key}={value}")
        assert error.startswith("error: deepspeed.config: must ")
        assert f"got {key} {value};" in error
        assert field in error


@pytest.mark.parametrize(
    ("settings", "outcome", "wanted"),
    [
        (["budget.trials=3"], DONE, "--num-trials 4   # more trials"),
        (["budget.trials=4"], DONE, None),
        (["sampler=tpe", "budget.trials=20"], DONE, "--num-trials 40   # more trials"),
        ([], INTERRUPTED, "mine.yaml   #"),
        (
            ["budget={trials: 3, gpu_hours: 3}"],
            SweepOutcome({}, [], False, "gpu_hours", []),
            "--set budget.gpu_hours=6   # budget.gpu_hours is spent",
        ),
    ],
)
def test_the_command_that_goes_on_is_offered(
    settings: list[str], outcome: SweepOutcome, wanted: str | None, sweep: Path
) -> None:
    options = command_line._parser().parse_args(["mine.yaml"])
    lines = to_go_on(options, load_sweep(str(sweep), settings), outcome)
    assert len(lines) == (wanted is not None)
    assert (wanted or "") in "".join(lines)


def test_failed_trials_are_offered_to_be_run_again() -> None:
    options = command_line._parser().parse_args(["mine.yaml", "--num-trials", "8"])
    failed = [trial(3, status=TrialStatus.FAILED), trial(7, status=TrialStatus.CANCELLED)]
    again = "python tune/run.py mine.yaml --retry-failed --num-trials 8   # trials 3, 7 again"
    for interrupted, cut_short_by, ended, lines in (
        (False, "hours", failed, [again]),
        (False, None, [], []),
        (True, None, failed, []),  # the same command goes on first
    ):
        outcome = SweepOutcome({}, failed, interrupted, cut_short_by, ended)
        assert to_retry(options, outcome) == lines
