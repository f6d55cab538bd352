"""The garbage collector, paused."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from trainables.collector import collector_paused

COLLECTIONS = """
import gc
from trainables.config import TrialConfig
from trainables.under_ray.method import trial_function
seen = []
gc.callbacks.append(lambda phase, info: seen.append(phase) if phase == "stop" else None)
trial_function(TrialConfig.model_construct(method="lora"))
print(len(seen), gc.isenabled())
"""


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


def test_a_process_looks_for_no_garbage_as_it_imports_what_trains() -> None:
    told = subprocess.run(
        [sys.executable, "-c", COLLECTIONS], capture_output=True, text=True, check=True, timeout=200
    )
    collections, is_enabled = told.stdout.split()
    assert int(collections) <= 1  # the one that is due when all is imported
    assert is_enabled == "True"
