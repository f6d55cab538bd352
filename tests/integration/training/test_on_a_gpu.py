"""What only a GPU can show: `make gpu` where there is one.

On a CPU the same code is tested beside this file; what differs on a GPU are its kernels, its random
numbers and its memory. Where there is none, `make pretended_gpu` and `make slow` show all but its
kernels.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from in_slots import engine_for
from measured import by_step
from torch.nn.attention import SDPBackend
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.config import ModelConfig
from trainables.inspection import activations
from trainables.inspection import inspect_trial as inspection
from trainables.metric_keys import GRAD_NORM, MAX_RESERVED, TRAIN_LOSS
from trainables.models import loading as model_loading
from trainables.models.loading import shared_base
from trainables.models.model_shape import read_shape
from trainables.process import memory_estimate as forecast
from trainables.training.full_sft import train_full_sft
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter
from tune.cluster.ray_cluster import _WORKER_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from trainables.records.schema import Measurement

    MakeTrial = Callable[..., TrialConfig]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

IS_PRETENDED = "pretended_gpu_device" in sys.modules
of_its_kernels = pytest.mark.skipif(IS_PRETENDED, reason="needs a GPU's kernels")

TRIALS: dict[str, dict[str, Any]] = {
    "plain": {},
    "another rank": {"lora": {"rank": 64, "alpha": 16.0}},
    "dropout": {"lora": {"dropout": 0.2}},
    "accumulated": {"train": {"batch_size": 8, "micro_batch_size": 2}},
    "longer": {"train": {"steps": 14, "report_every": 7}, "seed": 1},
}
TOLERANCE = 1e-4  # in float32, as on a CPU
TOLERANCE_IN_16_BIT = 3e-2  # of the loss alone: a single item of a task may flip
TOLERANCE_OF_MEMORY = 0.15
KERNELS_OF_A_SLOT = 12  # for its norm, its clipping and its optimizer


def train(trial: TrialConfig) -> list[Measurement]:
    reporter = ListReporter()
    (train_lora if trial.method == "lora" else train_full_sft)(trial, reporter)
    return reporter.measurements


@pytest.mark.parametrize(
    ("model", "recomputes"),
    [
        pytest.param({"dtype": "float32"}, False, marks=pytest.mark.slow),
        ({"dtype": "float32"}, True),
        ({"dtype": "bfloat16"}, False),
        pytest.param({"dtype": "float32", "load_in_4bit": True}, False, marks=of_its_kernels),
    ],
)
def test_trials_in_slots_measure_what_each_does_alone(
    make_trial: MakeTrial, model: dict[str, Any], recomputes: bool
) -> None:
    trials = {name: make_trial(model=model, **changes) for name, changes in TRIALS.items()}
    reporters = {name: ListReporter() for name in TRIALS}
    engine = engine_for(trials["plain"], recomputes)
    errors = []
    for name, trial in trials.items():  # each joins two passes after the one before
        engine.join(trial, reporters[name])
        errors += [ended.error for ended in engine.step() + engine.step()]
    while engine.slots:
        errors += [ended.error for ended in engine.step()]
    engine.close()
    assert errors == [None] * len(TRIALS)
    for name, changes in TRIALS.items():
        alone = by_step(train(make_trial(model=model, **changes)))
        in_slot = by_step(reporters[name].measurements)
        assert in_slot.keys() == alone.keys()
        for step, metrics in alone.items():
            for key, value in metrics.items() if model["dtype"] == "float32" else ():
                near = 2e-3 if key == GRAD_NORM else 0.0
                expected = pytest.approx(value, rel=near, abs=TOLERANCE)
                assert in_slot[step][key] == expected, f"{name}: {key} at step {step}"
            loss = pytest.approx(metrics[TRAIN_LOSS], abs=TOLERANCE_IN_16_BIT)
            assert in_slot[step][TRAIN_LOSS] == loss, f"{name}: step {step}"


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_full_training_goes_on_from_its_checkpoint(make_trial: MakeTrial, stage: int) -> None:
    parts: dict[str, Any] = {"deepspeed": {"zero_stage": stage}, "model": {"dtype": "bfloat16"}}
    halves: dict[str, Any] = {"train": {"steps": 10, "report_every": 5}}
    whole = make_trial("full", **parts, **halves)
    undisturbed = by_step(train(whole))
    newest = Path(whole.output_dir) / "checkpoints" / "step_00000010"
    for file in newest.iterdir():  # as if it had been lost while that was written
        file.unlink()
    newest.rmdir()
    again = make_trial("full", **parts, **halves, earlier_attempts=(whole.output_dir,))
    resumed = by_step(train(again))
    assert min(resumed) == 6
    for step, metrics in resumed.items():
        assert metrics[TRAIN_LOSS] == pytest.approx(undisturbed[step][TRAIN_LOSS], abs=1e-2)


@pytest.fixture
def model(tmp_path: Path, tokenizer: Any) -> ModelConfig:
    """Of 0.13 B parameters with random weights, beside which CUDA's workspaces are small.

    A pretended GPU, which has none, and is as slow as a CPU, has it a quarter as wide.
    """
    width = 256 if IS_PRETENDED else 1024
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=8,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return ModelConfig(name=str(tmp_path / "model"), dtype="bfloat16")


def on_long_samples(trial: TrialConfig, model: ModelConfig) -> TrialConfig:
    """The trial with that model, on samples as long as they may be."""
    folder = Path(model.name)
    row = json.dumps({"text": "max 4 7 2 = 7 " * 600})
    (folder / "texts.jsonl").write_text(f"{row}\n" * 64)
    texts = {"path": str(folder / "texts.jsonl"), "validation_path": None, "text": "text"}
    data = trial.data.model_copy(update=texts | {"max_length": 512})
    return trial.model_copy(update={"model": model, "data": data})


@pytest.mark.parametrize(
    "parts",
    [
        {"method": "lora", "lora": {"rank": 64}},
        pytest.param({"method": "full", "deepspeed": {"zero_stage": 2}}, marks=pytest.mark.slow),
        {"method": "full", "deepspeed": {"zero_stage": 3}},
    ],
)
def test_a_training_takes_the_memory_that_is_forecast(
    make_trial: MakeTrial, model: ModelConfig, parts: dict[str, Any]
) -> None:
    shared_base.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
    train_fields = {"steps": 3, "batch_size": 4, "micro_batch_size": 4, "report_every": 3}
    trial = on_long_samples(make_trial(**parts, train=train_fields), model)
    shape = read_shape(model)
    assert shape is not None
    *_, last = train(trial)
    estimate = forecast.estimate(shape, trial)
    assert torch.cuda.max_memory_allocated() == pytest.approx(
        estimate.tensors, rel=TOLERANCE_OF_MEMORY
    )
    assert last.metrics[MAX_RESERVED] * 2**30 < estimate.peak


def test_slots_take_one_base_and_each_what_an_adapter_does(
    make_trial: MakeTrial, model: ModelConfig
) -> None:
    """Peak memory of K slots is one base and K times the rest, within 10 percent."""
    shared_base.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
    train_fields = {"steps": 99, "batch_size": 2, "micro_batch_size": 2, "report_every": 99}
    trial = make_trial(lora={"rank": 64}, train=train_fields)
    trial = on_long_samples(trial, model)
    engine = engine_for(trial)
    weights = torch.cuda.memory_allocated()
    peaks = {}
    for slots in (1, 2, 4, 8):
        while len(engine.slots) < slots:
            engine.join(trial, ListReporter())
        engine.step()  # makes gradients and moments
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        engine.step()
        peaks[slots] = torch.cuda.max_memory_allocated()
    engine.close()
    shared_base.cache_clear()
    each = peaks[1] - weights
    for slots, peak in peaks.items():
        assert peak == pytest.approx(weights + slots * each, rel=0.1), slots


@pytest.mark.skipif(not IS_PRETENDED, reason="a GPU does not count its kernels")
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_slot_more_takes_few_kernels_more(make_trial: MakeTrial, dropout: float) -> None:
    """They are what a step of a small model waits for: dropout's own is the only one a layer."""
    from pretended_gpu import launched

    train_fields = {"steps": 99, "batch_size": 2, "micro_batch_size": 2, "report_every": 99}
    trial = make_trial(lora={"dropout": dropout}, train=train_fields)
    engine = engine_for(trial)
    layers = len(engine.join(trial, ListReporter()).adapter.targets)
    kernels = {}
    for slots in (1, 8):  # of equal samples, which are always in one pass
        while len(engine.slots) < slots:
            engine.join(trial, ListReporter())
        engine.step()  # makes moments
        before = launched()
        engine.step()
        kernels[slots] = launched() - before
    engine.close()
    assert (kernels[8] - kernels[1]) / 7 <= KERNELS_OF_A_SLOT + (layers if dropout else 0)


