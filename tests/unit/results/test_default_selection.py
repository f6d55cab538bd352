"""Which trials are looked into unasked, and the records of what was found."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import GAIN, LOSS, sweep_config, trial
from ray.exceptions import RayError, RayTaskError
from synthetic_sweep import SyntheticSweep

from analysis.inspect_models import as_table
from analysis.report.inspection_section import inspection_figures
from analysis.results.default_selection import notable_trials
from analysis.results.recommendation import recommend
from analysis.results.trade_off import best_trade_off, objective_ranges
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.config import LoraConfig
from trainables.inspection.inspection_records import (
    ROUNDED,
    InspectionFolder,
    InspectionRecord,
    MatrixChange,
    RepresentationDrift,
    is_rounded,
)
from trainables.records.ledger import Ledger
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import TrialRecord, TrialStatus
from tune.cluster.inspections import inspect_trials

GOALS = sweep_config()


def scored(
    number: int, rank: int | None, accuracy: float, forgetting: float | None, **fields: Any
) -> TrialRecord:
    metrics = {GAIN: accuracy}
    if forgetting is not None:
        metrics[LOSS] = forgetting
    method = {"lora": LoraConfig(rank=rank, alpha=8)} if rank else {"method": "full"}
    rate = 1e-5 * (1 + fields.get("confirms", number))
    fields = {"weights_dir": "w", "learning_rate": rate, **method, **fields}
    return trial(number, metrics, **fields)


def test_front_best_of_each_rank_and_best_full() -> None:
    records = [
        scored(0, 4, 0.9, 0.1),  # on the front
        scored(1, 4, 0.8, 0.2),
        scored(2, 8, 0.7, 0.3),  # best of rank 8
        scored(3, 8, 0.6, 0.3),
        scored(4, None, 0.5, 0.2),  # best full
        scored(5, None, 0.4, 0.19),
        scored(6, 16, 0.2, 0.0),  # on the front
    ]
    assert notable_trials(GOALS, records) == [0, 2, 4, 6]


def test_what_repeats_recommend_is_among_them() -> None:
    records = [scored(0, 4, 0.9, 0.0), scored(1, 4, 0.8, 0.1), scored(2, 4, 0.7, 0.2)]
    assert notable_trials(GOALS, records) == [0]
    repeats = [scored(3, 4, 0.1, 0.3, confirms=0), scored(4, 4, 0.8, 0.1, confirms=1)]
    assert notable_trials(GOALS, [*records, *repeats]) == [0, 1]
    lost = {"status": TrialStatus.DIVERGED, "weights_dir": None}
    repeats = [
        scored(3, 4, 0.9, 0.0, confirms=0),
        scored(4, 4, 0.1, 0.9, confirms=0, **lost),
        scored(5, 4, 0.7, 0.2, confirms=1),
    ]
    assert notable_trials(GOALS, [*records, *repeats]) == [0, 1]


def test_the_best_of_a_rank_is_its_best_trade_off() -> None:
    records = [scored(0, 4, 0.9, 0.0), scored(1, 8, 0.8, 0.3), scored(2, 8, 0.8, 0.2)]
    assert notable_trials(GOALS, records) == [0, 2]


def test_one_bad_trial_does_not_change_what_is_the_best_of_a_rank(tmp_path: Path) -> None:
    knee = scored(0, 8, 0.60, 0.02)
    others = [scored(1, 8, 0.70, 0.10), scored(2, 4, 0.30, 0.0)]
    for bad in ([], [scored(3, 16, 0.20, 0.90)]):
        records = [knee, *others, *bad]
        assert recommend(GOALS, records).trial is knee
        folder = SyntheticSweep(trials=2).write(tmp_path / f"{len(bad)}")
        results = Results(open_sweeps([folder]))
        results.goals, results.complete = GOALS, records
        assert results.nearest_to_ideal([knee, others[0]]) is knee
        # Two behind the front, of which only the better is notable.
        full = [scored(4, None, 0.59, 0.03), scored(5, None, 0.69, 0.11)]
        assert {4, 5} & set(notable_trials(GOALS, [*records, *full])) == {4}


def test_among_trials_beyond_a_constraint_the_better_one_is_the_better_trade_off() -> None:
    goals = sweep_config(constraints=[f"{LOSS} <= 0.05"])
    within = [scored(0, 4, 0.5, 0.0), scored(1, 4, 0.6, 0.04), scored(2, 2, 0.4, -0.01)]
    beyond = [scored(3, 16, 0.6, 0.12), scored(4, 16, 0.9, 0.1)]
    assert best_trade_off(goals, beyond, objective_ranges(goals, within)) is beyond[1]
    nearer = scored(5, 16, 0.95, 0.06)
    ranges = objective_ranges(goals, [*within, *beyond])
    assert best_trade_off(GOALS, [*within, nearer], ranges) is nearer
    assert best_trade_off(goals, [*within, nearer], ranges) is within[1]


def test_where_the_whole_front_is_alike_what_is_behind_it_is_still_compared() -> None:
    alike = [scored(number, 4, 1.0, 0.0) for number in range(3)]
    worse, better = scored(3, 8, 0.5, 0.5), scored(4, 8, 0.9, 0.1)
    assert notable_trials(GOALS, [*alike, worse, better]) == [0, 1, 2, 4]


def test_without_a_trial_that_keeps_the_constraints_there_still_is_a_best() -> None:
    goals = sweep_config(constraints=[f"{LOSS} <= 0.01"])
    records = [scored(0, 4, 0.9, 0.1), scored(1, 8, 0.5, 0.5), scored(2, 8, 0.9, 0.2)]
    assert notable_trials(goals, records) == [0, 2]


def test_the_best_of_a_rank_keeps_the_constraints_in_the_mean_over_its_repeats() -> None:
    goals = sweep_config(constraints=[f"{LOSS} <= 0.01"])
    records = [scored(0, 4, 0.9, 0.0), scored(1, 8, 0.9, 0.1), scored(2, 8, 0.5, 0.5)]
    assert notable_trials(goals, records) == [0, 1]
    repeats = [scored(3, 8, 0.5, 0.0, confirms=2)]
    assert notable_trials(goals, [*records, *repeats]) == [0, 2]


def test_what_differs_by_the_order_of_additions_alone_decides_nothing() -> None:
    records = [
        scored(0, 4, 0.7999999999999999, 0.0),
        scored(1, 4, 0.8000000000000002, 0.05),
        scored(2, 4, 0.8000000000000002, 0.2),
    ]
    assert best_trade_off(GOALS, records, objective_ranges(GOALS, records)) is records[0]


def test_the_best_of_a_rank_is_the_reports(tmp_path: Path) -> None:
    """On the scale of the whole front, and not of its rank's own."""
    differ = 0
    for seed in range(6):
        folder = SyntheticSweep(trials=32, items=8, seed=seed).write(tmp_path / str(seed))
        results = Results(open_sweeps([folder]))
        notable = notable_trials(results.goals, results.search_trials)
        assert {group.best.number for group in results.groups} <= set(notable)
        by_own_front = [recommend(results.goals, group.trials) for group in results.groups]
        differ += any(
            r.trial.number != g.best.number
            for r, g in zip(by_own_front, results.groups, strict=True)
        )
    assert differ > 0


