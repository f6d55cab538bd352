"""What a trial and a sweep leave behind: the schema of every record on disk."""

from __future__ import annotations

import math
import time
from enum import StrEnum

from pydantic import Field, field_validator

from trainables.config import Frozen, Role, TrialConfig
from trainables.metric_keys import METRICS

SCHEMA_VERSION = 1


class TrialStatus(StrEnum):
    """How a trial stands. All but RUNNING are final."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    STOPPED_EARLY = "STOPPED_EARLY"
    DIVERGED = "DIVERGED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


FAILURES = (
    TrialStatus.DIVERGED,
    TrialStatus.OUT_OF_MEMORY,
    TrialStatus.FAILED,
    TrialStatus.CANCELLED,
)


class Measurement(Frozen):
    """One report of a trial: every metric known at an optimizer step.

    Attributes:
        attempt: of the trial, in which it was measured.
        step: optimizer steps done; strictly increasing within a trial.
        total_steps: of the whole training.
        metrics: key of `metric_keys` to a finite number.
        time: seconds since the epoch.
    """

    schema_version: int = SCHEMA_VERSION
    attempt: int = 1
    step: int = Field(ge=0)
    total_steps: int | None = Field(default=None, ge=1)
    metrics: dict[str, float]
    time: float

    @field_validator("metrics")
    @classmethod
    def _finite_alone(cls, metrics: dict[str, float]) -> dict[str, float]:
        """JSON has no other numbers; what is not finite counts as not measured."""
        if all(map(math.isfinite, metrics.values())):  # fast: it is read by the hundred thousand
            return metrics
        return {key: value for key, value in metrics.items() if math.isfinite(value)}


class TrialResult(Frozen):
    """What a trial function returns: its last measurement and where the weights lie."""

    last: Measurement
    weights_dir: str | None = None
    best_weights_dir: str | None = None


class Outcome(Frozen):
    """How a trial ended, as the trial itself tells it.

    RUNNING is that of a trial which will go on: elsewhere, or later; with a reason, not before
    there is room where it wrote.
    """

    status: TrialStatus
    reason: str | None = None
    weights_dir: str | None = None
    best_weights_dir: str | None = None


class TrialRecord(Frozen):
    """A trial as the ledger keeps it (`trial.json`).

    Attributes:
        params: what the search suggested, under the search's own names.
        reason: why it ended as it did, for anything but COMPLETE.
        last: newest measurement.
        best: best value over the run of each metric that has a direction.
        attempt: how often it was started.
        started: when its first attempt began, seconds since the epoch.
        resumed: when this attempt began; None for the first.
        seconds_before: that earlier attempts took, each to its last measurement: what followed
            was lost, and between attempts nobody trained it.
        failures: how often it lost its process and had come no further since the loss before.
        weights_dir: where the final adapter or model lies.
        confirms: number of the trial of the search that this one repeats with another seed; None
            for a trial of the search.
        best_weights_dir: where that of the best evaluation lies, by the sweep's first objective;
            None where the last one was the best.
    """

    schema_version: int = SCHEMA_VERSION
    config: TrialConfig
    params: dict[str, float | int | str | bool]
    confirms: int | None = None
    status: TrialStatus = TrialStatus.RUNNING
    reason: str | None = None
    attempt: int = 1
    failures: int = 0
    started: float
    resumed: float | None = None
    seconds_before: float = 0.0
    ended: float | None = None
    last: Measurement | None = None
    best: dict[str, float] = Field(default_factory=dict)
    weights_dir: str | None = None
    best_weights_dir: str | None = None

    @property
    def number(self) -> int:
        """Position in the sweep."""
        return self.config.number

    @property
    def seconds(self) -> float | None:
        """That all attempts took; None while it runs."""
        return None if self.ended is None else self.seconds_at(self.ended)

    def seconds_at(self, now: float) -> float:
        """That all attempts have taken at some time of this one."""
        return self.seconds_before + now - self.began

    @property
    def began(self) -> float:
        """When its newest attempt began, seconds since the epoch."""
        return self.started if self.resumed is None else self.resumed

    def in_next_attempt(self, config: TrialConfig, attempt: int) -> TrialRecord:
        """The record of the trial that goes on now, in an attempt of this number."""
        trained = self.last.time - self.began if self.last else 0.0
        changes = {
            "config": config,
            "attempt": attempt,
            "status": TrialStatus.RUNNING,
            "reason": None,
            "ended": None,
            "resumed": time.time(),
            # An attempt that measured nothing leaves the last measurement to one before it.
            "seconds_before": self.seconds_before + max(0.0, trained),
        }
        return self.model_copy(update=changes)

    @property
    def epochs(self) -> float | None:
        """Of its training; None where `steps` decides how long that is."""
        return None if self.config.train.steps else self.config.train.epochs

    def metric(self, key: str) -> float | None:
        """The newest value of a metric, None where it was never logged."""
        return self.last.metrics.get(key) if self.last else None

    def after(self, measurement: Measurement) -> TrialRecord:
        """The record once the trial has measured this as well."""
        best = dict(self.best)
        for key, value in measurement.metrics.items():
            better = METRICS[key].better if key in METRICS else "none"
            if better != "none":
                choose = min if better == "min" else max
                best[key] = choose(best.get(key, value), value)
        return self.model_copy(update={"last": measurement, "best": best})

    def ended_as(self, outcome: Outcome, at: float | None = None) -> TrialRecord:
        """The record of the trial once it has ended so, now or at some time."""
        changes = outcome.model_dump() | {"ended": time.time() if at is None else at}
        return self.model_copy(update=changes)


class TaskScore(Frozen):
    """The score of one task.

    Attributes:
        metric: the harness's metric that counts as accuracy here.
        value: mean over items.
        stderr: standard error of the mean, None where the harness gives none.
        chance: expected score of a uniform guess; 0 for generated answers.
        choices: mean number of answers to choose from; None for generated answers.
        items: number of documents.
    """

    role: Role
    metric: str
    filter: str
    value: float
    stderr: float | None
    chance: float
    choices: float | None
    items: int


class ItemScore(Frozen):
    """One document's outcome, for flips and paired tests.

    Items of two models pair on (`task`, `doc_hash`, `filter`).
    """

    task: str
    doc_hash: str
    filter: str
    score: float
    prompt: str
    target: str
    answer: str


class BaseRecord(Frozen):
    """The untouched base model's evaluation (`base.json`), cached by content.

    Attributes:
        key: hash of model, tasks, limits, versions, and of what KL drift is measured on.
        scores_key: the same without what the scores do not follow, such as the seed; None in
            records of earlier versions.
        revision: commit of a hub model; that of its trials, whatever is uploaded meanwhile.
        scores: task label to score.
        metrics: every logged key of the base, `in_domain/...` to `ood/...`.
        general_nll: cross-entropy on the general text, nats/token; None where not measured.
        parameters: of the whole model.
        skipped_samples: training rows longer than `max_length`.
        train_samples: rows that are left.
        validation_samples: rows held out for the validation loss; None in records of earlier
            versions.
        warnings: such as a retention task on which the base is at chance.
    """

    schema_version: int = SCHEMA_VERSION
    key: str
    scores_key: str | None = None
    revision: str | None = None
    scores: dict[str, TaskScore]
    metrics: dict[str, float]
    general_nll: float | None
    parameters: int
    train_samples: int
    validation_samples: int | None = None
    skipped_samples: int
    seconds: float
    warnings: tuple[str, ...] = ()


class Provenance(Frozen):
    """Where a start of a sweep comes from: command, code, versions."""

    created: float
    command: str
    git_commit: str | None
    python: str
    versions: dict[str, str]


class SweepRecord(Frozen):
    """A sweep's own record (`sweep.json`).

    Attributes:
        sweep_id: unique; the W&B group and the first part of every trial's id.
        config: the resolved sweep file, as plain data.
        provenance: of the newest start of the command.
        earlier: those of the starts before, in their order.
    """

    schema_version: int = SCHEMA_VERSION
    sweep_id: str
    config: dict[str, object]
    provenance: Provenance
    earlier: tuple[Provenance, ...] = ()

    @property
    def created(self) -> float:
        """When the first start was, seconds since the epoch."""
        return (*self.earlier, self.provenance)[0].created

    def started_again(self, config: dict[str, object], provenance: Provenance) -> SweepRecord:
        """The record of the sweep that goes on in another start."""
        earlier = (*self.earlier, self.provenance)
        changes = {"config": config, "provenance": provenance, "earlier": earlier}
        return self.model_copy(update=changes)

    def origin(self, trial: TrialRecord) -> Provenance:
        """The start that the newest attempt of a trial belongs to."""
        starts = (*self.earlier, self.provenance)
        before = [start for start in starts if start.created <= trial.began]
        return before[-1] if before else starts[0]
