"""A chat template of the user's own, for a base that has none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from transformers import AutoTokenizer

from analysis.export.weights import _write_weights, merge_adapter
from trainables.config import ModelConfig
from trainables.training.lora import train_lora
from trainables.training.reporter import ListReporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from trainables.config import TrialConfig
    from tune.config.sweep_config import SweepConfig

TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }} : {{ turn.content }} {{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture
def own(sweep_config: SweepConfig, tmp_path: Path) -> Callable[..., ModelConfig]:
    def own(text: str = TEMPLATE, name: str = "chat.jinja") -> ModelConfig:
        (tmp_path / name).write_text(text)
        return sweep_config.model.model_copy(update={"chat_template": str(tmp_path / name)})

    return own


def test_what_was_trained_with_it_is_exported_with_it_wherever_it_is(
    own: Callable[..., ModelConfig], make_trial: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    trial = make_trial(model=own().model_dump(), train={"steps": 1})
    result = train_lora(trial, ListReporter())
    (tmp_path / "chat.jinja").unlink()
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    adapter.mkdir()
    _write_weights("adapter", trial.model, {}, Path(result.weights_dir), adapter)
    merge_adapter(trial.model, Path(result.weights_dir), merged)
    for folder in (adapter, merged):
        assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
