"""Tables of what changed inside models sum up matrices, heads and layers as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import record_sweep, running, scores, trial
from safetensors.torch import save_file

from analysis.__main__ import main
from analysis.inspect_models import by_trial, inspected, similarity
from analysis.sweeps import open_sweeps
from trainables.inspection.inspection_records import (
    AttentionDrift,
    InspectionFolder,
    InspectionRecord,
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


def test_rows_are_medians_over_matrices_and_means_over_layers() -> None:
    record = InspectionRecord(
        number=3,
        trial_id="trial",
        matrices=(change(0.1, 4, 0), change(0.2, 8, 1), change(0.9, 8, 5)),
        attention=(drift(0, 0.1, 0.2), drift(1, 0.3, 0.8)),
        representation=tuple(
            RepresentationDrift(layer=i, cka_drift=moved, cka_drift_without_first=moved / 2)
            for i, moved in enumerate((0.1, 0.2, 0.6))
        ),
        kl_base_to_tuned=0.03,
        forgetting_nll=-0.01,
    )
    row = by_trial([record]).loc[3].dropna().to_dict()
    assert row == pytest.approx(
        {
            "kl_base_to_tuned": 0.03,
            "forgetting_nll": -0.01,
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


@pytest.mark.parametrize(
    ("saves", "remedy"), [(True, "until one is complete"), (False, "with train.save_weights: true")]
)
def test_a_sweep_without_weights_is_refused_with_a_remedy(
    saves: bool, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_sweep(tmp_path, running(0), train={"save_weights": saves})
    assert main(["inspect", str(tmp_path)]) == 2
    message = f"has no complete trial with weights: {tmp_path}; run the sweep {remedy}"
    assert capsys.readouterr().err == f"error: SWEEP_DIR: {message}\n"


def test_updates_are_compared_where_both_trials_have_directions(tmp_path: Path) -> None:
    folder, basis = InspectionFolder(tmp_path), torch.eye(4)
    directions = {
        5: {"half": basis[:, :2], "unmoved": basis[:, :0], "alone": basis[:, :1]},
        2: {"half": basis[:, 1:3], "unmoved": basis[:, :1]},
    }
    for number, of_trial in directions.items():
        folder.directions(number).parent.mkdir(exist_ok=True, parents=True)
        matrices = {name: left_OK.contiguous() for name, left_OK in of_trial.items()}
        save_file(matrices, folder.directions(number))
    folder.write(InspectionRecord(number=3, trial_id="trial", reason="it kept no weights"))
    shared = similarity(str(tmp_path), [5, 3, 2])
    assert shared.to_dict("split")["data"] == [[5, 2, "half", pytest.approx(1 / 2)]]
    with pytest.raises(FileNotFoundError, match="trial 4 has not been inspected"):
        similarity(tmp_path, [5, 4])


def test_the_inspection_of_a_trial_that_was_trained_again_is_not_shown(tmp_path: Path) -> None:
    record_sweep(tmp_path, trial(0, scores(0.5, 0.0)), trial(1, scores(0.5, 0.0)))
    folder = InspectionFolder(tmp_path)
    [sweep] = open_sweeps(tmp_path)
    for record, ended in zip(sweep.trials, (None, 1.0), strict=True):
        ids = {"number": record.number, "trial_id": record.config.trial_id}
        folder.write(InspectionRecord(**ids, ended=ended or record.ended))
    assert [record.number for record, _ in inspected(sweep, sweep.trials)] == [0]
