"""Trials that are trained once a session."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
from trained_trials import KINDS, TRAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig


@pytest.fixture(scope="session")
def undisturbed(
    make_trial: Callable[..., TrialConfig], run: Callable[..., object]
) -> Callable[[str], tuple[TrialConfig, object]]:
    """A trial of a kind that trained to its end, and its run. Its folder must not be changed."""

    @cache
    def trained(kind: str) -> tuple[TrialConfig, object]:
        trial = make_trial(**KINDS[kind], train=TRAIN)
        return trial, run(trial)

    return trained
