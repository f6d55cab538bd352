"""The schema of every record on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from trainables.config import Frozen, ModelConfig, Role, TrialConfig
from trainables.metric_keys import GPU_HOURS, METRICS, domain_metric, task_score

# Files in the folder of the base's evaluation.
BASE_RECORD, BASE_ITEMS = "base.json", "items.jsonl"


class TrialStatus(StrEnum):
    """State of a trial. All but RUNNING are final."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    STOPPED_EARLY = "STOPPED_EARLY"
    DIVERGED = "DIVERGED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def in_words(self) -> str:
        """Such as `out of memory`."""
        return self.value.replace("_", " ").lower()


# Running such a trial again would end in the same way.
ENDED_WELL = (TrialStatus.COMPLETE, TrialStatus.STOPPED_EARLY, TrialStatus.DIVERGED)
FAULTS = (TrialStatus.DIVERGED, TrialStatus.OUT_OF_MEMORY, TrialStatus.FAILED)
FAILURES = (*FAULTS, TrialStatus.CANCELLED)


def _finite_alone(metrics: dict[str, float]) -> dict[str, float]:
    """JSON has only finite numbers; others count as not measured."""
    if all(map(math.isfinite, metrics.values())):  # fast path: read by the hundred thousand
        return metrics
    return {key: value for key, value in metrics.items() if math.isfinite(value)}


Metrics = Annotated[dict[str, float], AfterValidator(_finite_alone)]

MOST_STRENGTH = 1.5
Repair = Literal["no_intruders", "seed_mean"]
PointId = tuple[str, float, Repair | None]


class Measurement(Frozen):
    """One report of a trial: every metric known at an optimizer step.

    Attributes:
        attempt: attempt of the trial in which it was measured.
        step: optimizer steps done; strictly increasing within a trial.
        strength: of the update in the model that was measured, base + strength x update.
        repair: how the trained weights were altered before; None if they were not.
        metrics: finite numbers by key of `metric_keys`.
        time: seconds since the epoch.
    """

    schema_version: Literal[3] = 3
    attempt: int = 1
    step: int = Field(ge=0)
    total_steps: int | None = Field(default=None, ge=1)
    strength: float = Field(default=1.0, gt=0, le=MOST_STRENGTH)
    repair: Repair | None = None
    metrics: Metrics
    time: float

    @property
    def is_evaluation(self) -> bool:
        """Whether the model was evaluated, rather than only its training measured."""
        return domain_metric(self.metrics) in self.metrics

    @property
    def is_altered(self) -> bool:
        """Whether the model that was measured is another than the trained one."""
        return self.repair is not None or self.strength != 1

    @property
    def name(self) -> str:
        """Of the file that has its items."""
        return evaluation_name(self.step, self.strength, self.repair)


def evaluation_name(step: int, strength: float = 1.0, repair: Repair | None = None) -> str:
    """What an evaluation is called on disk: `step_00000060`, `step_00000060_strength_0.4`."""
    parts = [f"step_{step:08d}"]
    if repair:
        parts.append(repair)
    if strength != 1:
        parts.append(f"strength_{strength:g}")
    return "_".join(parts)


class TrialResult(Frozen):
    """What a trial function returns; for `best_weights_dir` see `TrialRecord`."""

    last: Measurement
    weights_dir: str | None = None
    best_weights_dir: str | None = None


class Outcome(Frozen):
    """How a trial ended; a RUNNING one resumes on another node or at the next start."""

    status: TrialStatus
    reason: str | None = None
    weights_dir: str | None = None
    best_weights_dir: str | None = None


