"""The mean of several trainings, as files: its update is the mean of theirs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainables.errors import CannotRepair
from trainables.post_steps.seed_mean import mean_adapter, mean_model

if TYPE_CHECKING:
    from pathlib import Path

RANK, OUTPUTS, INPUTS, ALPHA = 2, 5, 4, 8
MODULE = "base_model.model.layers.0.q_proj"


def adapter(folder: Path, seed: int, **settings: object) -> Path:
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    factors = {
        f"{MODULE}.lora_A.weight": torch.randn(RANK, INPUTS, generator=generator),
        f"{MODULE}.lora_B.weight": torch.randn(OUTPUTS, RANK, generator=generator),
    }
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": ALPHA, "use_rslora": False, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def update(folder: Path) -> torch.Tensor:
    """s B A, with s as the folder's own configuration has it."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    A_RI, B_OR = (tensors[f"{MODULE}.lora_{part}.weight"] for part in "AB")
    assert len(A_RI) == config["r"]
    root = config["r"] ** (0.5 if config["use_rslora"] else 1)
    return config["lora_alpha"] / root * B_OR @ A_RI


@pytest.mark.parametrize("rslora", [False, True])
def test_the_mean_of_adapters_has_the_mean_of_their_updates(tmp_path: Path, rslora: bool) -> None:
    folders = [adapter(tmp_path / str(seed), seed, use_rslora=rslora) for seed in range(3)]
    mean_adapter(folders, tmp_path / "mean")
    wanted = torch.stack([update(folder) for folder in folders]).mean(0)
    torch.testing.assert_close(update(tmp_path / "mean"), wanted)


def test_the_mean_of_one_adapter_is_itself(tmp_path: Path) -> None:
    mean_adapter([adapter(tmp_path / "only", 0)], tmp_path / "mean")
    torch.testing.assert_close(update(tmp_path / "mean"), update(tmp_path / "only"))


def test_adapters_with_more_than_factors_have_no_mean(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "norms", 0)
    file = folder / "adapter_model.safetensors"
    norms = {f"{MODULE}.lora_magnitude_vector": torch.ones(OUTPUTS)}
    save_file(load_file(file) | norms, file)
    with pytest.raises(CannotRepair, match="low-rank factors"):
        mean_adapter([folder, folder], tmp_path / "mean")


def test_the_mean_of_models_is_that_of_each_tensor_in_its_dtype(tmp_path: Path) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        (tmp_path / str(seed)).mkdir()
        tensors = {
            "weight": torch.randn(4, 4, generator=generator).bfloat16(),
            "count": torch.tensor([seed + 1]),
        }
        save_file(tensors, tmp_path / str(seed) / "model.safetensors")
    folders = [tmp_path / str(seed) for seed in range(3)]
    mean_model(folders, tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    models = [load_file(folder / "model.safetensors") for folder in folders]
    wanted = sum((model["weight"].double() for model in models), torch.zeros(())) / 3
    torch.testing.assert_close(found["weight"], wanted.bfloat16())
    assert found["count"].tolist() == [1]
