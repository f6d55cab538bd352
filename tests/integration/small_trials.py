"""Trials of a few seconds: their settings, what they gave, and programs that run them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.records.schema import Measurement, TrialResult

SMALL = (
    "seed=0",
    "eval.in_domain=[target_relay]",
    "eval.limit=20",
    "eval.batch_size=16",
    "eval.kl_prompts=4",
    "eval.kl_tokens=4",
    "train.steps=10",
    "train.batch_size=8",
    "train.micro_batch_size=8",
    "train.warmup=0",
    "train.schedule=constant",
    "train.report_every=10",
    "train.log_every=1",
)


def output_of(*program: object, given: str | None = None) -> Any:
    """What a Python program prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, *map(str, program)],
        input=given,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


class Run:
    """A trial that has run: its result and what it reported as it trained."""

    def __init__(self, result: TrialResult, measurements: list[Measurement]) -> None:
        self.result = result
        self.measurements = [m for m in measurements if m.strength == 1]

    def curve(self, key: str = "train/loss") -> list[float]:
        return [m.metrics[key] for m in self.measurements]

    @property
    def last(self) -> dict[str, float]:
        return self.measurements[-1].metrics
