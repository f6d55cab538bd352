"""The garbage collector, paused."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import pytest
from builders import trial_config

from trainables.gc_pause import collector_paused
from trainables.workers.method import trial_function

DOORS: dict[str, Callable[[], object]] = {
    "trainables.training.lora": lambda: trial_function(trial_config(method="lora")),
    "trainables.training.full_sft": lambda: trial_function(trial_config(method="full")),
}


class Looks:
    """Finds no module; notes whether the collector is at work as one of a name is looked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_enabled: list[bool] = []

    def find_spec(self, name: str, *_: object) -> None:
        """Called by Python."""
        if name == self._name:
            self.is_enabled.append(gc.isenabled())
            raise ImportError(name)


def test_it_rests_and_goes_on() -> None:
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_it_goes_on_if_an_import_fails() -> None:
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    assert gc.isenabled()


def test_who_has_turned_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("module", DOORS)
def test_it_rests_while_what_trains_is_imported(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(module)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [looks, *sys.meta_path])
    with pytest.raises(ImportError):
        DOORS[module]()
    assert looks.is_enabled == [False]
    assert gc.isenabled()
