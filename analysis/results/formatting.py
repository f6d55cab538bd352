"""How settings, statuses and metrics are written wherever people read them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from rich.text import Text

from analysis.results.pareto import Goals
from trainables import metric_keys
from trainables.records.schema import Repair, TrialRecord, TrialStatus

ABSENT = "-"
INTERRUPTED = "interrupted"
"""What a trial without a final status is where nothing runs any more."""
NOT_ENDED = f"running or {INTERRUPTED}"
"""What it is where nobody knows whether anything runs."""
REPAIRS: dict[Repair, str] = {
    "no_intruders": " without intruder dimensions",
    "seed_mean": " as the mean of its seeds",
}
NAMES = {
    metric_keys.IN_DOMAIN_ACC: "in-domain accuracy",
    metric_keys.FORGETTING_MEAN: "forgetting",
    metric_keys.OOD_ACC: "out-of-domain accuracy",
    metric_keys.KL_BASE_TO_TUNED: "KL from the base",
    metric_keys.VALIDATION_LOSS: "validation loss",
    metric_keys.TRAIN_LOSS: "training loss",
}
SHORT_NAMES = {
    metric_keys.TRAIN_LOSS: "loss",
    metric_keys.IN_DOMAIN_ACC: "in-domain",
    metric_keys.RETENTION_ACC: "retention",
    metric_keys.FORGETTING_MEAN: "forgetting",
    metric_keys.OOD_ACC: "OOD",
}
"""For columns of tables, and for lines with several numbers."""
# Sizes, addresses, ports, losses and ids of actors; not what is part of a name, as in gsm8k.
_NUMBERS = re.compile(
    r"(?<![\w.])(?:0x[0-9a-f]+|(?=[a-f]*\d)[0-9a-f]{12,}|\d[\d.,:]*(?:e[+-]?\d+)?)(?!\w)"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line breaks
_SIGNED = (
    metric_keys.task_forgetting(""),
    metric_keys.task_forgetting_adjusted(""),
    metric_keys.OOD_GAP,
)
"""What the keys of differences begin with: of forgetting, over all tasks and on each."""


class _Point(Protocol):
    """A point of a trial: a view of its record, a measurement, or a row of a table."""

    @property
    def strength(self) -> float:
        """1 for what training left."""

    @property
    def repair(self) -> Repair | None:
        """None if there was none."""


class Word(NamedTuple):
    """A status as shown: the word names it, the colour helps to find it."""

    short: str
    style: str


STATUS = {
    TrialStatus.RUNNING: Word("running", "cyan"),
    TrialStatus.COMPLETE: Word("complete", "green"),
    TrialStatus.STOPPED_EARLY: Word("stopped", "yellow"),
    TrialStatus.DIVERGED: Word("diverged", "magenta"),
    TrialStatus.OUT_OF_MEMORY: Word("OOM", "bold red"),
    TrialStatus.FAILED: Word("failed", "red"),
    TrialStatus.CANCELLED: Word("cancelled", "dim"),
}


def goals_in_words(goals: Goals) -> str:
    """Such as `max in_domain/acc_mean, min forgetting/mean, kl/base_to_tuned <= 0.1`."""
    aims = [f"{objective.mode} {objective.metric}" for objective in goals.objectives]
    return ", ".join([*aims, *map(str, goals.constraints)])


def score_metrics(measured: Collection[str]) -> tuple[str, ...]:
    """What a trial is judged by, wherever no objectives are named.

    `measured`: as for `domain_metric`.
    """
    gain = metric_keys.domain_metric(measured)
    return gain, metric_keys.FORGETTING_MEAN, metric_keys.OOD_ACC


def goal_metrics(goals: Goals) -> list[str]:
    """The metrics of the objectives, then those of the constraints."""
    bounds = (constraint.metric for constraint in goals.constraints)
    return list(dict.fromkeys([*(aim.metric for aim in goals.objectives), *bounds]))


def scores_in_words(metrics: dict[str, float], goals: Goals) -> str:
    """The scores that a measurement has, in words, and what else the sweep aims for."""
    scores = (metric_keys.TRAIN_LOSS, metric_keys.domain_metric(metrics), *SHORT_NAMES)
    shown = dict.fromkeys([*scores, *goal_metrics(goals)])
    parts = [
        f"{SHORT_NAMES.get(key) or NAMES.get(key, key)} {metric_text(key, metrics[key])}"
        for key in shown
        if key in metrics
    ]
    return ", ".join(parts) or "nothing measured"


def count_trials(records: Collection[TrialRecord]) -> str:
    """Such as `10 trials and 4 repeats`."""
    repeats = sum(record.confirms is not None for record in records)
    text = how_many(len(records) - repeats, "trial")
    return f"{text} and {how_many(repeats, 'repeat')}" if repeats else text


def count_statuses(records: Sequence[TrialRecord]) -> str:
    """Such as `18 complete, 1 failed`, of trials that no longer run."""
    statuses = [record.status for record in records]
    words = {s: INTERRUPTED if s is TrialStatus.RUNNING else s.in_words for s in STATUS}
    counted = [(statuses.count(status), word) for status, word in words.items()]
    return ", ".join(f"{count} {word}" for count, word in counted if count)


def by_reason(records: Iterable[TrialRecord]) -> list[tuple[TrialStatus, str, list[TrialRecord]]]:
    """Trials by status and reason, which is one line; the most frequent first.

    Where reasons differ in numbers alone, that of the first trial stands for all, as an example.
    """
    groups: dict[tuple[TrialStatus, str], list[TrialRecord]] = {}
    for record in records:
        reason = _NUMBERS.sub("#", why(record))
        groups.setdefault((record.status, reason), []).append(record)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1][0].number))
    return [(status, _common_reason(group), group) for (status, _), group in ordered]


def _common_reason(group: Sequence[TrialRecord]) -> str:
    first = why(group[0])
    return first if all(why(record) == first for record in group) else f"for example {first}"


def why(record: TrialRecord) -> str:
    """Why a trial ended as it did, in one line."""
    return one_line(record.reason or "no reason given")


def alteration(point: _Point) -> str:
    """What follows a trial's number: ` at strength 0.4`; empty for what training left."""
    repair = REPAIRS[point.repair] if point.repair else ""
    return repair + (f" at strength {point.strength:g}" if point.strength != 1 else "")


