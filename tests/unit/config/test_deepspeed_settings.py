"""A user's own DeepSpeed settings: what is refused before anything runs, and what is told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults import faults
from sweep_files import edited

from tune.config.deepspeed_settings import _KNOWN, faults_of_deepspeed
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_file import load_sweep
from tune.config.training_warnings import training_warnings

ZERO = {"zero_optimization": {"stage": 2}}
ADAMW = {"type": "AdamW", "params": {"lr": "auto"}}
ADAMW_ALONE = "must be AdamW, the optimizer that LoRA trials have"
BOTH_ALIKE = "must be left out, so that all methods have the same optimizer"


def sweep(tmp_path: Path, **deepspeed: Any) -> SweepConfig:
    file = tmp_path / "tiny.yaml"
    full = {"learning_rate": [1e-5]}
    file.write_text(edited(search__full=full, deepspeed=deepspeed), encoding="utf-8")
    return load_sweep(str(file), [])


def told(tmp_path: Path, own: dict[str, Any]) -> list[str]:
    return [str(fault) for fault in faults_of_deepspeed(sweep(tmp_path, config=own))]


@pytest.mark.parametrize("key", ["bf16", "fp16", "optimizer", "torch_autocast", "data_types"])
@pytest.mark.parametrize(("value", "shown"), [(True, "true"), ([2], "[2]"), ("AdamW", "'AdamW'")])
def test_a_section_that_is_none_is_refused(
    key: str, value: Any, shown: str, tmp_path: Path
) -> None:
    """Else every full trial fails, such as by `'bool' object has no attribute 'setdefault'`."""
    assert told(tmp_path, ZERO | {key: value}) == [
        f"deepspeed.config.{key}: must be a section with keys of its own, got {shown}; "
        "fill it in or leave it out"
    ]


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_a_device_in_place_of_its_section_is_refused(key: str, tmp_path: Path) -> None:
    """Else every full trial fails by `'str' object has no attribute 'get'`."""
    own = {"zero_optimization": {"stage": 3, key: "cpu"}}
    assert told(tmp_path, own) == [
        f"deepspeed.config.zero_optimization.{key}: must be a section with keys of its own, "
        "got 'cpu'; fill it in or leave it out"
    ]


@pytest.mark.parametrize(
    ("own", "fault"),
    [
        ({}, ": is required and absent; such as {stage: 2}"),
        ({"zero_optimization": None}, ": is required and absent; such as {stage: 2}"),
        (
            {"zero_optimization": True},
            ": must be a section with keys of its own, got true; such",
        ),
        ({"zero_optimization": {}}, ".stage: must be 0, 1, 2 or 3, got null"),
        ({"zero_optimization": {"stage": 5}}, ".stage: must be 0, 1, 2 or 3, got 5"),
        ({"zero_optimization": {"stage": "3"}}, ".stage: must be 0, 1, 2 or 3, got '3'"),
        ({"zero_optimization": {"stage": True}}, ".stage: must be 0, 1, 2 or 3, got true"),
        ({"zero_optimization": {"stage": "auto"}}, ".stage: must be 0, 1, 2 or 3, got 'auto'"),
    ],
)
def test_a_stage_of_zero_s_is_required(own: dict[str, Any], fault: str, tmp_path: Path) -> None:
    (found,) = told(tmp_path, own)
    assert found.startswith(f"deepspeed.config.zero_optimization{fault}")


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        ("gradient_cliping", "did you mean gradient_clipping?"),
        ("bfloat16", "did you mean bf16?"),
        ("elasticity", "leave it out"),  # DeepSpeed has removed it
    ],
)
def test_a_key_that_deepspeed_would_pass_over_is_refused(
    written: str, remedy: str, tmp_path: Path
) -> None:
    line = f"deepspeed.config.{written}: is no key of DeepSpeed's; {remedy}"
    assert told(tmp_path, ZERO | {written: {"enabled": True}}) == [line]


def test_a_misspelt_section_is_not_told_to_be_absent_too(tmp_path: Path) -> None:
    assert told(tmp_path, {"zero_optimisation": {"stage": 2}}) == [
        "deepspeed.config.zero_optimisation: is no key of DeepSpeed's; "
        "did you mean zero_optimization?"
    ]


def test_recomputing_activations_is_left_to_the_trainer(tmp_path: Path) -> None:
    assert told(tmp_path, ZERO | {"activation_checkpointing": {"number_checkpoints": 4}}) == [
        "deepspeed.config.activation_checkpointing: has no effect, as Transformers does not use "
        "it; leave it out; set train.gradient_checkpointing"
    ]


def test_a_key_to_a_service_is_refused_and_not_told(tmp_path: Path) -> None:
    """The sweep records its configuration as it is, and sends it to W&B."""
    assert told(tmp_path, ZERO | {"comet": {"enabled": True, "api_key": "hidden"}}) == [
        "deepspeed.config.comet.api_key: must be left out, as the sweep would record it and send "
        "it to W&B; export COMET_API_KEY in place of it"
    ]
    for monitor in ("comet", "csv_monitor", "tensorboard", "wandb"):
        assert told(tmp_path, ZERO | {monitor: {"enabled": True}}) == []


def test_every_key_that_deepspeed_reads_is_known() -> None:
    """All that its configuration looks up, in a dictionary that notes what it is asked for."""
    from deepspeed.runtime import config

    asked = set()

    class Noting(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.add(key)
            return super().get(key, default)

        def keys(self) -> Any:
            return self

        def __contains__(self, key: object) -> bool:
            asked.add(str(key))
            return super().__contains__(key)

        def __getitem__(self, key: str) -> Any:
            asked.add(key)
            return super().__getitem__(key)

        def __copy__(self) -> Noting:
            return self

    config.DeepSpeedConfig(Noting(train_batch_size=1))
    left = {"activation_checkpointing", "bfloat16"}  # one has no effect, the other an older name
    known, removed = {*_KNOWN}, {*config._REMOVED_TOP_LEVEL_CONFIG_KEYS}
    assert asked - removed - left <= known
    # Of these `deepspeed.initialize` asks.
    assert known - asked <= {"data_parallel_size", "sequence_parallel_size"}


@pytest.mark.parametrize(
    ("optimizer", "faults"),
    [
        (ADAMW, []),
        ({"type": "adam"}, []),
        ({"type": "AdamW", "params": None}, []),
        ({"type": "AdamW", "params": {"torch_adam": True, "adam_w_mode": True}}, []),
        (
            {"params": {"lr": "auto"}},
            [f".type: {ADAMW_ALONE}, got null; write that, or leave the optimizer out"],
        ),
        ({"type": "Muon"}, [f".type: {ADAMW_ALONE}, got 'Muon'; write that, or leave"]),
        ({"type": "auto"}, [f".type: {ADAMW_ALONE}, got 'auto'; write that, or leave"]),
        (
            {"type": "AdamW", "params": [1]},
            [".params: must be a section with keys of its own, got [1]; fill it in or leave it"],
        ),
        (
            {"type": "AdamW", "params": {"maximize": True}},
            [f".params.maximize: {BOTH_ALIKE}, got true; known: lr, betas, eps, weight_decay, "],
        ),
        (
            {"type": "AdamW", "params": {"bias_correction": False}},
            [f".params.bias_correction: {BOTH_ALIKE}, got false; known: lr, "],
        ),
        (
            {"type": "AdamW", "params": {"weight_decy": 0.1}},
            [f".params.weight_decy: {BOTH_ALIKE}, got 0.1; did you mean weight_decay?"],
        ),
        (
            {"type": "AdamW", "parms": {"eps": 0.1}},
            [f".parms: {BOTH_ALIKE}, got {{eps: 0.1}}; did you mean params?"],
        ),
    ],
    ids=str,
)
def test_an_optimizer_is_adamw_and_has_nothing_that_lora_s_lacks(
    optimizer: dict[str, Any], faults: list[str], tmp_path: Path
) -> None:
    found = told(tmp_path, ZERO | {"optimizer": optimizer})
    starts = [f"deepspeed.config.optimizer{fault}" for fault in faults]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


def test_a_section_that_is_null_is_left_out(tmp_path: Path) -> None:
    absent = dict.fromkeys(("bf16", "fp16", "optimizer", "scheduler", "gradient_clipping", "wandb"))
    assert told(tmp_path, ZERO | absent) == []


def test_a_file_in_place_of_its_content_is_told_where_to_be_named(tmp_path: Path) -> None:
    (fault,) = faults(sweep, tmp_path, config="zero.json")
    assert fault.field == "deepspeed.config"
    assert fault.remedy == "name a file in deepspeed.config_file"


def test_sharding_that_own_settings_replace_is_told_of(tmp_path: Path) -> None:
    assert [*training_warnings(sweep(tmp_path, config=ZERO), None)] == []
    beside = sweep(tmp_path, config=ZERO, zero_stage=3, offload_optimizer=True)
    assert [*training_warnings(beside, None)] == [
        f"deepspeed.{key} is {given}, which has no effect beside deepspeed.config: leave one "
        "of them out"
        for key, given in (("zero_stage", "3"), ("offload_optimizer", "true"))
    ]