class TrialRecord(Frozen):
    """A trial as the ledger keeps it (`trial.json`).

    Attributes:
        params: what the search suggested, under the search's own names.
        reason: why it ended this way, for anything but COMPLETE.
        best: best value so far of each metric that has a direction and is no total.
        points: what the trained weights are at other strengths, and repaired.
        strength, repair: of which point this record is a view; see `at`.
        attempt: how many times it was started.
        started: when its first attempt began, seconds since the epoch.
        resumed: when this attempt began; None for the first.
        seconds_before: seconds that earlier attempts took up to their last measurement.
        failures: how often its process was lost without progress since the previous loss.
        weights_dir: where the final adapter or model is.
        confirms: number of the trial that this one repeats with another seed; None in the search.
        best_weights_dir: where the weights of the best evaluation by the sweep's first objective
            are; None if the last one was the best.
    """

    schema_version: Literal[3] = 3
    config: TrialConfig
    params: dict[str, float | int | str | bool]
    confirms: int | None = None
    status: TrialStatus = TrialStatus.RUNNING
    reason: str | None = None
    attempt: int = Field(1, ge=1, le=100_000)  # each has a folder, which readers look for
    failures: int = 0
    started: float
    resumed: float | None = None
    seconds_before: float = 0.0
    ended: float | None = None
    last: Measurement | None = None
    best: dict[str, float] = Field(default_factory=dict)
    points: tuple[Measurement, ...] = ()
    strength: float = 1.0
    repair: Repair | None = None
    weights_dir: str | None = None
    best_weights_dir: str | None = None

    @property
    def number(self) -> int:
        """Position in the sweep."""
        return self.config.number

    @property
    def seconds(self) -> float | None:
        """Seconds that all attempts took; None while it runs."""
        return None if self.ended is None else self.seconds_at(self.ended)

    def seconds_at(self, now: float) -> float:
        """Seconds that all attempts have taken by `now`."""
        # If this attempt measured nothing, the last measurement is from an earlier one.
        return self.seconds_before + max(0.0, now - self.began)

    @property
    def seconds_measured(self) -> float:
        """Seconds that all attempts took, each up to its last measurement."""
        return self.seconds_at(self.last.time if self.last else self.began)

    @property
    def began(self) -> float:
        """When its newest attempt began, seconds since the epoch."""
        return self.started if self.resumed is None else self.resumed

    def in_next_attempt(self, config: TrialConfig, attempt: int, at: float) -> TrialRecord:
        """The record of the trial as it resumes in attempt number `attempt`."""
        changes = {"config": config, "attempt": attempt, "resumed": at}
        ended = {"status": TrialStatus.RUNNING, "reason": None, "ended": None}
        return self.model_copy(update=changes | ended | {"seconds_before": self.seconds_measured})

    @property
    def epochs(self) -> float | None:
        """Length of its training in epochs; None if `steps` sets it."""
        return None if self.config.train.steps else self.config.train.epochs

    @property
    def metrics(self) -> dict[str, float]:
        """The newest values; empty before the first measurement."""
        return self.last.metrics if self.last else {}

    def metric(self, key: str) -> float | None:
        """The newest value of a metric; None if it was never logged."""
        return self.metrics.get(key)

    @property
    def point_id(self) -> PointId:
        """Which point of which trial this record is a view of, unique across sweeps."""
        return self.config.trial_id, self.strength, self.repair

    @property
    def is_altered(self) -> bool:
        """Whether this is a view of another model than training left."""
        return self.repair is not None or self.strength != 1

    def at(self, point: Measurement) -> TrialRecord:
        """This trial as if it had ended with one of its points: metrics and items are its own.

        Repaired weights are beside the trained ones; other strengths have no files of their own.
        """
        weights = self.weights_dir
        if weights and point.repair:
            weights = f"{weights.rpartition('/')[0]}/{point.repair}"
        view = {"last": point, "strength": point.strength, "repair": point.repair}
        none = {"points": (), "best_weights_dir": None}
        return self.model_copy(update=view | none | {"weights_dir": weights})

    def at_same(self, other: TrialRecord) -> TrialRecord | None:
        """This trial at the point that another is a view of; None if it was not evaluated there."""
        wanted = (other.strength, other.repair)
        return next((p for p in points_of([self]) if (p.strength, p.repair) == wanted), None)

    @property
    def curve(self) -> list[TrialRecord]:
        """This trial at all strengths that were evaluated, 1 among them, by strength.

        A view has no other points than itself.
        """
        scaled = [self.at(point) for point in self.points if point.repair is None]
        return sorted([self, *scaled], key=attrgetter("strength"))

    @property
    def repaired(self) -> list[TrialRecord]:
        """This trial as each repair left it."""
        return [self.at(point) for point in self.points if point.repair is not None]

    @property
    def gpu_hours(self) -> float:
        """GPU hours so far, evaluation of its points included."""
        measured = [point.metrics.get(GPU_HOURS, 0.0) for point in self.points]
        return max([self.metrics.get(GPU_HOURS, 0.0), *measured])

    def after(self, measurement: Measurement) -> TrialRecord:
        """The record with this measurement added."""
        if measurement.is_altered:
            of = (measurement.repair, measurement.strength)
            others = [point for point in self.points if (point.repair, point.strength) != of]
            return self.model_copy(update={"points": (*others, measurement)})
        best = dict(self.best)
        for key, value in measurement.metrics.items():
            known = METRICS.get(key)
            if known and known.better != "none" and not known.adds_up:
                choose = min if known.better == "min" else max
                best[key] = choose(best.get(key, value), value)
        return self.model_copy(update={"last": measurement, "best": best})

    def with_newest(self, history: Sequence[Measurement]) -> TrialRecord:
        """The record with the newest value of each metric of its history, unless complete."""
        if self.status is TrialStatus.COMPLETE or not history:
            return self
        metrics: dict[str, float] = {}
        for measurement in history:
            metrics |= measurement.metrics
        last = history[-1].model_copy(update={"metrics": metrics})
        return self.model_copy(update={"last": last})

    def ended_as(self, outcome: Outcome, at: float) -> TrialRecord:
        """The record of the trial after it ended with this outcome."""
        return self.model_copy(update=outcome.model_dump() | {"ended": at})


