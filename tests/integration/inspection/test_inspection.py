"""The inspection of real LoRA and full fine-tuning trials."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.linalg import norm
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import jensenshannon

from analysis.__main__ import main
from analysis.inspect_models import inspect_trials
from trainables.inspection import activations
from trainables.inspection.inspection_records import InspectionFolder
from trainables.models.loading import load_model
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from trainables.records.sweep_record import SweepRecord
from trainables.workers.ray_tasks import as_task, inspect_on_worker
from tune.folder.provenance import provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from tune.config.sweep_config import SweepConfig


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGETTING_SWEEPS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Any],
    sweep_config: SweepConfig,
    base_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A sweep's folder: LoRA, full fine-tuning, LoRA without weights."""
    root = tmp_path_factory.mktemp("sweeps") / "small"
    ledger = Ledger(root)
    config = sweep_config.model_dump(mode="json")
    sweep = SweepRecord(sweep_id="small", config=config, provenance=provenance())
    ledger.write_sweep(sweep)
    shutil.copytree(base_dir, ledger.folder.base)
    trials: list[dict[str, Any]] = [
        {"learning_rate": 1e-2, "lora": {"rslora": True}},
        {"method": "full"},
        {"train": {"steps": 1, "save_weights": False}},
    ]
    for number, changes in enumerate(trials):
        place = {"number": number, "output_dir": str(ledger.folder.attempt(number, 1))}
        trial = make_trial(**place | changes)
        result = run(trial).result
        ended = {"status": TrialStatus.COMPLETE, "last": result.last, "started": 0}
        ended["weights_dir"] = result.weights_dir
        ledger.write_trial(TrialRecord(config=trial, params={}, **ended))
    return root


@pytest.fixture(scope="module")
def records(finished: Path) -> list[Any]:
    return inspect_trials(finished, [0, 1])


def merged(config: TrialConfig, weights_dir: str, dtype: torch.dtype = torch.float32) -> Any:
    """The tuned model, put together by the reference libraries."""
    from peft import PeftModel

    model = config.model.model_copy(update={"attention": "eager"})
    if config.method.changes_base:
        own = model.model_copy(update={"name": weights_dir})
        return load_model(own).to(dtype).eval()
    adapted = PeftModel.from_pretrained(load_model(model), weights_dir).to(dtype)
    return adapted.merge_and_unload().eval()


@pytest.mark.parametrize("number", [0, 1], ids=["lora", "full"])
def test_every_matrix_equals_brute_force(finished: Path, records: list[Any], number: int) -> None:
    """Dense SVDs by NumPy in float64, of what the reference libraries make of the files."""
    trial = Ledger(finished).trials()[number]
    base = load_model(trial.config.model).double().state_dict()
    tuned = merged(trial.config, str(trial.weights_dir), torch.float64).state_dict()
    changes = records[number].matrices
    assert len(changes) == 7 * 4
    assert len({(c.layer, c.module) for c in changes}) == len(changes)
    for change in changes[::5]:
        name = f"model.layers.{change.layer}.{change.module}.weight"
        W0, W = base[name].numpy(), tuned[name].numpy()
        assert change.shape == W0.shape
        s = np.linalg.svd(W - W0, compute_uv=False)[: change.rank_limit]
        exact = {"rel": 1e-5}
        p = s / s.sum()
        assert change.relative_norm == pytest.approx(norm(s) / norm(W0), **exact)
        assert change.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, **exact)
        assert change.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), **exact)
        assert change.rank_90 == np.argmax(np.cumsum(s**2) / (s**2).sum() >= 0.9) + 1
        assert change.singular_values == pytest.approx(s[:64].tolist(), **exact)
        u0, u = (np.linalg.svd(M, full_matrices=False)[0] for M in (W0, W))
        cosines = np.abs(u0.T @ u)
        assert change.intruders == (cosines[:, :10].max(0) < 0.5).sum()
        assert change.cosine_by_index == pytest.approx(cosines.diagonal().mean(), **exact)
        assert change.cosine_by_maximum == pytest.approx(cosines.max(0).mean(), **exact)


