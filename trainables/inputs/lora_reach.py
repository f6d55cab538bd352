"""What LoRA reaches of a base: no encoder of images, and experts only where PEFT adapts them.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

import re
from collections import Counter
from copy import deepcopy
from typing import Any

import peft
import torch

from trainables.inputs.four_bits import count

_SMALL_SHARE = 0.5


def text_decoder(base: Any) -> str | None:
    """The name of the part that reads text in a model that also takes images or sound.

    None if there is nothing else.
    """
    if base.config.get_text_config() is base.config:
        return None
    decoder = base.get_decoder()
    return next(name for name, module in base.named_modules() if module is decoder) or None


def unadapted(base: Any) -> str | None:
    """PEFT's `exclude_modules`, as a regular expression; None if it may adapt all linear layers.

    They are those that text does not pass through, and those that are linear by their class alone,
    such as some mixtures' routers, whose output is several tensors.
    """
    decoder = text_decoder(base)
    left = [] if decoder is None else [rf"(?!{re.escape(decoder)}\.).*"]
    classes: dict[type, bool] = {torch.nn.Linear: True}
    for name, module in base.named_modules():
        if isinstance(module, torch.nn.Linear):
            kind = type(module)
            if kind not in classes:
                classes[kind] = _works_as_linear(module, base.dtype)
            left += [] if classes[kind] else [re.escape(name)]
    return "|".join(left) or None


@torch.no_grad()
def _works_as_linear(module: torch.nn.Linear, dtype: torch.dtype) -> bool:
    weight = module.weight
    dtype = weight.dtype if weight.is_floating_point() else dtype  # of 4 bits it is in bytes
    x_1I = torch.zeros(1, module.in_features, dtype=dtype, device=weight.device)
    try:
        with torch.random.fork_rng():
            y_1O = module(x_1I)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False
    return isinstance(y_1O, torch.Tensor) and y_1O.shape == (1, module.out_features)


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
        lora = peft.LoraConfig(
            r=1,
            target_modules="all-linear",
            exclude_modules=unadapted(hollow),
            task_type="CAUSAL_LM",
        )
        tuner = peft.get_peft_model(hollow, lora).base_model
    weights = {f"{name}.weight" for name in tuner.targeted_module_names}
    return weights | set(tuner.targeted_parameter_names)
