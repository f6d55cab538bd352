"""A search over a made-up objective, without Ray: trials end at once, as a judge says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from builders import GAIN, LOSS, SWEEP_ID, measurement, sweep_config
from ray.tune.search import Searcher

from trainables.config import TrialConfig
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import TrialRecord, TrialStatus
from tune.config.sweep_config import SweepConfig
from tune.search.searcher import OptunaSearcher
from tune.search.space import Params
from tune.search.trial_ids import TrialMaker

RATES = {"low": 1e-5, "high": 1e-3}
LORA = {"rank": [2, 8, 32], "alpha_ratio": [1, 2], "learning_rate": RATES}
OF_LORA = [
    {"method": "lora", "rank": 8, "alpha_ratio": 2, "learning_rate": 2e-4},
    {"method": "lora", "rank": 32, "alpha_ratio": 1, "learning_rate": 1e-5},
]
OF_BOTH = [OF_LORA[0], {"method": "full", "learning_rate": 3e-5}, OF_LORA[1]]
GRID: dict[str, Any] = {
    "lora": {"rank": [2, 8], "alpha_ratio": [1, 2], "learning_rate": [1e-4, 1e-3]},
    "full": {"learning_rate": [1e-5, 1e-4, 1e-3]},
}
OF_GRID = [
    {"method": "full", "learning_rate": 1e-4},
    {"method": "lora", "rank": 8, "alpha_ratio": 1, "learning_rate": 1e-3},
]
SAMPLERS = ["tpe", "random", "grid"]

# A third recipe, so that the search is balanced.
THREE: dict[str, Any] = {
    "lora": LORA,
    "full": {"learning_rate": RATES},
    "weighted": {
        "method": "lora",
        "loss": ["sft", "dft"],
        "rank": [2, 8],
        "alpha_ratio": 1,
        "learning_rate": RATES,
    },
}

Ending = tuple[TrialStatus, dict[str, float]]
Judge = Callable[[TrialConfig], Ending]


def sweep(sampler: str = "tpe", trials: int = 24, **changes: Any) -> SweepConfig:
    rates: Any = {"low": 1e-5, "high": 1e-3}
    search: dict[str, Any] = {
        "lora": {"rank": [2, 8, 32], "alpha_ratio": [1, 2], "learning_rate": rates},
        "full": {"learning_rate": rates},
    }
    return sweep_config(trials, **{"sampler": sampler, "search": search, **changes})


def with_first(sampler: str, trials: int = 24, count: int | None = None) -> SweepConfig:
    """A sweep that begins with so many points; by default with all that its search has here."""
    search: dict[str, Any] = {"lora": LORA, "full": {"learning_rate": RATES}, "first": OF_BOTH}
    if sampler == "grid":
        search = GRID | {"first": OF_GRID}
    search["first"] = search["first"][:count]
    return sweep(sampler, trials, search=search)


def judge(trial: TrialConfig) -> Ending:
    """More rank and learning rate gain more and forget more; every fifth trial fails."""
    effort = math.log10(trial.learning_rate * 1e5) + (
        0.2 * trial.capacity.number if trial.capacity else 4
    )
    metrics = {GAIN: 1 - math.exp(-effort), LOSS: 0.01 * effort**2, "cost/gpu_h": 0.5}
    if trial.number % 5 == 3:
        return TrialStatus.FAILED, {}
    if trial.number % 7 == 6:
        return TrialStatus.DIVERGED, metrics
    return TrialStatus.COMPLETE, metrics


def completing(trial: TrialConfig) -> Ending:
    """As `judge`, whatever the trial's number."""
    return judge(trial.model_copy(update={"number": 0}))


def stopping(trial: TrialConfig) -> Ending:
    """Every third trial is stopped early, with the best value of all at that step."""
    if trial.number % 3 == 1:
        return TrialStatus.STOPPED_EARLY, {GAIN: 2.0, LOSS: -1.0}
    return TrialStatus.COMPLETE, {GAIN: 0.1, LOSS: 0.1}


def make_searcher(
    config: SweepConfig,
    finished: Iterable[TrialRecord] = (),
    interrupted: Iterable[TrialRecord] = (),
    warm: Iterable[TrialRecord] = (),
    **clock: Any,
) -> OptunaSearcher:
    make_trial = TrialMaker(config, SWEEP_ID, SweepFolder(Path("/sweeps/tiny")), {})
    earlier = [list(records) for records in (finished, interrupted, warm)]
    return OptunaSearcher(config, make_trial, *earlier, **clock)


def started(suggestion: dict[str, Any]) -> TrialRecord:
    return TrialRecord(
        config=TrialConfig.model_validate(suggestion["trial"]),
        params=suggestion["params"],
        attempt=suggestion["attempt"],
        confirms=suggestion["confirms"],
        started=0.0,
    )


def ended(record: TrialRecord, status: TrialStatus, metrics: dict[str, float]) -> TrialRecord:
    last = measurement(10, metrics) if metrics else None
    return record.model_copy(update={"status": status, "last": last, "ended": 1.0})


def ask(searcher: OptunaSearcher) -> TrialRecord:
    suggestion = searcher.suggest("any")
    assert isinstance(suggestion, dict)
    return started(suggestion)


def points(records: Iterable[TrialRecord]) -> list[tuple[int, Params]]:
    return [(record.number, record.params) for record in records]


def run(
    searcher: OptunaSearcher, judge: Judge = judge, trials: int | None = None
) -> list[TrialRecord]:
    """One trial after another until the search ends, or so many."""
    records: list[TrialRecord] = []
    while trials is None or len(records) < trials:
        suggestion = searcher.suggest("any")
        if suggestion == Searcher.FINISHED:
            break
        assert isinstance(suggestion, dict)
        record = started(suggestion)
        record = ended(record, *judge(record.config))
        searcher.trial_ended(record)
        records.append(record)
    return records
