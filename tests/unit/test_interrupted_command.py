"""Ctrl-C before there are trials that could save a checkpoint."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from tune import command_line


def test_it_says_that_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*of_it: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "load_sweep", interrupted)
    assert command_line.main(["quickstart"]) == command_line.INTERRUPTED
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"
