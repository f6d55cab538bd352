"""What only a GPU can show: `make gpu` where there is one.

What differs on a GPU are its kernels, its random numbers and its memory. Where there is none,
`make pretended_gpu` and `make slow` show all but its kernels.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from in_slots import engine_for
from measured import by_step
from trained_trials import measured
from transformers import AutoConfig, AutoModelForCausalLM

from trainables.config import ModelConfig
from trainables.metric_keys import GRAD_NORM, MAX_RESERVED, TRAIN_LOSS
from trainables.models.loading import shared_base
from trainables.models.model_shape import read_shape
from trainables.process import memory_estimate
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig

    MakeTrial = Callable[..., TrialConfig]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

IS_PRETENDED = "pretended_gpu_device" in sys.modules
needs_kernels = pytest.mark.skipif(IS_PRETENDED, reason="needs a GPU's kernels")

TRIALS: dict[str, dict[str, Any]] = {
    "another rank": {"lora": {"rank": 64, "alpha": 16.0}},
    "dropout": {"lora": {"dropout": 0.2}, "train": {"batch_size": 8, "micro_batch_size": 2}},
    "longer": {"train": {"steps": 14, "report_every": 7}, "seed": 1},
}
TOLERANCE = 1e-4  # in float32, as on a CPU
TOLERANCE_IN_16_BIT = 3e-2  # of the loss alone: a single item of a task may flip


@pytest.mark.parametrize(
    ("model", "recomputes"),
    [
        ({"dtype": "float32"}, True),
        pytest.param({"dtype": "bfloat16"}, False, marks=pytest.mark.slow),
        pytest.param({"dtype": "float32", "load_in_4bit": True}, False, marks=needs_kernels),
    ],
)
def test_trials_in_slots_measure_what_each_does_alone(
    make_trial: MakeTrial, model: dict[str, Any], recomputes: bool
) -> None:
    trials = {name: make_trial(model=model, **changes) for name, changes in TRIALS.items()}
    reporters = {name: ListReporter() for name in TRIALS}
    engine = engine_for(trials["dropout"], recomputes)
    errors = []
    for name, trial in trials.items():  # each joins two passes after the one before
        engine.join(trial, reporters[name])
        errors += [ended.error for ended in engine.step() + engine.step()]
    while engine.slots:
        errors += [ended.error for ended in engine.step()]
    engine.close()
    assert errors == [None] * len(TRIALS)
    for name, changes in TRIALS.items():
        alone = by_step(measured(make_trial(model=model, **changes)))
        in_slot = by_step(reporters[name].measurements)
        assert in_slot.keys() == alone.keys()
        for step, metrics in alone.items():
            for key, value in metrics.items() if model["dtype"] == "float32" else ():
                near = 2e-3 if key == GRAD_NORM else 0.0
                expected = pytest.approx(value, rel=near, abs=TOLERANCE)
                assert in_slot[step][key] == expected, f"{name}: {key} at step {step}"
            loss = pytest.approx(metrics[TRAIN_LOSS], abs=TOLERANCE_IN_16_BIT)
            assert in_slot[step][TRAIN_LOSS] == loss, f"{name}: step {step}"


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_full_training_resumes_from_its_checkpoint(make_trial: MakeTrial, stage: int) -> None:
    parts: dict[str, Any] = {"deepspeed": {"zero_stage": stage}, "model": {"dtype": "bfloat16"}}
    parts["train"] = {"steps": 4, "report_every": 2}
    whole = make_trial("full", **parts)
    undisturbed = by_step(measured(whole))
    shutil.rmtree(Path(whole.output_dir) / "checkpoints" / "step_00000004")
    resumed = by_step(measured(make_trial("full", **parts, earlier_attempts=(whole.output_dir,))))
    assert min(resumed) == 3
    for step, metrics in resumed.items():
        assert metrics[TRAIN_LOSS] == pytest.approx(undisturbed[step][TRAIN_LOSS], abs=1e-2)


def on_long_samples(trial: TrialConfig, folder: Path, tokenizer: Any) -> TrialConfig:
    """The trial with a model of 0.13 B parameters, on samples as long as they may be.

    CUDA's workspaces are small beside them. A pretended GPU, which has none and is as slow as a
    CPU, has the model a quarter as wide.
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
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    row = json.dumps({"text": "max 4 7 2 = 7 " * 600})
    (folder / "texts.jsonl").write_text(f"{row}\n" * 64)
    texts = {"path": str(folder / "texts.jsonl"), "validation_path": None, "text": "text"}
    data = trial.data.model_copy(update=texts | {"max_length": 512})
    model = ModelConfig(name=str(folder), dtype="bfloat16")
    return trial.model_copy(update={"model": model, "data": data})


def empty_gpu() -> None:
    shared_base.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    "parts",
    [
        {"method": "lora", "lora": {"rank": 64}},
        pytest.param({"method": "full", "deepspeed": {"zero_stage": 2}}, marks=pytest.mark.slow),
        pytest.param({"method": "full", "deepspeed": {"zero_stage": 3}}, marks=pytest.mark.slow),
    ],
)
def test_a_training_takes_the_memory_that_was_estimated(
    make_trial: MakeTrial, tokenizer: Any, tmp_path: Path, parts: dict[str, Any]
) -> None:
    empty_gpu()
    fields = {"steps": 2, "batch_size": 4, "micro_batch_size": 4, "report_every": 2}
    trial = on_long_samples(make_trial(**parts, train=fields), tmp_path, tokenizer)
    shape = read_shape(trial.model)
    assert shape is not None
    *_, last = measured(trial)
    estimate = memory_estimate.estimate(shape, trial)
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimate.tensors, rel=0.15)
    assert last.metrics[MAX_RESERVED] * 2**30 < estimate.peak