@of_its_kernels
def test_attention_is_computed_by_a_kernel_that_no_new_length_is_planned_for() -> None:
    """Torch decides once in a process; on an H100 it would else be for cuDNN's."""
    code = (
        "import torch; x = torch.ones(1, 8, 64, 64, dtype=torch.bfloat16, device='cuda')\n"
        "print(torch._fused_sdp_choice(x, x, x, is_causal=True))"
    )
    environment = {**os.environ, **_WORKER_ENVIRONMENT}
    chosen = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert SDPBackend(int(chosen)) == SDPBackend.FLASH_ATTENTION


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_inside_a_trial_is_found_as_on_a_cpu(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, dora: bool
) -> None:
    trial = make_trial(lora={"dora": dora})
    weights_dir = Path(str(train_lora(trial, ListReporter()).weights_dir))

    def found() -> Any:
        shared_base.cache_clear()
        prompts = ["3 + 4 =", "What is the capital of France?"]
        drift = activations.activation_drift(trial, weights_dir, prompts)
        matrices = [change for _, change, _ in inspection.matrix_changes(trial, weights_dir)]
        shared_base.cache_clear()
        parts = (*drift.attention, *drift.representation, *matrices)
        return [value for part in parts for value in vars(part).values()]

    on_gpu = found()
    for module in (model_loading, activations, inspection):
        monkeypatch.setattr(module, "device", lambda: torch.device("cpu"))
    for value, expected in zip(on_gpu, found(), strict=True):
        is_name = isinstance(expected, str)
        assert value == (expected if is_name else pytest.approx(expected, 1e-3, TOLERANCE))