def candidate_noun(records: Iterable[TrialRecord]) -> str:
    """What to count them as: trials, or models where one trial may have several."""
    return "model" if any(record.is_altered for record in records) else "trial"


def setting(record: TrialRecord) -> str:
    """The point of the search in a few words, such as `lora, rank 8, alpha 16, lr 3.2e-04`."""
    config = record.config
    parts = [config.recipe, config.method.label, f"lr {rate(config.learning_rate)}"]
    return ", ".join(filter(None, [*parts, *further_settings(record)]))


def setting_in_full(record: TrialRecord) -> str:
    """The same spelled out, such as `LoRA, rank 8, alpha 16, learning rate 3.2e-04`."""
    config = record.config
    rates = f"learning rate {rate(config.learning_rate)}"
    parts = [config.recipe_title, config.method.label, rates, *further_settings(record)]
    return capitalized(", ".join(filter(None, parts)))


def capitalized(text: str) -> str:
    """Its first letter in upper case, unless its first word has capitals as `rsLoRA` has.

    The other letters stay as they are, unlike by `str.capitalize`.
    """
    first, _, _ = text.partition(" ")
    return text if first != first.lower() else text[:1].upper() + text[1:]


def in_list(parts: Sequence[str]) -> str:
    """Such as `A, B and C`."""
    *firsts, last = parts
    return f"{', '.join(firsts)} and {last}" if firsts else last


def further_settings(record: TrialRecord) -> list[str]:
    """Other settings that were searched, such as `epochs 3` and `dora on`."""
    words = {True: "on", False: "off"}
    method = record.config.method
    axes = {ratio.field: ratio.axis for ratio in method.ratios}
    in_label = {method.capacity_field, "parameters", *method.label_fields}
    named = {"recipe", "learning_rate", *in_label, *(axes.get(str(f), f) for f in in_label)}
    found = ((name.partition("/")[2] or name, value) for name, value in record.params.items())
    return [
        f"{axis.replace('_', ' ').replace('/', ' ')} "
        f"{words[value] if isinstance(value, bool) else value}"
        for axis, value in found
        if axis not in named
    ]


def metric_name(key: str) -> str:
    """Such as `forgetting` or, with its unit, as it is no share, `training loss (nats/token)`."""
    name = NAMES.get(key, key)
    metric = metric_keys.METRICS.get(key)  # of single tasks, whose values are shares, it has none
    return f"{name} ({metric.unit})" if metric and metric.unit not in ("share", "1") else name


def axis_title(key: str) -> str:
    """The name; of forgetting with what its sign means."""
    sign = " (base minus tuned)" if key == metric_keys.FORGETTING_MEAN else ""
    return metric_name(key) + sign


def metric_text(key: str, value: float | None) -> str:
    """Shares and losses with three decimals, forgetting signed, other units and KL compact."""
    if value is None:
        return ABSENT
    if key == metric_keys.KL_BASE_TO_TUNED:  # of a gentle training far below 0.001
        return f"{value:.3g}"
    if key == metric_keys.LEARNING_RATE:
        return rate(value)
    metric = metric_keys.METRICS.get(key)
    # Keys not in METRICS are those of single tasks, whose values are shares.
    if metric is not None and metric.unit not in ("share", "nats/token"):
        return f"{value:.4g}"
    return f"{value:+z.3f}" if key.startswith(_SIGNED) else f"{value:z.3f}"


def how_many(count: int, noun: str) -> str:
    """Such as `1 trial` or `12 trials`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def rate(value: float) -> str:
    """A learning rate, such as `3.2e-04`."""
    return f"{value:.1e}"


def points(share: float) -> str:
    """A difference of shares in percentage points, such as `+3.1`."""
    return f"{100 * share:+z.1f}"


def end_in_points(share: float) -> str:
    """The end of an interval, as `points`, but never 0.0 if it lies clearly on one side of it."""
    value = 100 * share
    return f"{value:+.1g}" if 0.001 <= abs(value) < 0.05 else points(share)


def duration(seconds: float) -> str:
    """Such as `45 s`, `3 min 12 s` or `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def one_line(text: str) -> str:
    """The text without line breaks and terminal control sequences."""
    return without_controls(Text.from_ansi(" ".join(text.split())).plain)


def without_controls(text: str) -> str:
    """The text without what steers a terminal, which a record of somebody else's may hold."""
    return _CONTROLS.sub("", text)