@pytest.mark.parametrize("number", [0, 1], ids=["lora", "full"])
def test_attention_drift_equals_one_prompt_at_a_time(
    finished: Path, records: list[Any], number: int, tokenizer: Any
) -> None:
    """Batches, padding and adapters out of the way: each prompt alone, JS by SciPy."""
    ledger = Ledger(finished)
    trial = ledger.trials()[number]
    prompts = activations.choose_prompts(ledger.base(), ledger.folder.base / "items.jsonl")
    eager = trial.config.model.model_copy(update={"attention": "eager"})
    base, tuned = load_model(eager).eval(), merged(trial.config, str(trial.weights_dir))
    layers: list[list[np.ndarray]] = [[] for _ in range(4)]
    tokens = 0
    for row in activations.encode(tokenizer, prompts):
        ids = torch.tensor([row])
        tokens += ids.shape[1]
        with torch.no_grad():
            before, after = (
                model(input_ids=ids, output_attentions=True).attentions for model in (base, tuned)
            )
        for layer, (p, q) in enumerate(zip(before, after, strict=True)):
            js = jensenshannon(p[0].double(), q[0].double(), base=2, axis=-1)
            layers[layer].append(np.nan_to_num(js) ** 2)
    record = records[number]
    assert record.tokens == tokens
    for drift, expected in zip(record.attention, layers, strict=True):
        mean = np.concatenate(expected, axis=1).mean(1)
        assert drift.js == pytest.approx(mean.tolist(), abs=1e-6)
        assert min(drift.js) > 0


def test_a_trial_is_inspected_again_only_if_its_weights_changed(
    finished: Path, records: list[Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "changed")
    file = InspectionFolder(folder).record_json(0)
    written = file.stat().st_mtime_ns
    assert inspect_trials(folder, [0]) == [records[0]]
    assert file.stat().st_mtime_ns == written
    ledger = Ledger(folder)
    again = ledger.trial(0).model_copy(update={"ended": 5.0})  # deleted, and trained to the same
    ledger.write_trial(again)
    assert inspect_trials(folder, [0])[0].ended == 5.0
    weights = ledger.folder.attempt(0, 1) / "weights" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    assert inspect_trials(folder, [0])[0].key != records[0].key


def test_a_trial_without_weights_says_so(finished: Path) -> None:
    stale = InspectionFolder(finished).directions(2)  # of an earlier training with weights
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.touch()
    record = inspect_trials(finished, [2])[0]
    assert not stale.exists()
    assert record.reason == "it kept no weights"
    assert record.matrices == ()
    assert record.forgetting_nll is not None


def test_weights_are_found_in_a_moved_folder_and_their_record_outlives_them(
    finished: Path, records: list[Any], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved, ignore=shutil.ignore_patterns("inspection"))
    hidden = (finished / "trials").rename(finished / "trials_away")
    try:
        record = inspect_trials(moved, [1])[0]
    finally:
        hidden.rename(finished / "trials")
    assert record.matrices == records[1].matrices
    shutil.rmtree(Ledger(moved).folder.attempt(1, 1) / "weights")
    assert inspect_trials(moved, [1]) == [record]
    shutil.rmtree(InspectionFolder(moved).root)
    gone = inspect_trials(moved, [1])[0]
    assert (gone.reason, gone.matrices) == ("its weights are gone", ())


def test_the_command_shows_what_it_found(
    finished: Path, records: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(finished), "--all"]) == 0
    output = capsys.readouterr().out
    assert "trial 1:" in output
    assert "trial 2: it kept no weights" in output
    assert str(finished / "inspection") in output
    assert main(["inspect", str(finished), "--trials", "7", "8"]) == 2
    errors = capsys.readouterr().err
    for fact in ("--trials", "trial 7", "0 to 2", "trial 8"):
        assert fact in errors
    assert main(["inspect", str(finished.parent)]) == 2
    assert "no sweep" in capsys.readouterr().err
    numbers = [record.number for record in inspect_trials(finished)]
    assert 1 in numbers  # the only full fine-tuning
    assert 2 not in numbers


@pytest.mark.usefixtures("cluster")
def test_on_a_worker_it_is_the_same(finished: Path, records: list[Any], tmp_path: Path) -> None:
    import ray

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy, ignore=shutil.ignore_patterns("inspection"))
    options = as_task(inspect_on_worker, {"CPU": 1})
    assert ray.get(options.remote(str(copy), 0)) is None
    found = InspectionFolder(copy).read(0)
    assert found is not None
    assert found.matrices == records[0].matrices
    assert found.attention == records[0].attention
    assert ray.get(options.remote(str(copy), 2)) == "it kept no weights"
    shutil.rmtree(copy / "base")
    assert "base.json" in ray.get(options.remote(str(copy), 1))
