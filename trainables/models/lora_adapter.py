"""PEFT's adapter on the base that a process shares, put on and removed again.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

import re
from typing import Any

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

from trainables.compat.torch import remove_forward_hooks
from trainables.config import LoraConfig
from trainables.errors import Fault, UserError
from trainables.models.four_bit import thaw


def adapt(base: Any, lora: LoraConfig | None) -> Any:
    """PEFT's model of this process's base with a fresh adapter, which `restore` removes.

    PEFT adapts layer by layer; where it fails, or finds no memory, the base is as before.

    Raises:
        UserError: the base has some of the target modules but not others, which PEFT passes over.
        ValueError: PEFT refuses, for example dropout on experts.
    """
    config = peft_config(lora)
    are_named = config.target_modules != "all-linear"  # PEFT writes the names into it
    if decoder := text_decoder(base):  # text does not pass through the rest
        config.exclude_modules = rf"(?!{re.escape(decoder)}\.).*"
    try:
        adapted = peft.get_peft_model(base, config)
    except Exception:
        # As `unload` does for a whole, put the adapted layers back, what is within another first.
        for name, module in reversed(list(base.named_modules())):
            if isinstance(module, BaseTunerLayer):
                base.set_submodule(name, module.base_layer)
        _clean(base)
        raise
    if are_named and (absent := _absent_targets(adapted)):
        restore(base, adapted)
        rule = f"the model has no {', '.join(absent)}"
        remedy = f"it has {', '.join(linear_layers(base))}"
        raise UserError([Fault("search.lora.target_modules", rule, remedy)])
    return adapted


def _absent_targets(adapted: Any) -> list[str]:
    """The target modules that no adapted layer is named by."""
    wanted = adapted.peft_config["default"].target_modules  # experts' have other names there
    names = [f".{name}" for name in adapted.base_model.targeted_module_names]
    return sorted(name for name in wanted if not any(n.endswith(f".{name}") for n in names))


def text_decoder(base: Any) -> str | None:
    """The name of the part that reads text in a model that also takes images or sound.

    None if there is nothing else.
    """
    if base.config.get_text_config() is base.config:
        return None
    decoder = base.get_decoder()
    return next(name for name, module in base.named_modules() if module is decoder) or None


def linear_layers(base: Any) -> list[str]:
    """The names, each once, of the base's linear layers that LoRA can adapt."""
    head, decoder = base.get_output_embeddings(), text_decoder(base) or ""
    linear = (
        name
        for name, module in base.named_modules()
        if isinstance(module, (Linear, Conv1D)) and module is not head and name.startswith(decoder)
    )
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear))


def peft_config(lora: LoraConfig | None) -> peft.LoraConfig:
    """The adapter as PEFT's configuration."""
    assert lora is not None  # noqa: S101 - TrialConfig sees to it
    modules = lora.target_modules
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=modules if isinstance(modules, str) else list(modules),
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )


def restore(base: Any, adapted: Any) -> None:
    """Remove the adapter from the shared base, whatever happened."""
    adapted.unload()
    _clean(base)


def _clean(base: Any) -> None:
    """Undo what adapting and training leave in a base beside its adapted layers."""
    # PEFT leaves its configuration; TRL its fused head, wrapped around it once more at every trial.
    for name in ("peft_config", "forward", "model_tags"):
        vars(base).pop(name, None)
    base.gradient_checkpointing_disable()
    base.disable_input_require_grads()
    remove_forward_hooks(base.get_input_embeddings())
    thaw(base)
    base.zero_grad(set_to_none=True)
