"""What fits which GPU: the table of `--dry-run`, refusals, and smaller micro-batches."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from faults import faults

from trainables.config import ModelShape, TrialConfig
from trainables.errors import UserError
from trainables.process import memory_estimate as forecast
from trainables.process.parameter_counts import adapter_parameters, parameters
from trainables.workers.node import gpu_bytes
from tune import cli as command_line
from tune.cluster.memory_fit import MemoryFit, memory_fit, memory_table
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.search.space import takes_least_memory
from tune.search.trial_ids import largest_trial

GIB = 1 << 30
LLAMA = "paper_llama31_8b"


def shape(config: SweepConfig) -> ModelShape:
    assert config.model.shape is not None
    return config.model.shape


def full_trial(*overrides: str) -> tuple[ModelShape, TrialConfig]:
    config = load_sweep(LLAMA, list(overrides))
    return shape(config), largest_trial(config, "full")


class TestClosedForms:
    """ZeRO's own figures (1910.02054, figure 1), of 7.5 B parameters here 8.03 B."""

    @pytest.mark.parametrize(
        ("stage", "workers", "bytes_a_parameter"),
        [(0, 1, 14), (1, 64, 2 + 12 / 64), (2, 64, 2 + 12 / 64), (3, 64, (2 + 12 + 2) / 64)],
    )
    def test_model_states(self, stage: int, workers: int, bytes_a_parameter: float) -> None:
        model, trial = full_trial(
            f"deepspeed.zero_stage={stage}",
            f"resources.full.workers={workers}",
            "train.micro_batch_size=1",
            f"train.batch_size={workers}",
        )
        bucket = 10**9 if stage == 3 else 0
        static = forecast.estimate(model, trial).static - bucket
        assert static / parameters(model) == pytest.approx(bytes_a_parameter, rel=1e-9)

    def test_offloading_leaves_the_weights_alone(self) -> None:
        model, trial = full_trial("deepspeed.zero_stage=2", "deepspeed.offload_optimizer=true")
        estimate = forecast.estimate(model, trial)
        assert estimate.static == 2 * parameters(model)
        assert estimate.update == 0

    def test_a_whole_offload_leaves_what_is_used_at_a_time(self) -> None:
        """Stage 3 on one GPU: 1e9 live parameters and a bucket, in 16 bit, and activations."""
        model, trial = full_trial(
            "deepspeed.zero_stage=3",
            "deepspeed.offload_optimizer=true",
            "deepspeed.offload_parameters=true",
            "resources.full.workers=1",
            "train.micro_batch_size=1",
            "train.gradient_checkpointing=true",
        )
        estimate = forecast.estimate(model, trial)
        assert estimate.static == 2 * 5e8
        assert estimate.update == 0
        resident = trial.model_copy(
            update={"deepspeed": trial.deepspeed.model_copy(update={"offload_parameters": False})}
        )
        there = forecast.estimate(model, resident)
        assert there.static == 2 * parameters(model) + 2 * 5e8
        assert estimate.backward - there.backward == 2 * 1e9

    def test_an_adapter_s_parameters_are_peft_s(self) -> None:
        """r = 16 on every linear layer of Llama-3.1-8B: 41,943,040, as PEFT prints."""
        config = load_sweep(LLAMA, ["search.lora.rank=16"])
        trial = largest_trial(config, "lora")
        assert adapter_parameters(shape(config), trial.lora) == 41_943_040

    def test_activations_of_a_checkpointed_training_are_the_layers_inputs(self) -> None:
        """2 s b h L bytes of them (2205.05198, section 5), beside one layer's own."""
        model, trial = full_trial()
        deeper = model.model_copy(update={"layers": 2 * model.layers})
        more = forecast.estimate(deeper, trial).forward - forecast.estimate(model, trial).forward
        tokens = trial.train.micro_batch_size * trial.data.max_length
        assert more == 2 * tokens * model.hidden * model.layers