def test_equal_trials_are_both_on_the_front() -> None:
    assert notable_trials(GOALS, [scored(0, 4, 0.9, 0.0), scored(1, 4, 0.9, 0.0)]) == [0, 1]


def test_without_weights_or_scores_a_trial_is_not_notable() -> None:
    records = [
        scored(0, 4, 0.9, 0.1, weights_dir=None),
        scored(1, 8, 0.9, 0.1, status=TrialStatus.STOPPED_EARLY),
        scored(2, 16, 0.9, None),
        trial(3, status=TrialStatus.FAILED),
    ]
    assert notable_trials(GOALS, records) == []


def test_records_come_back_and_are_readable_as_json(tmp_path: Path) -> None:
    folder = InspectionFolder(tmp_path)
    change = MatrixChange(
        layer=0, module="q", shape=(4, 3), rank_limit=2, relative_norm=0.1, intruders=3
    )
    records = [
        InspectionRecord(number=n, trial_id=f"t{n}", matrices=(change, change)) for n in (12, 3)
    ]
    for record in records:
        folder.write(record)
    assert [folder.read(12), folder.read(3)] == records
    assert records[0].intruders == 6
    assert records[0].intruders_per_matrix == 3
    raw = json.loads(folder.record_json(3).read_text())
    assert raw["matrices"][0]["module"] == "q"


