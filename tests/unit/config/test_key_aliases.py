"""Keys that users of Axolotl, LLaMA-Factory or TRL bring along lead to what is meant here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from sweep_files import edited, faults

from tune.cli import main
from tune.config.key_aliases import REMEDIES, SAME_MEANING
from tune.config.sweep_config import SweepConfig

NOT_HERE = "not available here"
EITHER_RATE = "did you mean search.lora.learning_rate or search.full.learning_rate?"
ADAPTER_ALONE = f"{NOT_HERE}: LoRA trains its adapter alone, search.full all parameters"
ONE_SAMPLE = f"{NOT_HERE}: each sample is a sequence of its own"
ANSWERS_ALONE = (
    "none needed: of prompt and completion, or messages, answers alone are learned; data.answers "
    "says which of a chat's"
)
ACCUMULATED = (
    "set train.batch_size, the samples of a step over all workers; it is accumulated from passes "
    "of train.micro_batch_size"
)
LED = {
    "micro_batch_size": "did you mean train.micro_batch_size?",
    "max_grad_norm": "did you mean train.max_grad_norm?",
    "gradient_checkpointing": "did you mean train.gradient_checkpointing?",
    "learning_rate": EITHER_RATE,
    "load_in_4bit": "did you mean model.load_in_4bit?",
    "chat_template": "did you mean model.chat_template, data.chat_template, eval.chat_template or "
    "data.replay.chat_template?",
    "adapter": "none needed: search.lora trains LoRA, search.full all parameters",
    "base_model": "did you mean model.name?",
    "num_epochs": "did you mean train.epochs?",
    "lora_alpha": "did you mean search.lora.alpha or search.lora.alpha_ratio?",
    "datasets": "did you mean data?",
    "gradient_accumulation_steps": ACCUMULATED,
    "lora_modules_to_save": ADAPTER_ALONE,
    "warmup_ratio": "did you mean train.warmup?",
    "train_on_inputs": ANSWERS_ALONE,
    "sample_packing": ONE_SAMPLE,
    "output_dir": "give the folder as the option --output-dir",
    "resume_from_checkpoint": "none needed: the same command again goes on where it stopped",
    "data.sample_packing": ONE_SAMPLE,
    "data.cutoff_len": "did you mean max_length?",
    "data.conversations": "did you mean messages?",
    "data.instruction": "did you mean prompt?",
    "data.val_set_size": "did you mean validation_fraction?",
    "data.sequence_len": "did you mean max_length?",
    "data.train_on_inputs": ANSWERS_ALONE,
    "data.name": "did you mean subset?",
    "data.replay.conversations": "did you mean messages?",
    "train.gradient_accumulation_steps": ACCUMULATED,
    "train.max_length": "did you mean data.max_length?",
    "train.max_seq_length": "did you mean data.max_length?",
    "train.learning_rate": EITHER_RATE,
    "train.num_train_epochs": "did you mean epochs?",
    "train.per_device_train_batch_size": "did you mean micro_batch_size?",
    "train.warmup_steps": "set train.warmup, a share of the steps",
    "train.bf16": "did you mean model.dtype?",
    "train.run_name": "did you mean name at the top level?",
    "search.lora.lora_r": "did you mean rank?",
    "search.lora.r": "did you mean rank?",
    "search.lora.lora_alpha": "did you mean alpha or alpha_ratio?",
    "search.lora.lr": "did you mean learning_rate?",
    "search.lora.loraplus_lr_ratio": NOT_HERE,
    "search.full.num_epochs": "did you mean train.epochs?",
    "search.first.0.r": "did you mean rank?",
    "model.base_model": "did you mean name?",
    "model.model_name_or_path": "did you mean name?",
    "model.path": "did you mean name?",
    "evaluation": "did you mean eval?",
    "enable_thinking": "did you mean model.chat_template_args?",
    "stage": "none needed: every trial is supervised fine-tuning, evaluated as train.report_every "
    "says",
    "lora_bias": ADAPTER_ALONE,
    "eval_packing": ONE_SAMPLE,
    "use_cache": "none needed: training caches no keys and values",
    "train.eval_on_start": "none needed: the base is evaluated before any trial",
}


@pytest.mark.parametrize("key", LED)
def test_a_peer_s_key_leads_to_what_means_the_same(key: str, tmp_path: Path) -> None:
    sections = {"data__replay": {"path": "general.jsonl", "share": 0.1}, "search__first": [{}]}
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(search__full={"learning_rate": 1e-5}, **sections))
    [fault] = faults(file, f"{key}=1")
    assert (fault.field, fault.rule, fault.remedy) == (key, "unknown key", LED[key])


@pytest.mark.parametrize("key", ["strict", "debug", "loftq_config", "label_names"])
def test_a_key_without_counterpart_leads_to_none_that_only_sounds_like_it(
    key: str, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited())
    [fault] = faults(file, f"{key}=1")
    assert fault.remedy.startswith("known: ")


def test_what_is_meant_is_not_missed_as_well(tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(model={"base_model": "some/model"}, search__lora__rank=...))
    found = faults(file, "search.lora.r=8")
    assert [fault.field for fault in found] == ["model.base_model", "search.lora.r"]


def is_known(key: str) -> bool:
    """Whether a sweep file has a key, by what its models say of one that holds no known value."""
    parts = tuple(key.split("."))
    value: object = object()
    for part in reversed(parts):
        value = {part: value}
    with pytest.raises(ValidationError) as refused:
        SweepConfig.model_validate(value)
    errors = refused.value.errors()
    no_section = {error["loc"] for error in errors} & {parts[:n] for n in range(len(parts))}
    return not no_section and all(error["type"] != "extra_forbidden" for error in errors)


def test_what_is_no_key_is_not_known() -> None:
    assert is_known("train.steps")
    assert is_known("search.lora.learning_rate")
    assert not any(map(is_known, ("trian", "train.step", "model.name.a", "wandb.tags.a")))


def test_all_that_is_named_instead_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    words = " ".join(REMEDIES.values())
    named = {
        *re.findall(r"[a-z_]+(?:\.\w+)+", words),
        *(k for ks in SAME_MEANING.values() for k in ks),
    }
    assert {"train.batch_size", "data.answers", "search.lora.rank"} <= named
    assert {key for key in named if not is_known(key)} == set()
    assert {*re.findall(r"--[a-z-]+", words)} <= options


def test_no_name_of_a_peer_hides_a_key() -> None:
    assert not SAME_MEANING.keys() & REMEDIES.keys()
    keys = [key for key in (*SAME_MEANING, *REMEDIES) if is_known(key)]
    assert keys == []
    places = ("model", "data", "data.replay", "eval", "search", "search.lora", "search.full")
    bare = [key for key in (*SAME_MEANING, *REMEDIES) if "." not in key]
    sections = (*places, "train", "deepspeed", "budget", "early_stopping", "confirm", "wandb")
    assert [(s, key) for s in sections for key in bare if is_known(f"{s}.{key}")] == []
