"""A base whose linear layers are held in 4 bits (QLoRA, 2305.14314), by bitsandbytes.

Only a process with such a base loads that library.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig


def quantisation(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What Transformers is to load with: NF4, its constants in 8 bits, computing in a dtype."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_trainable(base: Any) -> None:
    """Keep bitsandbytes from arranging weights anew when they first evaluate on a CPU.

    It does that for processors with bfloat16 products, which have no backward pass, and round fp32.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def plain_weight(linear: torch.nn.Linear) -> torch.Tensor:
    """A linear layer's weight (O, I) as it computes with it; of 4 bits a copy in its dtype."""
    state = getattr(linear.weight, "quant_state", None)
    if state is None:
        return linear.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(linear.weight.data, state)


def thaw(base: Any) -> None:
    """Have all parameters take gradients again, but those of 4 bits, which never did."""
    for parameter in base.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
