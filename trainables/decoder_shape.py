"""The sizes of a decoder, its linear layers, and how many parameters it has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainables.frozen import Frozen


class ModelShape(Frozen):
    """The sizes of a decoder with gated MLPs, such as Llama, Mistral or Qwen.

    Attributes:
        hidden, intermediate, vocabulary, layers, heads: as in the model's `config.json`.
        kv_heads, head_size: number of key and value heads, and dimension of one head.
        tied_embeddings: whether input and output embedding share their weights.
        attention_bias: whether query, key and value have a bias.
        normed_heads: whether queries and keys are normalised head by head, as in Qwen3.
    """

    hidden: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    tied_embeddings: bool = False
    attention_bias: bool = False
    normed_heads: bool = False


def parameters(shape: ModelShape) -> int:
    """Number of parameters of a decoder with gated MLPs; tied weights count once."""
    norms = 2 * shape.hidden + (2 * shape.head_size if shape.normed_heads else 0)
    per_layer = sum(linear_weights(shape)) + norms
    if shape.attention_bias:
        per_layer += (shape.heads + 2 * shape.kv_heads) * shape.head_size
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied_embeddings else 2)
    return shape.layers * per_layer + embeddings + shape.hidden


def linear_sizes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Output and input size of each linear layer of a block, by its name for PEFT."""
    heads, kv_heads = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return {
        "q_proj": (heads, shape.hidden),
        "k_proj": (kv_heads, shape.hidden),
        "v_proj": (kv_heads, shape.hidden),
        "o_proj": (shape.hidden, heads),
        "gate_proj": (shape.intermediate, shape.hidden),
        "up_proj": (shape.intermediate, shape.hidden),
        "down_proj": (shape.hidden, shape.intermediate),
    }


def linear_weights(shape: ModelShape) -> list[int]:
    """How many weights each linear layer of a block has."""
    return [rows * columns for rows, columns in linear_sizes(shape).values()]


def adapted_linears(
    shape: ModelShape, modules: Literal["all-linear"] | tuple[str, ...]
) -> list[str]:
    """The linear layers of a block by these names; PEFT also takes `mlp.up_proj` and the like."""
    if modules == "all-linear":
        return list(linear_sizes(shape))
    last_parts = {module.rpartition(".")[2] for module in modules}
    return [name for name in linear_sizes(shape) if name in last_parts]
