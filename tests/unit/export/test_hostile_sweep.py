"""A sweep folder that somebody else sent runs no code and takes no files of its reader's."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builders import change_base, record_sweep, scores, trial
from markdown_it import MarkdownIt
from safetensors.numpy import save_file

from analysis.__main__ import main
from analysis.export.model_card import model_card
from analysis.sweeps import open_sweeps
from trainables.config import DataConfig, ModelConfig
from trainables.records.ledger import Ledger
from trainables.records.schema import TaskScore

EMBEDDED = Path(__file__).parents[3] / "trainables" / "embedded" / "model"


class Opens:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return open, (str(self.file), "w")


def sent(folder: Path, method: str = "lora", **model: Any) -> Path:
    """A sweep with one trial on a copy of the embedded model; returns its weights' folder."""
    base = shutil.copytree(EMBEDDED, folder.parent / "base", dirs_exist_ok=True)
    config = ModelConfig(name=str(base), **model)
    place = {"weights_dir": "/gone/weights", "method": method}
    record_sweep(folder, trial(0, scores(0.5, 0.0), model=config, **place))
    weights = Ledger(folder).folder.attempt(0, 1) / "weights"
    weights.mkdir(parents=True)
    name = "adapter_config.json" if method == "lora" else "config.json"
    (weights / name).write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    tensors = "adapter_model" if method == "lora" else "model"
    save_file({"number": np.array(0)}, weights / f"{tensors}.safetensors")
    return weights


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> str:
    to = folder.parent / "out"
    assert main(["export", str(folder), "--to", str(to), *arguments]) == 2
    assert not to.exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "name", "arguments"),
    [
        ("lora", "adapter_model", []),
        ("lora", "adapter_model", ["--merge"]),
        ("full", "pytorch_model", []),
    ],
)
def test_pickled_weights_are_refused(
    method: str,
    name: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = sent(tmp_path / "sweep", method)
    next(weights.glob("*.safetensors")).unlink()
    (weights / f"{name}.bin").write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
    message = refused(capsys, tmp_path / "sweep", *arguments)
    assert "--trial: its weights are damaged" in message
    assert "no safetensors" in message
    main(["inspect", str(tmp_path / "sweep"), "--trial", "0"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", ["a file", "the folder", "a shard"])
def test_paths_that_leave_the_folder_are_refused(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = sent(tmp_path / "sweep", "full")
    outside = tmp_path / "private"
    outside.mkdir()
    shutil.copy(weights / "model.safetensors", outside)
    if what == "a file":
        (weights / "vocab.txt").symlink_to(outside / "model.safetensors")
    elif what == "the folder":
        shutil.copytree(weights, outside / "weights")
        shutil.rmtree(weights)
        weights.symlink_to(outside / "weights")
    else:
        index = {"weight_map": {"number": str(outside / "model.safetensors")}}
        (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused(capsys, tmp_path / "sweep")
    assert "weights" in message
    assert str(weights if what == "a shard" else outside) in message


@pytest.mark.parametrize("is_trusted", [False, True])
def test_code_that_weights_name_is_not_run(
    is_trusted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "sweep"
    weights = sent(folder, eos_token="<eos>", trust_remote_code=is_trusted)
    shutil.copy(EMBEDDED / "tokenizer.json", weights)
    auto_map = {"AutoTokenizer": [None, "own.Own"]}
    settings = {"tokenizer_class": "Own", "eos_token": "<eos>", "auto_map": auto_map}
    (weights / "tokenizer_config.json").write_text(json.dumps(settings))
    (weights / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    if is_trusted:
        message = refused(capsys, folder)
        assert "model.trust_remote_code: is true in the sweep's record" in message
        assert "give --trust-remote-code" in message
        assert main(["inspect", str(folder)]) == 2
    else:
        to = tmp_path / "out"
        assert main(["export", str(folder), "--to", str(to)]) == 0
        assert not (to / "own.py").exists()
        assert "auto_map" not in json.loads((to / "tokenizer_config.json").read_text())
    assert not (tmp_path / "ran").exists()


def test_a_file_of_the_reader_s_is_not_taken_for_a_chat_template(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("password")
    sent(tmp_path / "sweep", chat_template=str(secret))
    to = tmp_path / "out"
    assert main(["export", str(tmp_path / "sweep"), "--to", str(to)]) == 0
    assert "password" not in "".join(file.read_text(errors="replace") for file in to.iterdir())


SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"a\n---\nlicense: mit\n---\n{SCRIPT} [x](javascript:alert(1)) `|"


def test_text_of_a_sweep_stays_text_in_the_model_card(tmp_path: Path) -> None:
    task = TaskScore(
        role="retention", metric="acc", filter="none", value=0.9, stderr=0.01, chance=0.25,
        choices=4, items=8,
    )  # fmt: skip
    record = trial(0, scores(0.5, 0.0, **{f"retention/{HOSTILE}/acc": 0.75}))
    data = DataConfig(path=f"org/{HOSTILE}", prompt=f"```\n{SCRIPT}", completion="c")
    model = ModelConfig(name=f"org/{HOSTILE}")
    config = record.config.model_copy(update={"data": data, "model": model})
    record = record.model_copy(update={"config": config})
    ledger = record_sweep(tmp_path / "sweep", record)
    change_base(ledger, scores={HOSTILE: task}, warnings=(HOSTILE,))
    [sweep] = open_sweeps([tmp_path / "sweep"])
    settings = {"base_model_name_or_path": model.name, "revision": None, "r": 8}
    _, front, text = model_card("adapter", record, sweep, settings).split("---\n", 2)
    fields = yaml.safe_load(front)
    assert "license" not in fields
    assert fields["base_model"].startswith("org/a --- license: mit --- <script>")
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in html
    assert "href=" not in html
    assert html.count("<td>retention</td>") == 1
    assert "&lt;script&gt;" in html
