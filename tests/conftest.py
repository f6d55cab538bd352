"""What all tests need of the process they run in, and the marks of their folders."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# Started in the background of a script they would ignore Ctrl-C, as would the commands they run.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in ("integration", "e2e", "cluster"):
            item.add_marker(folder)
