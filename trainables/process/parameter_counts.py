"""How many parameters a decoder of a shape has, and an adapter on it."""

from __future__ import annotations

from trainables.config import LoraConfig, ModelShape


def parameters(shape: ModelShape) -> int:
    """Number of parameters of a decoder with gated MLPs; tied weights count once."""
    norms = 2 * shape.hidden + (2 * shape.head_size if shape.normed_heads else 0)
    per_layer = sum(linear_weights(shape)) + norms
    if shape.attention_bias:
        per_layer += (shape.heads + 2 * shape.kv_heads) * shape.head_size
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied_embeddings else 2)
    return shape.layers * per_layer + embeddings + shape.hidden


def adapter_parameters(shape: ModelShape, lora: LoraConfig) -> int:
    """Adapter parameters: r (in + out) per adapted linear layer."""
    adapted = [linear_sizes(shape)[name] for name in adapted_linears(shape, lora)]
    return shape.layers * lora.rank * sum(rows + columns for rows, columns in adapted)


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


def adapted_linears(shape: ModelShape, lora: LoraConfig) -> list[str]:
    """The linear layers of a block that LoRA is on; PEFT also takes names such as `mlp.up_proj`."""
    if lora.target_modules == "all-linear":
        return list(linear_sizes(shape))
    last_parts = {module.rpartition(".")[2] for module in lora.target_modules}
    return [name for name in linear_sizes(shape) if name in last_parts]
