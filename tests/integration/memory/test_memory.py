"""The memory estimate against every tensor of real training steps, tracked on the CPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from in_slots import engine_for
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from trainables.config import ModelConfig, TrialConfig
from trainables.losses import Loss
from trainables.losses.eaft import Eaft
from trainables.losses.hellinger import Hellinger
from trainables.losses.kl import Kl
from trainables.losses.l2 import L2
from trainables.methods import METHODS, Method
from trainables.models.adapter import Adapted, _tensors
from trainables.models.loading import load_model, shared_base
from trainables.models.model_shape import read_shape
from trainables.process import memory_estimate
from trainables.process.memory_estimate import estimate
from trainables.training.full_sft import deepspeed_process, deepspeed_settings, prepare
from trainables.training.reporter import ListReporter
from trainables.training.trainer import Trainer
from trainables.training.training_loop import _adapter_kept, sft_config

TOLERANCE = 0.15
BUCKET, TILE_WORDS = 100_000, 512
STEPS = 2


class Tracker(TorchDispatchMode):
    """Bytes of all live tensors made under it, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.live = 0
        self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            is_here = isinstance(tensor, torch.Tensor) and tensor.device.type != "meta"
            if is_here and tensor.layout == torch.strided:  # a sparse one is made of two
                self.add(tensor)
        return made

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class _Watch(TrainerCallback):
    """Starts the peak anew at the last step, when gradients and moments have found their place."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.static = 0
        self.peak = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        self.static = self._tracker.peak = self._tracker.live

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.peak = self._tracker.peak


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's kernels work in the tile itself, where torch on a CPU needs some ten of them.

    Tiles and buckets are made as small as the model, else they would be all there is to see.
    """
    for name in ("_forward_tile", "_backward_tile"):
        monkeypatch.setattr(chunked_logprob, name, lambda *a, **k: None)
    monkeypatch.setattr(trl_utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", TILE_WORDS)
    monkeypatch.setattr(memory_estimate, "_TILE_WORDS", TILE_WORDS)
    monkeypatch.setattr(memory_estimate, "_BUCKET", BUCKET)


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    """A small Llama with random weights."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=500,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    return ModelConfig(name=str(tmp_path / "model"), dtype="bfloat16")


def samples(trial: TrialConfig) -> Dataset:
    """As long as the data may be, but for one in each micro-batch, as padding costs too."""
    length = trial.data.max_length
    rows = []
    for index in range(trial.train.batch_size * STEPS):
        long = length if index % trial.train.micro_batch_size else length - 1
        rows.append({"input_ids": [5 + index % 200] * long, "labels": [7] * long})
    return Dataset.from_list(rows)


def measure(trial: TrialConfig, tokenizer: Any) -> _Watch:
    """Train as a trial does, without its reports."""
    full = trial.method.changes_base
    with deepspeed_process() if full else nullcontext():
        count = trial.train.batch_size * STEPS
        base = None
        if full:
            settings = deepspeed_settings(trial)
            settings["zero_optimization"] |= {"reduce_bucket_size": BUCKET}
            base = load_model(trial.model).eval() if trial.loss.needs_base else None
            network, arguments = prepare(trial, count, settings)
        else:
            network, arguments = load_model(trial.model), sft_config(trial, count)
            network = Adapted(network, trial.method, STEPS).model
        with Tracker() as tracker:
            for tensor in chain(*(_tensors(each).values() for each in (network, base) if each)):
                tracker.add(tensor.data)
            watch = _Watch(tracker)
            with _adapter_kept(network):
                trainer = Trainer(
                    trial.method,
                    trial.loss,
                    base,
                    model=network,
                    args=arguments,
                    train_dataset=samples(trial),
                    processing_class=tokenizer,
                    callbacks=[watch],
                )
            del network
            trainer.train()
    return watch


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_estimate_is_within_15_percent(
    method: str,
    as_on_a_gpu: None,
    model: ModelConfig,
    make_trial: Callable[..., TrialConfig],
    tokenizer: Any,
) -> None:
    """Of LoRA with checkpointing off, and of full fine-tuning in portions with it on."""
    full = method == "full"
    train = {
        "steps": STEPS,
        "micro_batch_size": 4,
        "batch_size": 8 if full else 4,
        "gradient_checkpointing": full,
    }
    trial = make_trial(method, train=train, **({"deepspeed": {"zero_stage": 2}} if full else {}))
    data = trial.data.model_copy(update={"max_length": 64})
    trial = trial.model_copy(update={"model": model, "data": data})
    shape = read_shape(model)
    assert shape is not None
    found = estimate(shape, trial)
    measured = measure(trial, tokenizer)
    assert found is not None
    assert found.static == pytest.approx(measured.static, rel=TOLERANCE)
    assert found.static + found.training == pytest.approx(measured.peak, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("method", "loss"),
    [("lora", Eaft()), ("lora", Kl()), ("lora", Hellinger()), ("full", Kl()), ("full", L2())],
    ids=lambda value: getattr(value, "name", value),
)
def test_what_losses_keep_is_known_within_15_percent(
    method: str,
    loss: Loss,
    as_on_a_gpu: None,
    model: ModelConfig,
    make_trial: Callable[..., TrialConfig],
    tokenizer: Any,
) -> None:
    """Of losses that read the logits, or the base."""
    train = {"steps": STEPS, "micro_batch_size": 4, "batch_size": 4}
    trial = make_trial(method, train=train, loss=loss)
    data = trial.data.model_copy(update={"max_length": 64})
    trial = trial.model_copy(update={"model": model, "data": data})
    shape = read_shape(model)
    assert shape is not None
    found = estimate(shape, trial)
    assert found is not None
    expected = measure(trial, tokenizer).peak
    assert found.static + found.training == pytest.approx(expected, rel=TOLERANCE)


KNOWN = [each for each in METHODS if not each.changes_base and each.example().footprint(8, 8)]


@pytest.mark.parametrize("method", KNOWN, ids=lambda method: method.name)
def test_what_adapters_keep_is_known_within_15_percent(
    method: type[Method],
    as_on_a_gpu: None,
    model: ModelConfig,
    make_trial: Callable[..., TrialConfig],
    tokenizer: Any,
) -> None:
    """The peak with each method whose layers' footprint is known."""
    train = {"steps": STEPS, "micro_batch_size": 4, "batch_size": 4}
    trial = make_trial("lora", train=train)
    data = trial.data.model_copy(update={"max_length": 64})
    trial = trial.model_copy(update={"model": model, "data": data, "method": method.example()})
    shape = read_shape(model)
    assert shape is not None
    found = estimate(shape, trial)
    assert found is not None
    expected = measure(trial, tokenizer).peak
    assert found.static + found.training == pytest.approx(expected, rel=TOLERANCE)


def test_slots_take_one_base_and_each_what_an_adapter_does(
    make_trial: Callable[..., TrialConfig],
) -> None:
    """Peak memory of K slots is one base and K times the rest, within 10 percent."""
    trial = make_trial(lora={"rank": 16}, train={"steps": 99, "report_every": 99})
    shared_base.cache_clear()
    with Tracker() as tracker:
        engine = engine_for(trial)
        peaks = [tracker.live]
        for slots in (1, 4):
            while len(engine.slots) < slots:
                engine.join(trial, ListReporter())
            engine.step()  # makes gradients and moments
            gc.collect()
            tracker.peak = tracker.live
            engine.step()
            peaks.append(tracker.peak)
        engine.close()
    shared_base.cache_clear()
    weights, one, four = peaks
    assert one - weights > 0.1 * weights
    assert four == pytest.approx(weights + 4 * (one - weights), rel=0.1)
