"""A variable that W&B refuses would cost the sweep all its runs: it is refused before the start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainables.errors import UserError
from tune import cli as command_line
from tune.config.sweep_config import WandbConfig
from tune.tracking.wandb_settings import asked_mode, check_variables

REMEDY = "set it otherwise or unset it, or give wandb.mode: disabled"
REFUSED = {
    "WANDB_TAGS": "a,b,",
    "WANDB_MODE": "foo",
    "WANDB_BASE_URL": "127.0.0.1:18777",
    "WANDB_SILENT": "maybe",
    "WANDB_HTTP_TIMEOUT": "long",
    "WANDB__SERVICE_WAIT": "-1",
}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None is given from outside, and none stays."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        yield


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_what_wandb_refuses_is_named_with_its_value(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        check_variables(WandbConfig())
    (fault,) = refused.value.faults
    assert (fault.field, fault.remedy) == (name, REMEDY)
    assert fault.rule.endswith(f", got {value!r}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_API_KEY", f"{'f00d' * 10} "),
        ("WANDB__EXTRA_HTTP_HEADERS", "authorization: f00d"),
        ("WANDB_BASE_URL", "me:f00d@server"),
    ],
)
def test_what_may_be_secret_is_not_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}: is refused by W&B: ") as refused:
        check_variables(WandbConfig())
    assert "f00d" not in str(refused.value)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "")
    assert asked_mode(WandbConfig()) is None
    check_variables(WandbConfig())
    assert "WANDB_MODE" not in os.environ


def test_the_command_ends_before_anything_runs_unless_wandb_is_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "_run", lambda *_: pytest.fail("the sweep is run"))
    command = ["quickstart", "--output-dir", str(tmp_path)]
    monkeypatch.setenv("WANDB_TAGS", "a" * 65)
    assert command_line.main(command) == command_line.BAD_INPUT
    assert "error: WANDB_TAGS: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    planned = [*command, "--dry-run"]
    assert command_line.main(planned) == command_line.BAD_INPUT
    assert command_line.main([*planned, "--set", "wandb.mode=disabled"]) == command_line.OK
