"""PEFT, tried with 0.21."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, register_peft_method


def register_tuner(name: str, config: type[Any], model: type[Any]) -> Any:
    """Register a tuner of our own as PEFT's own are, and return its `PeftType`.

    Why: `register_peft_method` is public, but takes only names that the enumeration has, to which
    Python has no public way to add. Upstream: none.

    Args:
        name: in lower case, unlike all others of PEFT.
        config: the class of its configuration.
        model: the class that puts it on a base; its `prefix` begins the names of its parameters.
    """
    value = name.upper()
    member = str.__new__(PeftType, value)
    member._name_, member._value_ = value, value
    type.__setattr__(PeftType, value, member)
    PeftType._member_names_.append(value)
    PeftType._member_map_[value] = member
    PeftType._value2member_map_[value] = member
    register_peft_method(name=name, config_cls=config, model_cls=model, prefix=model.prefix)
    return member


@dataclass
class TunerConfig(PeftConfig):
    """Settings of every tuner.

    Attributes:
        target_modules, exclude_modules: as PEFT's own tuners read them.
    """

    target_modules: Any = None
    exclude_modules: Any = None

    def __post_init__(self) -> None:
        """Lists of names become sets, as PEFT expects."""
        super().__post_init__()
        for field in ("target_modules", "exclude_modules"):
            if isinstance(names := getattr(self, field), list):
                setattr(self, field, set(names))


class TunerLayer(torch.nn.Module, BaseTunerLayer):
    """A module of the base with adapters on it, of which several may have a name.

    Args:
        base_layer: the module.
    """

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Add a fresh adapter of that name.

        Raises:
            ValueError: the module cannot have one.
        """
        raise NotImplementedError

    def place(self, adapter_name: str, config: Any) -> None:
        """Move a new adapter to where the module is and train it if it is active.

        Why: as PEFT's own tuners do; what does it has no public name. Upstream: none.
        """
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def used_adapters(self, held: Any) -> list[str]:
        """The names of the adapters that are active and among those that are `held`."""
        if self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in held]


class Tuner(BaseTuner):
    """Puts the `tuner_layer_cls` on each target module; it cannot be merged.

    Why: the methods that PEFT has its tuners override have no public names. Upstream: none.
    """

    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self, config: Any, adapter_name: str, target: Any, target_name: str, parent: Any, **_: Any
    ) -> None:
        """Add an adapter to a target module, which keeps those that it has."""
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, config)
            return
        self.check_target(target)
        layer = self.tuner_layer_cls(target)
        layer.update_layer(adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """As PEFT does; back in its place, a module stays as it is, which may have no weight."""
        if isinstance(new_module, TunerLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    def check_target(self, target: Any) -> None:
        """Raises ValueError: the module cannot have an adapter."""

    def _check_merge_allowed(self) -> None:
        raise ValueError(f"{type(self).__name__} computes what no weights of the base can")
