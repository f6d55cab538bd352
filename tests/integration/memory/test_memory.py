"""The memory estimate against every tensor of real training steps, tracked on the CPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from in_slots import engine_for
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from trl import SFTTrainer
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from trainables.config import ModelConfig, TrialConfig
from trainables.evaluation import drift
from trainables.evaluation.drift import token_nll
from trainables.models.loading import load_model, shared_base
from trainables.models.lora_adapter import peft_config
from trainables.models.model_shape import read_shape
from trainables.packing import packed_batch as batch
from trainables.packing import packed_loss as loss
from trainables.process import memory_estimate as forecast
from trainables.training.full_sft import _deepspeed_process, deepspeed_settings, prepare
from trainables.training.reporter import ListReporter
from trainables.training.run import _adapter_kept, sft_config

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
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
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
    monkeypatch.setattr(forecast, "_TILE_WORDS", TILE_WORDS)
    monkeypatch.setattr(forecast, "_BUCKET", BUCKET)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelConfig]:
    """A small Llama with random weights."""

    def make(
        dtype: str,
        hidden: int = 128,
        layers: int = 4,
        vocabulary: int = 500,
        in_4_bits: bool = False,
    ) -> ModelConfig:
        config = AutoConfig.for_model(
            "llama",
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=vocabulary,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
        return ModelConfig(name=str(tmp_path / "model"), dtype=dtype, load_in_4bit=in_4_bits)

    return make


def samples(trial: TrialConfig) -> Dataset:
    """As long as the data may be, but for one in each micro-batch, as padding costs too."""
    length = trial.data.max_length
    rows = []
    for index in range(trial.train.batch_size * STEPS):
        long = length if index % trial.train.micro_batch_size else length - 1
        rows.append({"input_ids": [5 + index % 200] * long, "labels": [7] * long})
    return Dataset.from_list(rows)


def track_weights(tracker: Tracker, network: Any) -> None:
    for parameter in network.parameters():
        tracker.add(parameter.data)
        if state := getattr(parameter, "quant_state", None):
            for tensor in (state.absmax, state.code, state.state2.absmax, state.state2.code):
                tracker.add(tensor)


def measure(trial: TrialConfig, tokenizer: Any) -> _Watch:
    """Train as a trial does, without its reports."""
    full = trial.method == "full"
    with _deepspeed_process() if full else nullcontext():
        count = trial.train.batch_size * STEPS
        if full:
            settings = deepspeed_settings(trial)
            settings["zero_optimization"] |= {"reduce_bucket_size": BUCKET}
            network, arguments = prepare(trial, count, settings)
        else:
            network, arguments = load_model(trial.model), sft_config(trial, count)
        if trial.lora:
            network = peft.get_peft_model(network, peft_config(trial.lora))
        with Tracker() as tracker:
            track_weights(tracker, network)
            watch = _Watch(tracker)
            with _adapter_kept(network):
                trainer = SFTTrainer(
                    model=network,
                    args=arguments,
                    train_dataset=samples(trial),
                    processing_class=tokenizer,
                    callbacks=[watch],
                )
            del network
            trainer.train()
    return watch


CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("lora", "bfloat16", {}, {}),
    "lora in fp32": ("lora", "float32", {}, {}),
    "lora, longer and fewer": ("lora", "bfloat16", {"micro": 2, "length": 256}, {}),
    "lora, checkpointed": ("lora", "bfloat16", {"checkpointing": True}, {}),
    "lora on two modules": (
        "lora",
        "float32",
        {},
        {"lora": {"target_modules": ("q_proj", "v_proj")}},
    ),
    "lora of high rank, with dropout": (
        "lora",
        "bfloat16",
        {"micro": 2, "length": 32},
        {"lora": {"rank": 128, "dropout": 0.1}},
    ),
    "lora with dora": ("lora", "bfloat16", {}, {"lora": {"dora": True}}),
    "lora with dora in fp32": ("lora", "float32", {}, {"lora": {"dora": True}}),
    "lora on 4 bits": ("lora", "bfloat16", {"micro": 2, "hidden": 256, "in_4_bits": True}, {}),
    "lora on 4 bits, weights first": (
        "lora",
        "float32",
        {"micro": 1, "length": 8, "hidden": 512, "in_4_bits": True},
        {},
    ),
    "full": ("full", "bfloat16", {}, {"deepspeed": {"zero_stage": 2}}),
    "full in fp32": ("full", "float32", {}, {"deepspeed": {"zero_stage": 1}}),
    "full, checkpointed": (
        "full",
        "bfloat16",
        {"checkpointing": True},
        {"deepspeed": {"zero_stage": 2}},
    ),
    "full, parameters first": (
        "full",
        "bfloat16",
        {"micro": 1, "length": 8, "hidden": 256},
        {"deepspeed": {"zero_stage": 0}},
    ),
    "full, in several portions": (
        "full",
        "bfloat16",
        {"micro": 4, "portions": 2},
        {"deepspeed": {"zero_stage": 3}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_within_15_percent(
    case: str,
    as_on_a_gpu: None,
    model: Callable[..., ModelConfig],
    make_trial: Callable[..., TrialConfig],
    tokenizer: Any,
) -> None:
    method, dtype, sizes, changes = CASES[case]
    micro = sizes.get("micro", 8)
    trial = make_trial(
        method,
        train={
            "steps": STEPS,
            "micro_batch_size": micro,
            "batch_size": micro * sizes.get("portions", 1),
            "gradient_checkpointing": sizes.get("checkpointing", False),
        },
        **changes,
    )
    data = trial.data.model_copy(update={"max_length": sizes.get("length", 64)})
    base = model(dtype, sizes.get("hidden", 128), in_4_bits=sizes.get("in_4_bits", False))
    trial = trial.model_copy(update={"model": base, "data": data})
    shape = read_shape(base)
    assert shape is not None
    estimate = forecast.estimate(shape, trial)
    measured = measure(trial, tokenizer)
    assert estimate.static == pytest.approx(measured.static, rel=TOLERANCE)
    training = max(estimate.forward, estimate.backward, estimate.update)
    assert estimate.static + training == pytest.approx(measured.peak, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "portions", "deepspeed"),
    [
        ("bfloat16", 1, {"zero_stage": 1, "offload_optimizer": True}),
        ("bfloat16", 2, {"zero_stage": 2, "offload_optimizer": True}),
        ("bfloat16", 2, {"zero_stage": 3, "offload_optimizer": True}),
        ("bfloat16", 1, {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}),
        ("float32", 1, {"zero_stage": 2, "offload_optimizer": True}),
    ],
)
def test_what_is_offloaded_is_within_15_percent(
    dtype: str,
    portions: int,
    deepspeed: dict[str, Any],
    as_on_a_gpu: None,
    model: Callable[..., ModelConfig],
    make_trial: Callable[..., TrialConfig],
    tokenizer: Any,
) -> None:
    """On a CPU both memories are one, and what lies there throughout is their sum."""
    train = {"steps": STEPS, "micro_batch_size": 1, "batch_size": portions}
    trial = make_trial("full", train=train, deepspeed=deepspeed)
    data = trial.data.model_copy(update={"max_length": 8})
    base = model(dtype, hidden=256)
    trial = trial.model_copy(update={"model": base, "data": data})
    shape = read_shape(base)
    assert shape is not None
    expected = (
        forecast.estimate(shape, trial).static + forecast.host_estimate(shape, trial).offloaded
    )
    assert measure(trial, tokenizer).static == pytest.approx(expected, rel=TOLERANCE)


def write_texts(network: Any, rows: list[Any], batch_size: int) -> None:
    ids = torch.tensor([row["input_ids"][:-2] for row in rows[:batch_size]])
    network.eval().generate(input_ids=ids, max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize(
    ("dtype", "in_4_bits"), [("bfloat16", False), ("float32", False), ("bfloat16", True)]
)
@pytest.mark.parametrize(
    ("measured", "tile_tokens", "layers"),
    [(token_nll, 512, 4), (token_nll, 256, 4), (write_texts, 8, 12)],
)
def test_an_evaluation_s_peak_is_within_15_percent(
    measured: Callable[..., Any],
    tile_tokens: int,
    layers: int,
    dtype: str,
    in_4_bits: bool,
    model: Callable[..., ModelConfig],
    make_trial: Callable[..., TrialConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a loss's logits, in one tile of four times 128 tokens and in two, and of generation."""
    for module in (drift, forecast):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", tile_tokens * 4000)
    base = model(dtype, layers=layers, vocabulary=4000, in_4_bits=in_4_bits)
    trial = make_trial("lora")
    changes = {"batch_size": 4, "general_text": None, "kl_prompts": 0}
    suite = trial.eval.model_copy(update=changes)
    data = trial.data.model_copy(update={"max_length": 128})
    trial = trial.model_copy(update={"model": base, "eval": suite, "data": data})
    network = load_model(base)
    row = {"input_ids": [5] * 128, "labels": [7] * 128}
    with Tracker() as tracker:
        track_weights(tracker, network)
        weights = tracker.live
        measured(network, [row] * 8, suite.batch_size)
    shape = read_shape(base)
    assert shape is not None
    peak = tracker.peak - weights
    assert forecast.estimate(shape, trial).evaluation == pytest.approx(peak, rel=TOLERANCE)


