"""Samples longer than the texts a model was made for are told of, where it reads them still."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from trainables.data.dataset import TokenizedData
from trainables.evaluation.positions import length_warnings


def told(lengths: tuple[int, ...], kind: str = "llama", **fields: Any) -> list[str]:
    """Of samples of these lengths, the last of which is held out."""
    base = SimpleNamespace(config=AutoConfig.for_model(kind, **fields))
    samples: list[Any] = [{"input_ids": [0] * length} for length in lengths]
    return length_warnings(base, TokenizedData(samples[:-1], samples[-1:], 0, []))


def test_they_are_counted() -> None:
    fields: dict[str, Any] = {"max_position_embeddings": 512}
    assert told((512, 100, 1), **fields) == []
    assert told((513, 512, 1, 600), **fields) == [
        "2 of 4 samples are longer than the 512 tokens that the model was made for, up to 600: "
        "data.max_length: 512 keeps to them"
    ]


@pytest.mark.parametrize(
    ("rope", "made_for"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 2.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_scaled_positions_reach_further(rope: dict[str, Any], made_for: int) -> None:
    parameters = {"rope_theta": 1e4, **rope}
    fields: dict[str, Any] = {"max_position_embeddings": 512, "rope_parameters": parameters}
    assert told((made_for, 1), **fields) == []
    (text,) = told((made_for + 1, 1), **fields)
    assert f"longer than the {made_for} tokens" in text


def test_positions_of_each_type_of_layers_and_of_the_text_alone() -> None:
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": scaled,
    }
    text = {"max_position_embeddings": 512, "rope_parameters": rope}
    assert told((1024, 1), "gemma3", text_config=text) == []
    assert told((1025, 1), "gemma3", text_config=text)


def test_nothing_is_told_of_a_model_that_states_no_length() -> None:
    assert told((10_000, 1), "mamba") == []
    assert told((10_000, 1), "bloom") == []