def test_adapters_on_other_modules_are_compared_by_their_parameters() -> None:
    """Four projections of attention have half the parameters of three of an MLP."""
    attention, mlp = "[q_proj, k_proj, v_proj, o_proj]", "[gate_proj, up_proj, down_proj]"
    modules = f"search.lora.target_modules=[{attention}, {mlp}]"
    config = load_sweep(LLAMA, [modules, "search.lora.rank=[8]"])
    largest = largest_trial(config, "lora")
    assert largest.lora is not None
    assert set(largest.lora.target_modules) == {"gate_proj", "up_proj", "down_proj"}
    assert not takes_least_memory(config.search, largest)
    update = {"target_modules": ("k_proj", "o_proj", "q_proj", "v_proj")}
    smaller = largest.model_copy(update={"lora": largest.lora.model_copy(update=update)})
    assert takes_least_memory(config.search, smaller)


@pytest.mark.parametrize(
    ("fewer", "more"),
    [
        ("self_attn.q_proj", "self_attn.q_proj, mlp.gate_proj, mlp.up_proj"),
        ("qkv_proj", "qkv_proj, fc1, fc2"),  # no sizes are known
    ],
)
def test_adapters_are_compared_by_whatever_names_their_modules_are_given(
    fewer: str, more: str
) -> None:
    modules = f"search.lora.target_modules=[[{fewer}], [{more}]]"
    config = load_sweep(LLAMA, [modules, "search.lora.rank=[8]"])
    largest = largest_trial(config, "lora")
    assert largest.lora is not None
    assert set(largest.lora.target_modules) == set(more.split(", "))
    assert not takes_least_memory(config.search, largest)


def test_a_module_named_with_its_parent_is_as_large_as_by_its_own_name() -> None:
    config = load_sweep(LLAMA, ["search.lora.target_modules=[[up_proj, q_proj]]"])
    trial = largest_trial(config, "lora")
    assert trial.lora is not None
    update = {"target_modules": ("mlp.up_proj", "self_attn.q_proj")}
    with_parents = trial.model_copy(update={"lora": trial.lora.model_copy(update=update)})
    assert forecast.estimate(shape(config), with_parents) == forecast.estimate(shape(config), trial)
    assert adapter_parameters(shape(config), trial.lora) > 0


def fit(gib: float, *overrides: str) -> tuple[SweepConfig, MemoryFit]:
    config = load_sweep(LLAMA, list(overrides))
    return config, memory_fit(config, lambda _: int(gib * GIB))


def test_what_fits_is_left_alone() -> None:
    config, found = fit(80)
    assert found.check(config) == []
    for method in config.search.methods:
        trial = largest_trial(config, method)
        assert found.resized(trial) == trial


def test_a_micro_batch_that_does_not_fit_is_made_smaller_and_the_batch_stays() -> None:
    large = ("train.micro_batch_size=32", "train.gradient_checkpointing=false")
    config, found = fit(80, *large, "resources.full.workers=1", "search.full=null")
    trial = largest_trial(config, "lora")
    (notice,) = found.check(config)
    smaller = found.resized(trial)
    size = smaller.train.micro_batch_size
    assert f"lora, rank 128: micro-batch {size}, as" in notice
    assert smaller.train.batch_size == trial.train.batch_size
    assert smaller.accumulation_steps == 32 // size
    assert forecast.estimate(shape(config), smaller).peak <= 80 * GIB
    larger = next(trial.in_micro_batches(size * 2))
    assert forecast.estimate(shape(config), larger).peak > 80 * GIB


def test_an_evaluation_that_does_not_fit_takes_smaller_batches() -> None:
    """8.03e9 parameters of 2 bytes, 3.4e8 of 12, and per token of 512 x 64 all keys and values.

    With 119 kB of one layer and 131 kB of these: 28.6 GiB, half the batch 24.6, a quarter 22.6.
    """
    config, found = fit(24, "search.full=null", "eval.batch_size=64")
    trial = largest_trial(config, "lora")
    smaller = found.resized(trial)
    assert smaller.eval.batch_size == 16
    assert smaller.train == trial.train
    assert forecast.estimate(shape(config), smaller).peak <= 24 * GIB
    assert found.check(config)[0].startswith("lora, rank 128: eval batch 16, as ")


