"""Chats that print today's date print the same one on every day."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from trainables.data.chat_template import prompt_text
from trainables.data.chats import Example
from trainables.evaluation.harness_model import HarnessModel, Layouts
from trainables.models.loading import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tune.config.sweep_config import SweepConfig


DATED = (
    "Today is {{ strftime_now('%d %b %Y') }}. {{ messages[0].content }}"
    "{% if add_generation_prompt %} Answer:{% endif %}"
)


@pytest.fixture
def dated(sweep_config: SweepConfig) -> Any:
    tokenizer = load_tokenizer(sweep_config.model)
    tokenizer.chat_template = DATED
    return tokenizer


def test_training_and_evaluation_are_of_the_same_day(
    dated: Any, base_model: Any, load: Callable[..., SweepConfig]
) -> None:
    data = load("data.chat_template=true").data
    expected = "Today is 26 Jul 2024. max 4 7 Answer:"
    assert f"{datetime.now():%d %b %Y}" not in expected
    assert prompt_text(dated, data, Example("max 4 7", "7")) == expected
    turns = [{"role": "user", "content": "max 4 7"}]
    assert HarnessModel(base_model, dated, 4, Layouts()).apply_chat_template(turns) == expected