def test_slots_take_one_base_and_each_what_an_adapter_does(
    make_trial: Callable[..., TrialConfig],
) -> None:
    """Peak memory of K slots is one base and K times the rest, within 10 percent."""
    trial = make_trial(lora={"rank": 16}, train={"steps": 99, "report_every": 99})
    kept, weights = slot_peaks(trial, recomputes=False)
    recomputed, _ = slot_peaks(trial, recomputes=True)
    for peaks in (kept, recomputed):
        each = peaks[1] - weights
        assert each > 0.1 * weights
        for slots, peak in peaks.items():
            assert peak == pytest.approx(weights + slots * each, rel=0.1), slots
    assert recomputed[8] - weights < 0.75 * (kept[8] - weights)  # of four layers, one is kept


def slot_peaks(trial: TrialConfig, recomputes: bool) -> tuple[dict[int, int], int]:
    """Peak bytes by number of slots, and those of the base alone."""
    shared_base.cache_clear()
    peaks = {}
    with Tracker() as tracker:
        engine = engine_for(trial, recomputes)
        weights = tracker.live
        for slots in (1, 2, 4, 8):
            while len(engine.slots) < slots:
                engine.join(trial, ListReporter())
            engine.step()  # makes gradients and moments
            gc.collect()
            tracker.peak = tracker.live
            engine.step()
            peaks[slots] = tracker.peak
        engine.close()
    shared_base.cache_clear()
    return peaks, weights


def test_a_pass_of_slots_holds_the_logits_of_one_tile(
    model: Callable[..., ModelConfig],
    make_trial: Callable[..., TrialConfig],
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vocabulary, tile, slots = 4000, 8, 8
    base = model("float32", vocabulary=vocabulary)
    tokenizer.save_pretrained(base.name)
    trial = make_trial(train={"steps": 99, "report_every": 99}).model_copy(update={"model": base})
    shared_base.cache_clear()
    engine = engine_for(trial)
    for _ in range(slots):
        engine.join(trial, ListReporter())
    peaks, labelled = {}, 0
    monkeypatch.setattr(batch, "_LARGEST_WINDOW", 0)  # which differs from batch to batch
    for size in (10_000, tile):
        monkeypatch.setattr(loss, "_TILE_TOKENS", size)
        labelled = sum(slot.labelled_tokens for slot in engine.slots)
        with Tracker() as tracker:
            engine.step()
        peaks[size] = tracker.peak
    engine.close()
    shared_base.cache_clear()
    # Logits, their log-softmax and the gradients of both, in fp32.
    words = 4 * (labelled - tile) * vocabulary
    assert labelled > 4 * tile
    assert peaks[10_000] - peaks[tile] == pytest.approx(4 * words, rel=0.1)