def points_of(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """All points of some trials, each once: at every strength, and as each repair left it."""
    found: dict[PointId, TrialRecord] = {}
    for record in records:
        views = (*record.curve, *record.repaired) if record.points else (record,)
        found |= {view.point_id: view for view in views}
    return [*found.values()]


class TaskScore(Frozen):
    """The score of one task.

    Attributes:
        metric: the harness's metric that counts as accuracy.
        value, stderr: mean over items and its standard error, if the harness gives one.
        chance: expected score of a uniform guess, 0 for generated answers; None if unknown.
        choices: number of answers per right one (`effective_choices`); None without a chance.
        items: number of documents; in a group, of the tasks that give the metric.
    """

    role: Role
    metric: str
    filter: str
    value: float
    stderr: float | None
    chance: float | None
    choices: float | None
    items: int


class ItemScore(Frozen):
    """One document's outcome, for flips and paired tests.

    Items of two models are paired by (`task`, `doc_hash`, `filter`).

    Attributes:
        member: the document's own task if `task` is a group that weighs its tasks equally; None
            if all items weigh the same.
        prompt, target: only in the base's items.
    """

    task: str
    member: str | None = None
    doc_hash: str
    filter: str
    score: float
    prompt: str = ""
    target: str = ""
    answer: str


class SampleText(Frozen):
    """A training sample as shortened text: the end of its context, and what the loss is on."""

    context: str
    learned: str


class BaseRecord(Frozen):
    """The untouched base model's evaluation (`base.json`), cached by content.

    Attributes:
        key: hash of the model, tasks, limits, versions and what KL drift is measured on.
        scores_key: the same hash without the parts that the scores do not depend on, such as seed
            and data.
        rows: digests of the rows that the tasks read, by label and member, the same for trials.
        revision: commit that a hub model was resolved to, which all trials use.
        scores: task label to score.
        metrics: its scores, drift and forgetting of zero and, without in-domain tasks, the
            validation loss.
        general_nll: cross-entropy on the general text, nats/token; None if not measured.
        train_samples, validation_samples: number of samples; those that are longer than
            `max_length` are skipped.
        seconds: duration of the evaluation.
        replayed_tokens: share of the learned tokens that is of `data.replay`.
        sample: one of median length to look at.
        warnings: for example, that the base is at chance on a retention task.
    """

    schema_version: Literal[3] = 3
    key: str
    scores_key: str
    rows: dict[str, dict[str, str]] = Field(default_factory=dict)
    revision: str | None = None
    scores: dict[str, TaskScore]
    metrics: Metrics
    general_nll: float | None
    parameters: int
    train_samples: int
    validation_samples: int
    skipped_samples: int
    seconds: float
    replayed_tokens: float
    sample: SampleText
    warnings: tuple[str, ...] = ()

    def pinned(self, model: ModelConfig) -> ModelConfig:
        """The sweep's model, at the commit that was evaluated if it is of a hub."""
        return model.model_copy(update={"revision": self.revision}) if self.revision else model

    def scored(self, trial: TrialRecord) -> Iterator[tuple[str, TaskScore, str, float]]:
        """The tasks that a trial has a score on: label, base's score, metric key and value."""
        for label, task in self.scores.items():
            key = task_score(task.role, label, task.metric)
            if (value := trial.metric(key)) is not None:
                yield label, task, key, value
