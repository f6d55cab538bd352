"""Keys that users of Axolotl, LLaMA-Factory or TRL write lead to the key that means the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from sweep_files import edited, faults

from tune.config.key_aliases import ANY_RECIPE, REMEDIES, SAME_MEANING
from tune.config.sweep_config import SweepConfig

REMEDY = {
    "base_model": "did you mean model.name?",
    "lora_alpha": "did you mean search.lora.alpha or search.lora.alpha_ratio?",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "output_dir": "--output-dir",
    "data.sample_packing": "not available here",
    "train.max_length": "did you mean data.max_length?",
    "search.lora.r": "did you mean rank?",
    "model.path": "did you mean name?",
    "strict": "known: ",  # and no key that only sounds like it
}


@pytest.mark.parametrize("key", REMEDY)
def test_a_key_of_another_tool_leads_to_ours(key: str, tmp_path: Path) -> None:
    sections = {"data__replay": {"path": "general.jsonl", "share": 0.1}}
    file = tmp_path / "tiny.yaml"
    file.write_text(edited(search__full={"learning_rate": 1e-5}, **sections))
    [fault] = faults(file, f"{key}=1")
    assert (fault.field, fault.rule) == (key, "unknown key")
    assert REMEDY[key] in fault.remedy


def is_known(key: str) -> bool:
    """Whether a sweep file may hold the key."""
    parts = tuple(key.replace(ANY_RECIPE, "lora").split("."))
    value: object = object()
    for part in reversed(parts):
        value = {part: value}
    with pytest.raises(ValidationError) as refused:
        SweepConfig.model_validate(value)
    errors = refused.value.errors()
    no_section = {error["loc"] for error in errors} & {parts[:n] for n in range(len(parts))}
    return not no_section and all(error["type"] != "extra_forbidden" for error in errors)


def test_every_key_that_is_suggested_exists_and_none_is_hidden() -> None:
    assert is_known("search.lora.learning_rate")
    assert not is_known("train.step")
    suggested = {key for keys in SAME_MEANING.values() for key in keys}
    suggested |= {*re.findall(r"[a-z_]+(?:\.\w+)+", " ".join(REMEDIES.values()))}
    assert {key for key in suggested if not is_known(key)} == set()
    aliases = [*SAME_MEANING, *REMEDIES]
    assert len(aliases) == len(set(aliases))
    sections = ("data.", "train.", "search.lora.", "search.full.", "model.", "eval.", "")
    bare = [key for key in aliases if "." not in key]
    assert [section + key for section in sections for key in bare if is_known(section + key)] == []
