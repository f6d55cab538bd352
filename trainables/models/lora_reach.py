"""How much of a base LoRA reaches: of experts only those that PEFT adapts."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import torch

from trainables.config import LoraConfig
from trainables.models.four_bit import count
from trainables.models.lora_adapter import adapt, text_decoder

_SMALL_SHARE = 0.5


def left_by_lora(base: Any) -> str | None:
    """A warning if LoRA on all linear layers leaves most of the base's layers unadapted.

    PEFT is asked, since it adapts the experts of only some architectures.
    """
    sizes = _parameters_of_layers(base)
    try:
        adapted = _adapted(base)
    except ValueError:  # it cannot adapt such a base: LoRA trials, if any, say why
        return None
    left = Counter[str]()
    for name, size in sizes.items():
        if name not in adapted:
            left[type(base.get_submodule(name.rpartition(".")[0])).__name__] += size
    share = 1 - left.total() / max(1, sum(sizes.values()))
    if share >= _SMALL_SHARE:
        return None
    return (
        f"LoRA on all linear layers adapts {share:.1%} of the parameters in the model's layers: "
        f"{left.most_common(1)[0][0]}, no linear layers, are left as they are"
    )


def _parameters_of_layers(base: Any) -> dict[str, int]:
    """The size of each parameter that text meets, but for embeddings and the output head."""
    head, decoder = base.get_output_embeddings(), text_decoder(base)
    return {
        f"{name}.{of_module}": count(parameter)
        for name, module in base.named_modules()
        if (decoder is None or name.startswith(f"{decoder}."))
        and not isinstance(module, torch.nn.Embedding)
        and module is not head
        for of_module, parameter in module.named_parameters(recurse=False)
    }


def _adapted(base: Any) -> set[str]:
    """Names of the parameters that get adapters, found on a copy that takes no memory.

    Raises:
        ValueError: PEFT has no adapters for this architecture.
    """
    with torch.device("meta"):
        hollow = type(base)(deepcopy(base.config))
        tuner = adapt(hollow, LoraConfig(rank=1, alpha=1)).base_model
    weights = {f"{name}.weight" for name in tuner.targeted_module_names}
    return weights | set(tuner.targeted_parameter_names)
