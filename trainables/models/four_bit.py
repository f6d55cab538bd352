"""A base whose linear layers are held in 4 bits (QLoRA, 2305.14314), by bitsandbytes.

Only a process with such a base loads that library.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Linear, Parameter
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D


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


def compute_in(base: Any, dtype: torch.dtype) -> None:
    """Have a base from files of 4 bits compute in a dtype, as one that was quantised on loading.

    Transformers leaves it in that of the files, which adapters in slots do not share.
    """
    of_files = base.dtype
    for module in base.modules():
        for parameter in module.parameters(recurse=False):
            if _is_packed(parameter):
                parameter.quant_state.dtype = module.compute_dtype = dtype
            elif parameter.dtype == of_files:  # some models keep others in fp32
                parameter.data = parameter.data.to(dtype)


def plain_weight(linear: torch.nn.Linear) -> torch.Tensor:
    """A linear layer's weight (O, I) as it computes with it; of 4 bits a copy in its dtype."""
    weight: Any = linear.weight
    if not _is_packed(weight):
        return linear.weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def plain_weights(base: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Each of the base's weights by its name, on the CPU in a dtype; those of 4 bits (O, I)."""
    return {
        f"{path}.{name}": (plain_weight(module) if _is_packed(weight) else weight.detach()).to(
            "cpu", dtype
        )
        for path, module in base.named_modules(remove_duplicate=False)
        for name, weight in module.named_parameters(recurse=False)
    }


def plain_model(base: Any, dtype: torch.dtype) -> Any:
    """The base itself on the CPU, its layers of 4 bits made the plain ones of its architecture.

    They are converted one by one, as a GPU that holds all in 4 bits may not hold all in 16.
    """
    for name, module in list(base.named_modules()):
        if _is_packed(getattr(module, "weight", None)):
            base.set_submodule(name, _plain_layer(module, dtype))
    base.hf_quantizer.remove_quantization_config(base)
    return base.cpu()


def _is_packed(weight: Any) -> bool:
    return getattr(weight, "quant_state", None) is not None


def _plain_layer(packed: Any, dtype: torch.dtype) -> Any:
    """The layer, on the CPU, that one of 4 bits was made from: GPT-2's have weights (I, O)."""
    weight_OI = plain_weight(packed).to("cpu", dtype)
    is_transposed = issubclass(packed.source_cls, Conv1D)
    with torch.device("meta"):
        if is_transposed:
            layer = Conv1D(packed.out_features, packed.in_features)
        else:
            layer = Linear(packed.in_features, packed.out_features, packed.bias is not None)
    layer.weight = Parameter(weight_OI.T.contiguous() if is_transposed else weight_OI)
    layer.bias = packed.bias
    return layer


def thaw(base: Any) -> None:
    """Have all parameters take gradients again, but those of 4 bits, which never did."""
    for parameter in base.parameters():
        parameter.requires_grad_(parameter.is_floating_point() and not _is_packed(parameter))
