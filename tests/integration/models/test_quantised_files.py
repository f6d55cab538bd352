"""Model files in FP8 and MXFP4 are trained on as what they stand for, by their formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from faults import faults
from in_slots import measured_in_slots
from measured import assert_measured
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, set_seed
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizer_mxfp4 import Mxfp4HfQuantizer

from analysis.export.model_card import _loading
from trainables.config import LoraConfig, ModelConfig
from trainables.inspection.saved_weights import base_weights
from trainables.models.loading import load_model
from trainables.models.lora_adapter import adapt
from trainables.storage.locations import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Run

    from trainables.config import TrialConfig


EMBEDDED = Path(resolve("package://trainables/embedded/model"))
BLOCK = 32
# E2M1: a sign, two bits of exponent, one of mantissa.
OF_CODE = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
OF_CODE = torch.cat([OF_CODE, -OF_CODE])


def written(folder: Path, weights: dict[str, torch.Tensor], quantisation: dict[str, Any]) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantisation
    (folder / "config.json").write_text(json.dumps(config))


def in_fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Write the embedded model in blocks of FP8, each with a scale; returns what they stand for."""
    shutil.copytree(EMBEDDED, folder)
    weights, values = load_file(EMBEDDED / "model.safetensors"), {}
    for name, weight_OI in list(weights.items()):
        values[name] = weight_OI
        if name.endswith("proj.weight"):
            rows, columns = (size // BLOCK for size in weight_OI.shape)
            blocks = weight_OI.view(rows, BLOCK, columns, BLOCK)
            scales = blocks.abs().amax((1, 3), keepdim=True) / 448
            codes = (blocks / scales).to(torch.float8_e4m3fn)
            weights[name] = codes.view_as(weight_OI)
            weights[f"{name}_scale_inv"] = scales.view(rows, columns)
            values[name] = (codes.float() * scales).view_as(weight_OI)
    quantisation = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    written(folder, weights, quantisation | {"weight_block_size": [BLOCK, BLOCK]})
    return values


def in_mxfp4(folder: Path, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Write a small GPT-OSS whose experts are random codes of 4 bits, 32 of them to an exponent."""
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=len(tokenizer), **sizes, **heads, **experts, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights, values = load_file(folder / "model.safetensors"), {}
    for name, weight in list(weights.items()):
        values[name] = weight
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts_, inputs, outputs = weight.shape
            shape = (experts_, outputs, inputs // 32)
            codes = torch.randint(0, 16, (*shape, 32))
            exponents = torch.randint(121, 125, shape)
            low, high = codes[..., ::2], codes[..., 1::2]
            weights[f"{name}_blocks"] = (low | high << 4).to(torch.uint8)
            weights[f"{name}_scales"] = exponents.to(torch.uint8)
            factors = 2.0 ** (exponents[..., None] - 127)
            values[name] = (OF_CODE[codes] * factors).view(experts_, outputs, inputs).mT
            del weights[name]
    written(folder, weights, {"quant_method": "mxfp4"})
    return values


@pytest.fixture(scope="module", params=["fp8", "mxfp4"])
def files(
    request: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelConfig, ModelConfig]:
    """A model in quantised files, and one in plain files of the values that these stand for."""
    folder = tmp_path_factory.mktemp(request.param)
    quantised, plain = folder / "quantised", folder / "plain"
    values = in_fp8(quantised) if request.param == "fp8" else in_mxfp4(quantised, tokenizer)
    shutil.copytree(quantised, plain)
    save_file(
        {name: value.contiguous() for name, value in values.items()},
        plain / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((plain / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    return tuple(ModelConfig(name=str(each), dtype="float32") for each in (quantised, plain))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_they_are_read_as_what_they_stand_for(
    files: tuple[ModelConfig, ModelConfig], dtype: str
) -> None:
    quantised, plain = (model.model_copy(update={"dtype": dtype}) for model in files)
    found, expected = load_model(quantised).state_dict(), load_model(plain).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_an_inspection_finds_the_same_in_them(files: tuple[ModelConfig, ModelConfig]) -> None:
    found, expected = map(base_weights, files)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def dequantised(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether Transformers is asked to, each time that it loads such files."""
    asked = []
    for kind in (FineGrainedFP8HfQuantizer, Mxfp4HfQuantizer):

        def spy(self: Any, *a: Any, check: Any = kind.validate_environment, **named: Any) -> None:
            asked.append(self.quantization_config.dequantize)
            check(self, *a, **named)

        monkeypatch.setattr(kind, "validate_environment", spy)
    return asked


def test_a_gpu_s_kernels_for_them_are_left_aside(
    files: tuple[ModelConfig, ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They train no weights, or compute with rounded activations; on a CPU there are none."""
    asked = dequantised(monkeypatch)
    load_model(files[0])
    assert asked == [True]


def test_they_are_not_rounded_again(files: tuple[ModelConfig, ModelConfig]) -> None:
    (fault,) = faults(load_model, files[0].model_copy(update={"load_in_4bit": True}))
    assert fault.field == "model.load_in_4bit"
    assert fault.rule.startswith("must be false, as the files of ")


def test_the_model_card_s_code_loads_what_was_measured(
    files: tuple[ModelConfig, ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = adapt(load_model(files[0]), LoraConfig(rank=2, alpha=4))
    torch.nn.init.normal_(next(p for n, p in adapted.named_parameters() if "lora_B" in n))
    adapted.save_pretrained(tmp_path)
    asked = dequantised(monkeypatch)
    loaded: dict[str, Any] = {}
    exec(_loading("adapter", files[0]).replace("PATH", str(tmp_path)), loaded)  # noqa: S102
    assert asked == [True]
    tokens = torch.tensor([[5, 9, 17, 23, 42, 3]])
    with torch.no_grad():
        found, expected = loaded["model"](tokens).logits, adapted.eval()(tokens).logits
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "method",
    [
        {},
        pytest.param({"method": "full", "deepspeed": {"zero_stage": 3}}, marks=pytest.mark.slow),
    ],
    ids=["lora", "full"],
)
def test_trials_measure_on_them_what_those_values_give(
    files: tuple[ModelConfig, ModelConfig],
    method: dict[str, Any],
    make_trial: Callable[..., TrialConfig],
    run: Callable[[TrialConfig], Run],
) -> None:
    trials = [make_trial(**method, model=model.model_dump()) for model in files]
    found, expected = (run(trial).measurements for trial in trials)
    assert_measured(found, expected)
    if method:
        saved = [AutoModelForCausalLM.from_pretrained(trial.weights_dir) for trial in trials]
        ours, theirs = (model.state_dict() for model in saved)
        assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
        return
    (in_slot,) = measured_in_slots(make_trial(model=files[0].model_dump()))
    assert_measured(in_slot, expected)
