"""`python -m analysis gate` on recorded sweeps: which trial, exit codes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.gate.plain_settings import read_plain_settings
from analysis.gate.sweep_trial import read_trial
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.errors import UserError
from trainables.metric_keys import FORGETTING_MEAN
from trainables.records.item_records import items_file, write_items
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    failures = {5: TrialStatus.STOPPED_EARLY}
    return SyntheticSweep(trials=8, items=200, failures=failures).write(tmp_path / "sweep")


def test_exit_codes_follow_the_interval_that_the_report_shows(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(open_sweeps([sweep]))
    assert results.recommendation is not None
    trial = results.recommendation.trial
    interval = results.items.interval(trial, FORGETTING_MEAN, len(results.candidates))
    assert interval is not None
    low, value, high = interval.low, interval.estimate, interval.high
    assert 0 < low < value < high
    for bound, code, word in ((high, 0, "pass"), (low / 2, 1, "fail"), (1.1 * value, 3, "cannot")):
        file = tmp_path / "gate.xml"
        given = [str(sweep), "--max-forgetting", str(bound), "--junit", str(file)]
        assert main(["gate", *given, "--min", "in_domain/acc_mean=0.01"]) == code
        out, err = capsys.readouterr()
        first, second = out.splitlines()
        assert first.startswith(f"{word}")
        assert f"{value:.4g} ({low:.4g} to {high:.4g}, {interval.n} items)" in first
        assert second.startswith("pass: in_domain/acc_mean >= 0.01: ")
        assert err.startswith(f"trial {trial.number} of synthetic: ")
        assert "recommended" in err
        assert len(ElementTree.parse(file).getroot()[0]) == 2  # noqa: S314


def test_a_point_is_judged_by_its_own_metrics_and_items(sweep: Path) -> None:
    """The base's own answers at strength 0.4: nothing is forgotten there."""
    ledger = Ledger(sweep)
    record = ledger.trial(3)
    assert record.last is not None
    metrics = record.metrics | {FORGETTING_MEAN: 0.0}
    point = record.last.model_copy(update={"strength": 0.4, "metrics": metrics})
    ledger.append(3, point)
    ledger.write_trial(record.after(point))
    write_items(items_file(ledger.folder.attempt(3, 1), point.name), ledger.base_items())
    arguments = ["gate", str(sweep), "--trial", "3", "--max-forgetting", "0.02"]
    assert main([*arguments, "--strength", "1"]) == 1
    assert main([*arguments, "--strength", "0.4"]) == 0
    assert read_trial(sweep, 3, 0.4).name == "trial 3 at strength 0.4 of synthetic"
    with pytest.raises(UserError, match=r"not evaluated at 0\.5; the nearest is 0\.4, of 0\.4, 1"):
        read_trial(sweep, 3, 0.5)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ([], ["gate", "--max-forgetting"]),
        (["--max-forgetting", "0.1", "--trial", "99"], ["--trial", "99", "complete: trials 0, 1"]),
        (["--max-forgetting", "0.1", "--trial", "5"], ["--trial", "5 is stopped early"]),
        (["--min", "in_domain/acc=0.1"], ["--min", "in_domain/acc;", "did you mean in_domain/"]),
        (["--max-forgetting", "0.1", "--tasks", "piqa"], ["--tasks", "--base"]),
        (["--max-forgetting", "0.1", "--base", "b", "--trial", "1"], ["--trial", "sweep"]),
        (["--max-forgetting", "0.1", "--base", "b", "--model", "m"], ["--model", "once"]),
        (["--max-forgetting", "0.1", "--base", "b"], ["--tasks", "at least one"]),
        (["--max-forgetting", "9", "--junit", "/dev/null/x"], ["--junit", "/dev/null/x"]),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_to_do(
    sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], facts: list[str]
) -> None:
    assert main(["gate", str(sweep), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert [fact for fact in facts if fact not in error] == []


def test_a_sweep_without_its_items_is_refused(sweep: Path) -> None:
    Ledger(sweep).folder.base_items.unlink()
    with pytest.raises(UserError, match=r"items.*base/items\.jsonl"):
        read_trial(sweep, None, None)


def test_a_model_without_its_base_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert main(["gate", str(tmp_path), "--max-forgetting", "0.1"]) == 2
    assert "--base" in capsys.readouterr().err


def test_tasks_have_the_role_before_the_colon_or_retention() -> None:
    tasks = ["piqa", "in_domain:mine", "ood:a:b", "odd:name"]
    overrides = ["eval.limit=50", "model.dtype=float32", "eval.ood=[{task: x, num_fewshot: 2}]"]
    settings = read_plain_settings("some/base", tasks, overrides)
    labels = [(role, task.label) for role, task in settings.suite.tasks()]
    assert labels == [
        ("in_domain", "mine"),
        ("retention", "piqa"),
        ("retention", "odd:name"),
        ("ood", "x"),
    ]
    assert settings.suite.limit == 50
    assert settings.of("other").dtype == "float32"


@pytest.mark.parametrize(
    ("override", "field", "fact"),
    [
        ("limit=50", "--set", "limit=50"),
        ("eval.limit=0", "eval.limit", "got 0"),
        ("eval.limits=5", "eval.limits", "limit?"),
        ("model.dtype=int8", "model.dtype", "'int8'"),
        ("eval.limit=[", "--set", "YAML"),
        ("eval.in_domain=[piqa]", "eval", "more than once"),
    ],
)
def test_faulty_settings_are_refused(override: str, field: str, fact: str) -> None:
    with pytest.raises(UserError) as caught:
        read_plain_settings("some/base", ["piqa"], [override])
    [fault] = caught.value.faults
    assert fault.field == field
    assert fact in str(fault)