QWEN_HALF_B = (
    "model.shape={hidden: 896, intermediate: 4864, vocabulary: 151936, layers: 24, heads: 14, "
    "kv_heads: 2, head_size: 64, tied_embeddings: true, attention_bias: true}",
    "search.full=null",
)


def test_an_evaluation_does_not_grow_with_long_samples_times_a_large_vocabulary() -> None:
    """Which would be 25 GB for one sample of 16,384 tokens, at 10 bytes a logit."""
    config = load_sweep(LLAMA, [*QWEN_HALF_B, "data.max_length=16384"])
    trial = largest_trial(config, "lora")
    one = trial.with_eval_batch(1)
    layer, cache = 2 * (4 * 896 + 3 * 4864), 2 * 2 * 24 * 2 * 64
    assert forecast.estimate(shape(config), one).evaluation == 16384 * (layer + cache)
    assert forecast.base_peak(shape(config), one) < 3 * GIB
    assert forecast.fitted(shape(config), trial, 24 * GIB) == trial


def test_kl_drift_on_many_tokens_takes_more_than_a_tile() -> None:
    config = load_sweep(LLAMA, ["eval.kl_tokens=256", "eval.kl_prompts=4", "data.max_length=8"])
    found = forecast.estimate(shape(config), largest_trial(config, "lora")).evaluation
    assert found == 2 * 2 * 4096 * 16 * 8 + 10 * 4 * 256 * 128256


def test_where_recomputing_activations_would_fit_that_is_the_advice() -> None:
    long = ("data.max_length=8192", "search.full=null", "train.gradient_checkpointing=false")
    config, found = fit(79.6, *long)
    (fault,) = faults(found.check, config)
    assert fault.remedy == "set train.gradient_checkpointing: true, with which it fits"
    config, found = fit(79.6, *long[:2], "train.gradient_checkpointing=true")
    found.check(config)


def test_where_a_smaller_rank_would_fit_that_is_the_first_advice() -> None:
    """16 bytes a parameter of the adapter, of which rank 1024 has 2.7e9 and rank 8 has 2.1e7."""
    config, found = fit(24, "search.full=null", "search.lora.rank=[8, 64, 1024]")
    (fault,) = faults(found.check, config)
    assert fault.remedy.startswith("drop the largest search.lora.rank (up to 64 fits), lower data.")
    fits = load_sweep(LLAMA, ["search.full=null", "search.lora.rank=[8, 64]"])
    found.check(fits)
    with pytest.raises(UserError) as caught:
        fit(12, "search.full=null")[1].check(config)
    assert caught.value.faults[0].remedy.startswith("lower data.max_length")


def test_what_cannot_fit_is_refused_for_every_method_at_once() -> None:
    config, found = fit(12)
    told = faults(found.check, config)
    methods = ["search.lora", "search.full"]
    assert [fault.field for fault in told] == [*methods, "the base's evaluation"]
    assert "at one sample at a time, and has 12.0 GiB" in told[0].rule
    assert "zero_stage" in told[1].remedy


def test_workers_that_share_a_gpu_share_its_memory() -> None:
    config, found = fit(40, "resources.lora.gpus_per_worker=0.25", "search.full=null")
    with pytest.raises(UserError, match=r"has 10\.0 GiB"):
        found.check(config)


LLAMA_70B = (
    "model.shape.hidden=8192",
    "model.shape.intermediate=28672",
    "model.shape.layers=80",
    "model.shape.heads=64",
    "search.lora=null",
    "resources.full.workers=16",
    "deepspeed.offload_optimizer=true",
    "train.micro_batch_size=2",
)


