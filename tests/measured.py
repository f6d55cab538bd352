"""What two runs of the same trial may differ in, and what not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainables.results.records import Measurement

# Clocks and memory are of the process, not of the training.
OF_THE_PROCESS = ("time/", "perf/", "memory/", "cost/")


def of_the_training(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith(OF_THE_PROCESS)}


def by_step(measurements: Iterable[Measurement]) -> dict[int, dict[str, float]]:
    """As the ledger reads them: a step that was gone over again counts as it was at last."""
    return {m.step: of_the_training(m.metrics) for m in measurements}