def test_the_table_shows_a_trial_s_settings_and_a_count_whole(tmp_path: Path) -> None:
    folder = SyntheticSweep(trials=1, full_every=0, items=2).write(tmp_path)
    change = MatrixChange(
        layer=0,
        module="q",
        shape=(4, 3),
        rank_limit=2,
        relative_norm=0.123,
        stable_rank=2.0,
        effective_rank=1.5,
        cosine_by_index=0.5,
        cosine_by_maximum=0.7,
        intruders=137,
    )
    matrices = (change, change)
    layer = RepresentationDrift(layer=0, cka_drift=0.9, cka_drift_without_first=0.3)
    record = InspectionRecord(
        number=0, trial_id="t", matrices=matrices, representation=(layer,), kl_base_to_tuned=0.00041
    )
    ledger = Ledger(folder)
    trial = ledger.trial(0)
    config = trial.config.model_copy(update={"lora": LoraConfig(rank=4, alpha=12)})
    ledger.write_trial(trial.model_copy(update={"config": config}))
    table = as_table([record], folder)
    assert {str(c.header): list(c.cells) for c in table.columns} == {
        "trial": ["0"],
        "method": ["lora"],
        "rank": ["4"],
        "lr*scale": [f"{3 * config.learning_rate:.1e}"],
        "dW/W0": ["0.12"],
        "stable": ["1"],
        "eff.": ["0.75"],
        "intr.": ["137"],
        "cos": ["0.5"],
        "JS": ["-"],
        "CKA": ["0.3"],
        "KL": ["0.00041"],
    }


@pytest.mark.parametrize(("full_every", "is_told"), [(0, False), (1, True)])
def test_what_rounding_makes_of_full_fine_tuning_in_bfloat16_is_said(
    tmp_path: Path, full_every: int, is_told: bool
) -> None:
    folder = SyntheticSweep(trials=2, full_every=full_every, items=2).write(tmp_path)
    values = {"singular_values": (2.0, 1.0), "effective_rank": 353}
    change = MatrixChange(
        layer=0, module="q", shape=(512, 512), rank_limit=512, relative_norm=0.001, **values
    )
    record = InspectionRecord(number=0, trial_id="synthetic-id-0000", matrices=(change,))
    InspectionFolder(folder).write(record)
    captions = [figure.caption for figure in inspection_figures(Results(open_sweeps([folder])))]
    assert any(ROUNDED in caption for caption in captions) == is_told
    assert (ROUNDED in str(as_table([record], folder).caption)) == is_told


def test_full_fine_tuning_in_float32_is_not_rounded() -> None:
    full = scored(0, None, 0.9, 0.1).config
    assert is_rounded(full)
    model = full.model.model_copy(update={"dtype": "float32"})
    assert not is_rounded(full.model_copy(update={"model": model}))


def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    folder = InspectionFolder(tmp_path)
    assert folder.read(0) is None
    folder.write(InspectionRecord(number=0, trial_id="t"))
    content = folder.record_json(0).read_text()
    folder.record_json(0).write_text(content[: len(content) // 2])
    assert folder.read(0) is None


def _answer(reason: str | RayError | None) -> str | None:
    if isinstance(reason, RayError):
        raise reason
    return reason


@pytest.mark.parametrize(
    "reason",
    [
        "no weights\nin this place",
        RayTaskError("inspect", "Traceback\n  ...", OSError("no weights")).as_instanceof_cause(),
        RayError("no weights"),  # as of a lost process
    ],
)
def test_a_sweep_says_whom_it_looks_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str | RayError
) -> None:
    """It may take minutes, after all trials have finished."""
    reasons = {0: None, 2: reason}
    task = SimpleNamespace(remote=lambda _, number: reasons[number])
    module = "tune.cluster.inspections"
    monkeypatch.setattr(f"{module}.as_task", lambda *_: task)
    monkeypatch.setattr(f"{module}.ray", SimpleNamespace(get=_answer))
    records = [scored(0, 4, 0.9, 0.1), scored(1, 4, 0.8, 0.2), scored(2, None, 0.5, 0.3)]
    told: list[str] = []
    inspect_trials(GOALS, SweepFolder(tmp_path), {"CPU": 2.0}, records, told.append)
    assert told == [
        "inspecting trials 0, 2 ...",
        "inspected trial 0",
        "warning: cannot inspect trial 2: no weights",
    ]
