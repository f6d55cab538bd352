"""What changed inside a sweep's models: inspection of trials and tidy data frames of the results.

The inspection itself is in `trainables.inspection`, because a sweep can run it on its workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from analysis.library_logging import quiet_libraries
from analysis.results.default_selection import default_selection
from analysis.sweep_settings import SweepSettings
from analysis.sweeps import Sweep, check_trust, open_ledger
from trainables.errors import Fault, UserError
from trainables.gc_pause import gc_paused
from trainables.inspection.inspection_records import (
    ROUNDED,
    AttentionDrift,
    InspectionFolder,
    InspectionRecord,
    MatrixChange,
    RepresentationDrift,
    is_rounded,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord
from trainables.storage.storage import Location, parse_folder

if TYPE_CHECKING:
    from rich.table import Table


def inspect_trials(
    sweep_dir: Location,
    numbers: Sequence[int] | None = None,
    seen: Callable[[InspectionRecord], None] = lambda record: None,
    trust_remote_code: bool = False,
) -> list[InspectionRecord]:
    """Inspect trials' models; earlier records are reused from disk if still valid.

    Args:
        sweep_dir: folder of a sweep, finished or not.
        numbers: of trials; default the recommended one, the Pareto front, and the best of each
            recipe and capacity.
        seen: called after each trial.
        trust_remote_code: run code that the base model brings.

    Raises:
        UserError: no sweep in the folder, no such trial, the base model cannot be loaded, its code
            is not trusted, or the folder cannot be written to or is in an object store.
    """
    sweep_dir = parse_folder(sweep_dir)
    numbers = _existing(sweep_dir, numbers)
    check_trust(map(Ledger(sweep_dir).trial, numbers), trust_remote_code)
    with quiet_libraries(), gc_paused():
        from trainables.inspection.inspect_trial import inspect_trial
    records = []
    for number in numbers:
        with quiet_libraries():
            records.append(inspect_trial(sweep_dir, number))
        seen(records[-1])
    return records


def _existing(sweep_dir: Path, numbers: Sequence[int] | None) -> list[int]:
    ledger = open_ledger(sweep_dir)
    trials = ledger.trials()
    if numbers is None:
        settings = SweepSettings.of(ledger.sweep())
        chosen = default_selection(settings, trials)
        if not chosen:
            rule = f"has no complete trial with weights: {sweep_dir}"
            saved = settings.train.save_weights
            how = "until one is complete" if saved else "with train.save_weights: true"
            raise UserError([Fault("SWEEP_DIR", rule, f"run the sweep {how}")])
        return chosen
    known = {record.number for record in trials}
    if missing := sorted(set(numbers) - known):
        has = f"it has {f'0 to {max(known)}' if known else 'none yet'}"
        rules = [f"the sweep has no trial {number}; {has}" for number in missing]
        raise UserError([Fault("--trials", rule) for rule in rules])
    return sorted(set(numbers))


def inspected(
    sweep: Sweep, trials: Iterable[TrialRecord]
) -> Iterator[tuple[TrialRecord, InspectionRecord]]:
    """Those of a sweep's trials that were inspected as they are now, with what was found."""
    folder = InspectionFolder(sweep.ledger.folder.root)
    for trial in trials:
        if (found := folder.read(trial.number)) and found.is_for(trial):
            yield trial, found


def matrices(records: Sequence[InspectionRecord]) -> pd.DataFrame:
    """One row per matrix of each trial; columns as in `MatrixChange`, and `number`."""
    rows = [{"number": r.number, **matrix.model_dump()} for r in records for matrix in r.matrices]
    return pd.DataFrame(rows, columns=["number", *MatrixChange.model_fields])


def attention(records: Sequence[InspectionRecord]) -> pd.DataFrame:
    """One row per head of each layer of each trial: `number`, `layer`, `head`, the drifts."""
    drifts = [name for name in AttentionDrift.model_fields if name != "layer"]
    rows = [
        (r.number, layer.layer, head, *(getattr(layer, drift)[head] for drift in drifts))
        for r in records
        for layer in r.attention
        for head in range(len(layer.js))
    ]
    return pd.DataFrame(rows, columns=["number", "layer", "head", *drifts])


def representation(records: Sequence[InspectionRecord]) -> pd.DataFrame:
    """One row per layer of each trial; columns as in `RepresentationDrift`, and `number`."""
    rows = [
        {"number": r.number, **layer.model_dump()} for r in records for layer in r.representation
    ]
    return pd.DataFrame(rows, columns=["number", *RepresentationDrift.model_fields])


