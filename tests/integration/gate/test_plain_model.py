"""A gate without a sweep: a base, and an adapter or model beside it, evaluated for real."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from analysis.__main__ import main
from analysis.export.weights import merge_adapter
from analysis.gate.plain_model import evaluate_plain
from analysis.gate.plain_settings import PlainSettings, read_plain_settings
from analysis.gate.subject import Subject
from trainables.config import ModelConfig
from trainables.errors import UserError
from trainables.methods.lora import Lora
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC
from trainables.models.loading import load_model
from trainables.storage.locations import resolve

BASE = ModelConfig(name="package://trainables/embedded/model", dtype="float32")
TASKS = ["recall_capitals", "list_max", "in_domain:target_relay"]
SETTINGS = [
    "model.dtype=float32",
    "eval.limit=60",
    "eval.task_dirs=[package://trainables/embedded/eval_tasks]",
]


def save_adapter(folder: Path, std: float) -> Path:
    """An adapter whose update grows with `std`; 0 leaves the base as it is."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load_model(BASE), Lora(rank=4, alpha=16).peft_config(10))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(std * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings() -> PlainSettings:
    return read_plain_settings(resolve(BASE.name), TASKS, SETTINGS)


def evaluated(settings: PlainSettings, model: Path) -> Subject:
    return evaluate_plain(settings, str(model), lambda _: None)


def test_an_adapter_and_its_merged_model_are_judged_alike(
    settings: PlainSettings, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "adapter", 0.3)
    merge_adapter(BASE, adapter, tmp_path / "merged")
    of_adapter, of_model = (evaluated(settings, tmp_path / n) for n in ("adapter", "merged"))
    assert of_adapter.metrics[FORGETTING_MEAN] > 0.05
    assert of_adapter.metrics == pytest.approx(of_model.metrics)
    assert of_adapter.metrics.keys() >= {IN_DOMAIN_ACC, "forgetting/list_max"}
    assert [i.answer for i in of_adapter.items] == [i.answer for i in of_model.items]


def test_the_command_passes_the_base_itself_and_fails_what_forgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--base", resolve(BASE.name), "--tasks", *TASKS, "--max-forgetting", "0.04"]
    given += [part for setting in SETTINGS for part in ("--set", setting)]
    same, other = (save_adapter(tmp_path / f"std_{std}", std) for std in (0.0, 1.0))
    assert main(["gate", str(same), *given]) == 0
    assert main(["gate", "--model", str(other), *given]) == 1
    passed, failed = capsys.readouterr().out.splitlines()
    assert passed.startswith("pass: forgetting/mean <= 0.04: 0 (")
    assert failed.startswith("fail: forgetting/mean <= 0.04: 0.")
    assert passed.endswith("120 items)")


def test_an_adapter_that_does_not_fit_is_refused_as_it_would_forget_nothing(
    settings: PlainSettings, tmp_path: Path
) -> None:
    folder = save_adapter(tmp_path / "adapter", 1.0)
    file = folder / "adapter_model.safetensors"
    renamed = {name.replace("layers", "blocks"): t for name, t in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="--model: cannot put the adapter"):
        evaluated(settings, folder)


def test_a_model_that_is_not_there_is_named_by_its_option(
    settings: PlainSettings, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--model: cannot load /.*/absent"):
        evaluated(settings, tmp_path / "absent")
