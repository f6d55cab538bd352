"""`python -m analysis export`: which trial, what the card says, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import (
    SWEEP_ID,
    record_sweep,
    running,
    scores,
    trial,
)
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from analysis.__main__ import main
from analysis.chosen_point import choose_point
from analysis.export.weights import export as export_point
from analysis.sweeps import open_sweeps
from trainables.config import ModelConfig
from trainables.methods.lora import Lora
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from trainables.storage.disk import content_digest


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two full trials with weights, one without, one that ended early, one that runs."""
    folder = tmp_path / "tiny"
    record_sweep(
        folder,
        trained(folder, 0, gain=0.5, forgetting=0.0),
        trained(folder, 1, gain=0.9, forgetting=0.1),
        trial(2, method="full", metrics=scores(1.0, 0.5)),
        trial(3, status=TrialStatus.STOPPED_EARLY, metrics=scores(0.3, 0.1)),
        running(4),
    )
    return folder


def trained(folder: Path, number: int, gain: float, forgetting: float) -> TrialRecord:
    """A trial with files where its weights should be, as it tells from before a move."""
    weights = Ledger(folder).folder.attempt(number, 1) / "weights"
    weights.mkdir(parents=True)
    save_file({"number": np.array(number)}, weights / "model.safetensors")
    (weights / "config.json").write_text("{}")
    (weights / "README.md").write_text("of the trainer")
    there = f"/elsewhere/tiny/trials/{number:04d}/attempt_1/weights"
    metrics = scores(gain, forgetting, **{"retention/b/acc": 0.75, "forgetting/b": forgetting})
    return trial(number, method="full", metrics=metrics, weights_dir=there)


def export(
    folder: Path,
    to: Path,
    number: int | None = None,
    strength: float | None = None,
    trust_remote_code: bool = False,
) -> Path:
    [sweep] = open_sweeps(folder)
    record = choose_point(sweep, number, strength)
    return export_point(sweep, record, to, trust_remote_code=trust_remote_code)


def number_in(folder: Path) -> int:
    return int(load_file(folder / "model.safetensors")["number"])


def refused(capsys: pytest.CaptureFixture[str], sweep: Path, to: Path, *arguments: str) -> str:
    """The one line that says why."""
    assert main(["export", str(sweep), "--to", str(to), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


@pytest.fixture
def curved(tmp_path: Path) -> Path:
    """A LoRA trial that forgets less at 0.5, which is recommended there, and one like it."""
    folder = tmp_path / "tiny"
    records = [adapter_trial(folder, number) for number in (0, 1)]
    record_sweep(folder, *records)
    return folder


def adapter_trial(folder: Path, number: int) -> TrialRecord:
    weights = Ledger(folder).folder.attempt(number, 1) / "weights"
    weights.mkdir(parents=True)
    tensors = {"q.lora_A.weight": np.ones((2, 3)), "q.lora_B.weight": np.ones((3, 2))}
    save_file(tensors, weights / "adapter_model.safetensors")
    (weights / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 2}')
    record = trial(
        number,
        scores(0.9 - number / 10, 0.3),
        method=Lora(rank=2, alpha=8.0),
        weights_dir=str(weights),
        learning_rate=1e-4 * (number + 1),
    )
    assert record.last is not None
    metrics = {**record.last.metrics, **scores(0.9 - number / 10, 0.1)}
    return record.after(record.last.model_copy(update={"strength": 0.5, "metrics": metrics}))


def test_a_strength_is_built_into_what_is_written(curved: Path, tmp_path: Path) -> None:
    written = {
        "recommended": export(curved, tmp_path / "a"),
        "trial 1": export(curved, tmp_path / "b", number=1),
        "trial 1 at 0.5": export(curved, tmp_path / "c", number=1, strength=0.5),
        "trial 0 at 1": export(curved, tmp_path / "d", strength=1.0),
    }
    factors = {name: load_file(to / "adapter_model.safetensors") for name, to in written.items()}
    assert all((each["q.lora_A.weight"] == 1).all() for each in factors.values())
    found = {name: float(each["q.lora_B.weight"].mean()) for name, each in factors.items()}
    assert found == {"recommended": 0.5, "trial 1": 1, "trial 1 at 0.5": 0.5, "trial 0 at 1": 1}
    text = (written["recommended"] / "README.md").read_text()
    for fact in (
        "trial 0 at strength 0.5",
        "| 0.5 | 0.900 | +0.100 |",
        "| 1 | 0.900 | +0.300 |",
        "--trial 0 --strength S",
        "`lora_alpha`",
    ):
        assert fact in text


def test_a_strength_that_was_not_evaluated_is_refused_with_the_nearest(
    curved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(capsys, curved, tmp_path / "a", "--strength", "0.6")
    assert text.startswith("--strength: trial 0 was not evaluated at 0.6; the nearest is 0.5, of")


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ([], "--to: is required without --push"),
        (["--to", "x", "--public"], "--public: needs --push"),
    ],
)
def test_it_is_written_to_a_folder_or_pushed(
    sweep: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], fact: str
) -> None:
    assert main(["export", str(sweep), *arguments]) == 2
    assert fact in capsys.readouterr().err