def by_trial(records: Sequence[InspectionRecord]) -> pd.DataFrame:
    """One row per trial, indexed by number: medians over matrices, means over heads and layers.

    `stable_rank_share` and `effective_rank_share` are fractions of the largest possible rank, and
    so comparable across ranks. `intruders` is a sum over matrices, `intruders_per_matrix` a mean.
    """
    frame = pd.DataFrame(
        {
            "intruders": [r.intruders for r in records],
            "intruders_per_matrix": [r.intruders_per_matrix for r in records],
            "kl_base_to_tuned": [r.kl_base_to_tuned for r in records],
            "forgetting_nll": [r.forgetting_nll for r in records],
        },
        index=pd.Index([r.number for r in records], name="number"),
    )
    spectra = matrices(records)
    spectra["stable_rank_share"] = spectra["stable_rank"] / spectra["rank_limit"]
    spectra["effective_rank_share"] = spectra["effective_rank"] / spectra["rank_limit"]
    columns = ["relative_norm", "stable_rank_share", "effective_rank_share"]
    columns += ["cosine_by_index", "cosine_by_maximum"]
    frame = frame.join(spectra.groupby("number")[columns].median())
    for per_layer in (attention(records), representation(records)):
        means = per_layer.groupby("number").mean()
        frame = frame.join(means.drop(columns=["layer", "head"], errors="ignore"))
    return frame.astype(float)


def similarity(sweep_dir: Location, numbers: Sequence[int]) -> pd.DataFrame:
    """Subspace similarity of each pair of trials' updates, for every matrix changed by both.

    Compares the spans of up to 8 top left singular vectors of each dW; columns `number`, `other`,
    `matrix`, `similarity` (0 to 1; two random k-dimensional subspaces of n dimensions have k / n).
    Trials whose weights could not be inspected, as they kept none, are left out.

    Raises:
        FileNotFoundError: a trial has not been inspected.
    """
    from safetensors.torch import load_file

    from trainables.inspection.spectra import subspace_similarity

    folder = InspectionFolder(parse_folder(sweep_dir))
    directions = {}
    for number in numbers:
        if folder.directions(number).exists():
            directions[number] = load_file(folder.directions(number))
        elif not folder.record_json(number).exists():
            raise FileNotFoundError(f"trial {number} has not been inspected: see `inspect_trials`")
    rows = []
    for one, other in combinations(directions, 2):
        for matrix, left_OK in directions[one].items():
            right_OK = directions[other].get(matrix)
            if right_OK is not None and left_OK.shape[1] and right_OK.shape[1]:
                shared = subspace_similarity(left_OK, right_OK)
                rows.append((one, other, matrix, shared))
    return pd.DataFrame(rows, columns=["number", "other", "matrix", "similarity"])


_COLUMNS = {
    "relative_norm": "dW/W0",
    "stable_rank_share": "stable",
    "effective_rank_share": "eff.",
    "intruders_per_matrix": "intr.",
    "cosine_by_index": "cos",
    "js": "JS",
    "cka_drift_without_first": "CKA",
    "kl_base_to_tuned": "KL",
}
_LEGEND = (
    "dW/W0 relative norm of the update; stable, eff. its stable and effective rank as shares of "
    "the most possible; intr. intruder dimensions; cos of singular vectors before and after "
    "(medians over matrices, intruders means); JS attention drift in bits, CKA drift of "
    "representations (means over layers); KL from the base in nats/token"
)


def as_table(records: Sequence[InspectionRecord], sweep_dir: Location) -> Table:
    """The rows of `by_trial` for a terminal, with each trial's settings."""
    from rich.table import Table

    configs = {record.number: record.config for record in Ledger(parse_folder(sweep_dir)).trials()}
    rounded = any(is_rounded(configs[record.number]) for record in records)
    legend = f"{_LEGEND}; {ROUNDED}" if rounded else _LEGEND
    table = Table(box=None, padding=(0, 1, 0, 0), caption=legend, caption_justify="left")
    for title in ("trial", "recipe", "capacity", "lr*scale", *_COLUMNS.values()):
        table.add_column(title, justify="right", no_wrap=True)
    frame = by_trial(records).reindex(columns=list(_COLUMNS))
    for record, values in zip(records, frame.itertuples(index=False), strict=True):
        config = configs[record.number]
        table.add_row(
            str(record.number),
            config.recipe,
            str(config.capacity or "-"),
            "-" if config.step_size is None else f"{config.step_size:.1e}",
            *map(_cell, values),
        )
    return table


def _cell(value: float) -> str:
    """Two digits, but all of a count."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
