"""What two runs of the same trial may differ in, and what not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pytest

from trainables.metric_keys import GRAD_NORM, MAX_RESERVED

if TYPE_CHECKING:
    from trainables.records.schema import Measurement

# Clocks and memory are of the process, not of the training.
OF_THE_PROCESS = ("time/", "perf/", "memory/", "cost/")
# The contract: losses and metrics equal within 1e-4 in fp32. Adam divides by the root of the second
# moment, which blows up rounding where gradients are next to nothing; their norm shows it first.
TOLERANCE = 1e-4
TOLERANCE_OF_GRAD_NORM = 2e-3


def of_the_training(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith(OF_THE_PROCESS)}


def by_step(measurements: Iterable[Measurement]) -> dict[int, dict[str, float]]:
    """As the ledger reads them: a step that was gone over again counts as it was at last."""
    return {m.step: of_the_training(m.metrics) for m in measurements}


def assert_measured(found: Sequence[Measurement], expected: Sequence[Measurement]) -> None:
    """Check that the same was measured at the same steps, up to rounding."""
    assert [(m.step, m.strength) for m in found] == [(m.step, m.strength) for m in expected]
    for ours, theirs in zip(found, expected, strict=True):
        # The memory of a process that many trials share is no trial's.
        assert set(ours.metrics) ^ set(theirs.metrics) <= {MAX_RESERVED}
        for key, value in of_the_training(theirs.metrics).items():
            relative = TOLERANCE_OF_GRAD_NORM if key == GRAD_NORM else 0
            wanted = pytest.approx(value, rel=relative, abs=TOLERANCE)
            assert ours.metrics[key] == wanted, f"{key} at step {ours.step}"