def test_the_recommended_trial_is_written_with_its_card(sweep: Path, tmp_path: Path) -> None:
    to = export(sweep, tmp_path / "out" / "winner")
    assert {file.name for file in to.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert number_in(to) == 1
    text = (to / "README.md").read_text()
    assert "not finished then: 4 of 4 trials ended, 1 running or interrupted." in text
    assert f"`{SWEEP_ID}-0001`" in text
    assert "/elsewhere" not in text
    assert number_in(export(sweep, tmp_path / "other", number=0)) == 0


def test_an_exported_adapter_is_peft_s_and_its_card_has_it_served(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    model = ModelConfig(
        name="some/model",
        revision="c0ffee",
        chat_template="turns.jinja",
        trust_remote_code=True,
    )
    record_sweep(folder, trial(0, scores(0.5, 0.0), model=model, weights_dir="/gone/weights"))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    weights.mkdir(parents=True)
    saved = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/cache/some/model"}
    (weights / "adapter_config.json").write_text(json.dumps(saved))
    save_file({"number": np.array(0)}, weights / "adapter_model.safetensors")
    embedded = Path(__file__).parents[3] / "trainables" / "embedded" / "model"
    for file in embedded.glob("tokenizer*"):
        (weights / file.name).write_bytes(file.read_bytes())
    to = export(folder, tmp_path / "out", trust_remote_code=True)
    named = {"base_model_name_or_path": "some/model", "revision": "c0ffee"}
    assert json.loads((to / "adapter_config.json").read_text()) == saved | named
    text = ModelCard.load(to / "README.md").text
    assert (
        "vllm serve some/model --trust-remote-code --revision c0ffee --tokenizer PATH "
        "--dtype bfloat16 --enable-lora --max-lora-rank 8 --lora-modules tiny=PATH"
    ) in text
    assert json.loads((to / "tokenizer_config.json").read_text())["tokenizer_class"] == (
        "TokenizersBackend"  # which Transformers 4 has not
    )


def adapter_of(base: str, folder: Path) -> Path:
    """A sweep of one adapter, whose base this machine may lack."""
    metrics, model = scores(0.5, 0.0), ModelConfig(name=base)
    record_sweep(folder, trial(0, metrics, model=model, weights_dir="/gone/weights"))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    weights.mkdir(parents=True)
    (weights / "adapter_config.json").write_text(json.dumps({"r": 8}))
    save_file({"number": np.array(0)}, weights / "adapter_model.safetensors")
    return folder


def test_a_base_that_was_replaced_is_not_merged_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sum would be of two models that never met; the adapter alone is still what it was."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    folder = adapter_of(str(base), tmp_path / "tiny")
    ledger = Ledger(folder)
    inputs = {"model.name": content_digest(base)}
    ledger.write_sweep(ledger.sweep().model_copy(update={"inputs": inputs}))
    told = refused(capsys, folder, tmp_path / "merged", "--merge")
    assert "has changed" not in told
    (base / "config.json").write_text("[]")
    changed = f"model.name: {base} has changed since the sweep's first start; "
    told = refused(capsys, folder, tmp_path / "merged", "--merge")
    assert told == f"{changed}put the sweep's base there, or leave --merge out"
    assert main(["export", str(folder), "--to", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert told == f"warning: {changed}the adapter needs the sweep's base at that path\n"


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (2, "train.save_weights is false"),
        (3, "it is stopped early, and only complete trials keep theirs"),
        (1, "this folder lacks those written to /elsewhere/tiny/trials/0001/attempt_1/weights"),
    ],
)
def test_a_trial_without_weights_is_refused_and_those_with_named(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, why: str
) -> None:
    shutil.rmtree(sweep / "trials/0001/attempt_1/weights")
    message = refused(capsys, sweep, tmp_path / "out", "--trial", str(number))
    assert message == f"--trial: trial {number} has no weights: {why}; with weights: trial 0"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("damage", ["settings cut off", "settings gone", "tensors cut off"])
def test_damaged_weights_are_not_blamed_on_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, damage: str
) -> None:
    folder = tmp_path / "tiny"
    trained(folder, 0, gain=0.5, forgetting=0.0)
    record_sweep(folder, trial(0, scores(0.5, 0.0), method=method, weights_dir="/gone/weights"))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    settings = weights / ("adapter_config.json" if method == "lora" else "config.json")
    settings.write_text("{" if damage == "settings cut off" else "{}")
    file = weights / "model.safetensors" if damage == "tensors cut off" else settings
    if damage == "settings gone":
        file.unlink()
    if damage == "tensors cut off":
        file.write_bytes(file.read_bytes()[:-1])
    message = refused(capsys, folder, tmp_path / "out")
    assert message.startswith(f"--trial: its weights are damaged: {weights} (")
    assert str(file) in message
    assert "restore them from a copy" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["export", "--to", "x"], ["inspect"], ["watch"]])
def test_a_sweep_in_an_object_store_is_to_be_copied_first(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "s3://bucket/sweeps/mine"]) == 2
    assert "copy the sweep to this machine first" in capsys.readouterr().err


def test_a_full_model_s_code_goes_with_it_where_it_is_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    trusted, plain = (ModelConfig(name="some/model", trust_remote_code=t) for t in (True, False))
    records = [trained(folder, number, gain=0.5, forgetting=0.0) for number in range(2)]
    for record, model in zip(records, (trusted, plain), strict=True):
        weights = folder / f"trials/{record.number:04d}/attempt_1/weights"
        (weights / "modeling_own.py").write_text("raise SystemExit")
        pickled = (f"pickled.{end}" for end in ("bin", "pt", "pth", "pkl", "pickle", "ckpt"))
        for name in (*pickled, "native.so", "vocab.spm", "tokenizer.jsonl"):
            (weights / name).touch()
        config = record.config.model_copy(update={"model": model})
        record_sweep(folder, record.model_copy(update={"config": config}))
    for number, files in enumerate([{"modeling_own.py"}, set()]):
        to = export(folder, tmp_path / str(number), number, trust_remote_code=number == 0)
        vocabulary = {"vocab.spm", "tokenizer.jsonl"}
        written = {"config.json", "model.safetensors", "README.md"} | vocabulary
        assert {file.name for file in to.iterdir()} == written | files
