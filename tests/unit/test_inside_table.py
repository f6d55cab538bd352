"""A trial's row of what changed inside its model sums up matrices, heads and layers as it says."""

from __future__ import annotations

import pytest

from analysis.inside import by_trial
from trainables.inside.records import (
    AttentionDrift,
    InsideRecord,
    MatrixChange,
    RepresentationDrift,
)


def change(size: float, limit: int, intruders: int) -> MatrixChange:
    """Of a matrix whose update is so large; its ranks are half and a quarter of the limit."""
    return MatrixChange(
        layer=0,
        module="q_proj",
        shape=(8, 8),
        rank_limit=limit,
        relative_norm=size,
        stable_rank=limit / 4,
        effective_rank=limit / 2,
        intruders=intruders,
        cosine_by_index=1 - size,
        cosine_by_maximum=1 - size / 2,
    )


def drift(layer: int, *js: float) -> AttentionDrift:
    return AttentionDrift(
        layer=layer,
        js=js,
        js_without_first=js,
        entropy_shift=js,
        entropy_shift_without_first=js,
    )


def test_a_row_has_medians_over_matrices_and_means_over_heads_and_layers() -> None:
    record = InsideRecord(
        number=3,
        trial_id="trial",
        matrices=(change(0.1, 4, 0), change(0.2, 8, 1), change(0.9, 8, 5)),
        attention=(drift(0, 0.1, 0.2), drift(1, 0.3, 0.8)),
        representation=tuple(
            RepresentationDrift(layer=i, cka_drift=moved, cka_drift_without_first=moved / 2)
            for i, moved in enumerate((0.1, 0.2, 0.6))
        ),
    )
    row = by_trial([record]).loc[3].dropna().to_dict()
    assert row == pytest.approx(
        {
            "intruders": 6,
            "intruders_per_matrix": 2,
            "relative_norm": 0.2,
            "stable_rank_share": 0.25,
            "effective_rank_share": 0.5,
            "cosine_by_index": 0.8,
            "cosine_by_maximum": 0.9,
            "cka_drift": 0.3,
            "cka_drift_without_first": 0.15,
            **dict.fromkeys(("js", "js_without_first"), 0.35),
            **dict.fromkeys(("entropy_shift", "entropy_shift_without_first"), 0.35),
        }
    )
