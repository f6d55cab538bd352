"""Tables of what changed inside models sum up matrices, heads and layers as they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from builders import record_sweep, running, scores, trial
from safetensors.torch import save_file

from analysis.__main__ import main
from analysis.inspect_models import (
    by_trial,
    check_base,
    inspected,
    similarity,
)
from analysis.sweeps import open_sweeps
from trainables.config import ModelConfig
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


def test_a_row_has_medians_over_matrices_and_means_over_heads_and_layers() -> None:
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
    ("saves", "remedy"),
    [
        (True, "run the sweep until one is complete"),
        (False, "run the sweep with train.save_weights: true"),
    ],
)
def test_without_weights_to_look_into_it_is_told_how_there_will_be_some(
    saves: bool, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_sweep(tmp_path, running(0), train={"save_weights": saves})
    assert main(["inspect", str(tmp_path)]) == 2
    told = f"has no complete trial with weights: {tmp_path}; {remedy}"
    assert capsys.readouterr().err == f"error: SWEEP_DIR: {told}\n"


@pytest.mark.parametrize("base", ["/gone", "package://gone/model"])
def test_where_the_base_is_not_on_this_machine_the_command_ends_with_an_error(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, metrics = ModelConfig(name=base), scores(0.5, 0.0)
    kept = [trial(n, metrics, model=model, weights_dir="/gone/weights") for n in range(2)]
    ledger = record_sweep(tmp_path, *kept, trial(2, metrics, model=model))
    for number in range(2):
        weights = ledger.folder.attempt(number, 1) / "weights"
        weights.mkdir(parents=True)
        (weights / "adapter_config.json").write_text(json.dumps({"r": 8}))
        save_file({"number": torch.zeros(1)}, weights / "adapter_model.safetensors")
    assert main(["inspect", str(tmp_path), "--all"]) == 2
    out, err = capsys.readouterr()
    assert "trial 1: " in out
    assert err.startswith(f"error: model.name: cannot find {base}: ")
    assert err.endswith("; put the sweep's base there, or look inside where the sweep ran\n")
    assert err.count("\n") == 1
    # Weights that were not kept are no fault of the base; nor is what some trials had and others
    # had not.
    assert main(["inspect", str(tmp_path), "--trials", "2"]) == 0
    found = InspectionRecord(number=0, trial_id="0", key="k", matrices=(change(0.1, 8, 0),))
    check_base([found, InspectionRecord(number=1, trial_id="1", key="k", reason="gone")], tmp_path)


def test_updates_are_compared_where_both_trials_have_directions(tmp_path: Path) -> None:
    folder, basis = InspectionFolder(tmp_path), torch.eye(4)
    directions = {
        5: {"half": basis[:, :2], "unmoved": basis[:, :0], "alone": basis[:, :1]},
        2: {"half": basis[:, 1:3], "unmoved": basis[:, :1], "also": basis[:, :1]},
        7: {"half": basis[:, :1], "also": basis[:, :0]},
    }
    for number, of_trial in directions.items():
        folder.directions(number).parent.mkdir(exist_ok=True, parents=True)
        matrices = {name: left_OK.contiguous() for name, left_OK in of_trial.items()}
        save_file(matrices, folder.directions(number))
    folder.write(InspectionRecord(number=3, trial_id="trial", reason="it kept no weights"))
    shared = similarity(str(tmp_path), [5, 3, 2, 7])
    assert shared.to_dict("split")["data"] == [
        [5, 2, "half", pytest.approx(1 / 2)],
        [5, 7, "half", pytest.approx(1)],
        [2, 7, "half", pytest.approx(0)],
    ]
    assert list(shared) == ["number", "other", "matrix", "similarity"]
    with pytest.raises(FileNotFoundError, match="trial 4 has not been inspected"):
        similarity(tmp_path, [5, 4])


def test_what_was_found_of_a_trial_that_is_trained_again_is_not_shown(tmp_path: Path) -> None:
    """Its folder was deleted; its number, and so its id, is the same, and its point may not be."""
    record_sweep(tmp_path, trial(0, scores(0.5, 0.0)), trial(1, scores(0.5, 0.0)))
    folder = InspectionFolder(tmp_path)
    [sweep] = open_sweeps(tmp_path)
    for number, record in enumerate(sweep.trials):
        of_it = {"number": number, "trial_id": record.config.trial_id, "ended": record.ended}
        folder.write(InspectionRecord(**of_it))
    assert [r.number for r, _ in inspected(sweep, sweep.trials)] == [0, 1]
    folder.write(InspectionRecord(**of_it | {"ended": 1.0}))
    assert [r.number for r, _ in inspected(sweep, sweep.trials)] == [0]
    folder.write(InspectionRecord(**of_it | {"ended": None}))  # of an earlier version
    assert [r.number for r, _ in inspected(sweep, sweep.trials)] == [0, 1]
    folder.write(InspectionRecord(**of_it | {"trial_id": "of another sweep"}))
    assert [r.number for r, _ in inspected(sweep, sweep.trials)] == [0]