def test_a_model_over_many_gpus_is_evaluated_on_one_which_must_hold_it() -> None:
    config, found = fit(80, *LLAMA_70B)
    trial = largest_trial(config, "full")
    assert forecast.fitted(shape(config), trial, 80 * GIB) == trial
    (fault,) = faults(found.check, config)
    assert fault.field == "the base's evaluation"
    assert f"about {2 * 70.55e9 * 1.05 / GIB + 1:.0f}" in fault.rule
    assert "it has 80.0 GiB" in fault.rule
    assert "larger GPUs" in fault.remedy
    assert "bfloat16" not in fault.remedy
    assert found.check(config, has_base=True) == []  # that was on another GPU
    config, found = fit(150, *LLAMA_70B)
    assert found.check(config) == []


def test_the_base_of_32_bit_is_told_of_16() -> None:
    config, found = fit(24, "model.dtype=float32", "search.lora=null")
    with pytest.raises(UserError) as caught:
        found.check(config)
    assert "model.dtype: bfloat16" in caught.value.faults[-1].remedy


def test_a_base_of_4_bits_takes_what_its_paper_says() -> None:
    """QLoRA (2305.14314), section 3: 4 bits and 0.127 a parameter for the constants."""
    config, found = fit(15, "search.full=null", "train.gradient_checkpointing=true")
    with pytest.raises(UserError) as caught:
        found.check(config)
    assert all("model.load_in_4bit: true" in fault.remedy for fault in caught.value.faults)
    in_4_bits = ("search.full=null", "train.gradient_checkpointing=true", "model.load_in_4bit=true")
    config, found = fit(15, *in_4_bits)
    found.check(config)
    model, trial = shape(config), largest_trial(config, "lora")
    untouched = 2 * model.vocabulary * model.hidden + (2 * model.layers + 1) * model.hidden
    quantised = parameters(model) - untouched
    assert trial.lora is not None
    adapter = 12 * adapter_parameters(model, trial.lora)
    base = forecast.estimate(model, trial).static - adapter
    assert base == pytest.approx(2 * untouched + quantised * (4 + 0.127) / 8, rel=1e-4)


@pytest.mark.parametrize(
    ("gib", "overrides"),
    [(1, ("model.shape=null",)), (18, ("search.lora=null", "deepspeed.config={}"))],
)
def test_what_is_not_known_is_not_judged(gib: float, overrides: tuple[str, ...]) -> None:
    config, found = fit(gib, *overrides)
    assert found.check(config) == []
    for method in config.search.methods:
        assert found.resized(largest_trial(config, method)) == largest_trial(config, method)


def test_each_method_fits_the_gpus_that_it_asks_for() -> None:
    types = ("resources.lora.accelerator_type=L40S", "resources.full.accelerator_type=H100")
    config = load_sweep(LLAMA, [*types, "eval.batch_size=64"])
    found = memory_fit(config, {"L40S": 24 * GIB, "H100": 80 * GIB}.get)
    (notice,) = found.check(config)
    assert notice.startswith("lora, rank 128: eval batch")
    full = largest_trial(config, "full")
    assert found.resized(full) == full
    alone = memory_fit(config, {"L40S": 24 * GIB}.get)  # no node of the other is up yet
    assert alone.resized(full) == full


@pytest.mark.parametrize(
    "override", ["resources.max_gpus=0", "resources={lora: {gpus_per_worker: 0}}"]
)
def test_gpus_that_a_method_does_not_use_are_not_asked(override: str) -> None:
    config = load_sweep(LLAMA, ["search.full=null", override])
    assert memory_fit(config, lambda _: 8 * GIB).check(config) == []


