"""An adapter on the base that a process shares, put on and removed again.

Shapes: I inputs, O outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Self

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

import trainables.tuners  # noqa: F401 (PEFT then loads them)
from trainables.compat.torch import leave_to_each_worker, remove_forward_hooks, writes
from trainables.errors import Fault, UserError
from trainables.methods import Method
from trainables.models.adapter_start import Samples, start_layers
from trainables.models.four_bit import thaw


class Adapted:
    """A base with an adapter on it, until `remove`.

    Args:
        base: left with no adapter if this fails.
        method: makes a fresh adapter, for a training of so many `steps`.
        samples: from which it starts, if it `starts_from` any.

    Attributes:
        model: PEFT's model of the base.
    """

    def __init__(
        self, base: Any, method: Method, steps: int, samples: Samples | None = None
    ) -> None:
        self._base = base
        self._before = _fingerprint(base)
        of_base = {id(tensor) for tensor in _tensors(base).values()}
        self.model = _make(base, method, steps)
        tuned = [each for each in self.model.modules() if isinstance(each, BaseTunerLayer)]
        layers = [(layer, layer.get_base_layer()) for layer in tuned]
        try:
            start_layers(self.without, layers, method, samples)
        except Exception:
            self.remove()
            raise
        tensors = _tensors(self.model).items()
        frozen = [name for name, t in tensors if id(t) in of_base and not t.requires_grad]
        leave_to_each_worker(self.model, frozen)

    @classmethod
    def saved(cls, base: Any, folder: Path) -> Self:
        """A base with the adapter that a folder holds."""
        adapted = cls.__new__(cls)
        adapted._base, adapted._before = base, _fingerprint(base)
        adapted.model = peft.PeftModel.from_pretrained(base, str(folder.absolute()))
        return adapted

    def without(self) -> AbstractContextManager[Any]:
        """The base alone while the context lasts; what is trainable is as before after it."""
        return without_adapter(self.model)

    def remove(self) -> bool:
        """Remove the adapter, whatever happened; returns whether the base is unchanged.

        That is shown by the place of each tensor in memory and torch's count of writes to it.
        """
        self.model.unload()
        _clean(self._base)
        return _fingerprint(self._base) == self._before


@contextmanager
def without_adapter(model: Any) -> Iterator[Any]:
    """PEFT's model as its base alone while the context lasts.

    PEFT would have everything of an adapter take gradients again, also what is frozen.
    """
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with model.disable_adapter():
            yield model
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def _tensors(model: Any) -> dict[str, Any]:
    """Parameters and buffers by name."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _fingerprint(base: Any) -> dict[str, tuple[int, int]]:
    """Place in memory and version of each of the base's tensors that is saved, by its name."""
    saved = base.state_dict().keys()  # what it has beside them, in 4 bits, is made by each call
    return {
        name: (tensor.data_ptr(), writes(tensor))
        for name, tensor in _tensors(base).items()
        if name in saved
    }


def _make(base: Any, method: Method, steps: int) -> Any:
    """PEFT's model of a base with a fresh adapter.

    PEFT adapts layer by layer; where it fails, or finds no memory, the base is as before.

    Raises:
        UserError: the base has some of the target modules but not others, which PEFT passes over.
        ValueError: PEFT refuses, for example dropout on experts.
    """
    config = method.peft_config(steps)
    are_named = isinstance(method.modules, tuple)  # PEFT writes the names into it
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
        adapted.unload()
        _clean(base)
        rule = f"the model has no {', '.join(absent)}"
        remedy = f"it has {', '.join(linear_layers(base))}"
        raise UserError([Fault("target_modules", rule, remedy)])
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and not method.is_trained(name):
            parameter.requires_grad_(False)
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