def test_without_gpus_nothing_is_checked() -> None:
    config = load_sweep("quickstart", [])
    assert memory_fit(config, lambda _: None).check(config) == []


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ((), "a checkpoint takes 90 GiB of its node's own memory; whether"),
        (
            ("deepspeed.offload_optimizer=true",),
            # 12 bytes of each of 8.03e9 parameters, and 18 over 8 workers.
            "beside 17 GiB that each worker offloads, 224 GiB where all 8 are on one node",
        ),
        (
            ("model={name: package://trainables/embedded/model}",),
            "a checkpoint takes 0.0094 GiB of",
        ),
        (("search.full=null",), None),
        (("model.shape=null",), None),
    ],
)
def test_a_dry_run_shows_what_full_fine_tuning_takes_of_a_node_s_own_memory(
    overrides: tuple[str, ...], wanted: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for override in overrides for word in ("--set", override)]
    assert command_line.main([LLAMA, "--dry-run", *settings]) == command_line.OK
    shown = capsys.readouterr().out
    assert "own memory" not in shown if wanted is None else wanted in shown


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        # 8.03e9 parameters: 12 bytes in each of 3 checkpoints, 2 in the weights.
        ("name=a", "full: a trial takes up to 284 GiB of disk while it trains, and leaves"),
        ("name=a", "leaves up to 30 GiB of final and best weights, 1,645 GiB if all 55 trials are"),
        ("confirm={top_k: 2, seeds: 5}", "1,496 GiB if all 50 trials are"),
        # 336 M parameters of rank 128, 4 bytes each.
        ("name=a", "lora: a trial takes up to 12 GiB of disk"),
        ("train.save_weights=false", "and leaves up to 0 GiB of final and best weights, 0 GiB if"),
    ],
)
def test_a_dry_run_shows_what_trials_take_of_the_disk(
    override: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main([LLAMA, "--dry-run", "--set", override]) == command_line.OK
    assert wanted in capsys.readouterr().out


@pytest.mark.parametrize("sweep", ["quickstart", LLAMA, "paper_qwen25_7b"])
def test_a_dry_run_shows_which_card_takes_what(
    sweep: str, capsys: pytest.CaptureFixture[str]
) -> None:
    large = ["--set", "eval.batch_size=64"] if sweep == LLAMA else []
    assert command_line.main([sweep, "--dry-run", *large]) == command_line.OK
    shown = capsys.readouterr().out.split("memory of a worker")[1]
    assert all(f"{card} GiB" in shown for card in (24, 40, 80, 141))
    rows = [line for line in shown.splitlines() if re.match("(lora|full|base), ", line)]
    assert [row.split(",")[0] for row in rows] == ["lora", "full", "base"]
    assert max(map(len, rows)) <= 80
    if sweep == LLAMA:
        assert re.search("evaluation +eval batch 16( +fits){4}$", rows[0])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"model_type": "mixtral"}', "no estimate for model_type mixtral; trials halve their"),
        (None, "is not known here; fetch the model, or give model.shape"),
    ],
)
def test_a_dry_run_says_why_it_has_no_estimate(
    content: str | None, told: str, tmp_path: Path
) -> None:
    if content:
        (tmp_path / "config.json").write_text(content)
    config = load_sweep(LLAMA, [f"model.name={tmp_path}", "model.shape=null"])
    table = memory_table(config)
    assert isinstance(table, str)
    assert told in table


def test_a_dry_run_asks_for_the_shape_of_a_gguf_file_which_is_there(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    table = memory_table(load_sweep(LLAMA, [f"model.name={file}", "model.shape=null"]))
    assert table == f"memory: the shape of {file} is not known here; give model.shape"


def test_the_driver_of_the_graphics_card_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_bytes(2) is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 24564\n")
    program.chmod(0o755)
    assert os.access(program, os.X_OK)
    assert gpu_bytes(2) == 24564 << 20
    assert gpu_bytes(1) == 81559 << 20  # Ray was started with CUDA_VISIBLE_DEVICES, and has one
    assert gpu_bytes(0) is None
    monkeypatch.setattr("trainables.workers.granted_gpus._ASK_DRIVER_TIMEOUT_S", 0.1)
    program.write_text("#!/bin/sh\nwhile :; do :; done\n")
    assert gpu_bytes(2) is None
