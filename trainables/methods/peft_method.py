"""Any method that PEFT has, by its configuration class and a map of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from trainables.decoder_shape import ModelShape, adapted_linears, linear_sizes
from trainables.methods.base import Method, Modules


class PeftAdapter(Method):
    """A method of PEFT.

    Attributes:
        peft_class: name of PEFT's configuration class.
        peft_fields: PEFT's name of each field that it takes; those not named are not passed on.
        peft_options: constants for PEFT.
        divides: by field, what it must divide of each adapted layer: `inputs`, `outputs` or `both`.
    """

    peft_class: ClassVar[str]
    peft_fields: ClassVar[Mapping[str, str]] = {}
    peft_options: ClassVar[Mapping[str, Any]] = {}
    divides: ClassVar[Mapping[str, Sides]] = {}

    def options(self, steps: int) -> dict[str, Any]:
        """The settings by PEFT's names, for a training of so many optimizer steps."""
        fields = {theirs: getattr(self, ours) for ours, theirs in self.peft_fields.items()}
        return {**fields, **self.peft_options}

    def peft_config(self, steps: int) -> Any:
        """The adapter as PEFT's configuration, for a training of so many optimizer steps."""
        import peft

        return getattr(peft, self.peft_class)(task_type="CAUSAL_LM", **self.options(steps))


Sides = Literal["inputs", "outputs", "both"]


class PeftMethod(PeftAdapter):
    """A method of PEFT on the linear layers of a decoder."""

    target_modules: Modules = "all-linear"

    def options(self, steps: int) -> dict[str, Any]:
        """With the layers."""
        modules = self.target_modules
        chosen = modules if isinstance(modules, str) else list(modules)
        return {"target_modules": chosen, **super().options(steps)}

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """Number of trained parameters on a linear layer (O, I)."""
        raise NotImplementedError

    def frozen_layer_parameters(self, outputs: int, inputs: int) -> int:
        """Numbers kept for a layer (O, I) without training them."""
        return 0

    def parameters(self, shape: ModelShape) -> int:
        """Those of all adapted layers."""
        return shape.layers * sum(self.layer_parameters(*size) for size in self._sizes(shape))

    def misfit(self, shape: ModelShape) -> str | None:
        """The first size that a field does not divide."""
        for field, side in self.divides.items():
            number, sizes = getattr(self, field), self._sizes(shape)
            outputs = [] if side == "inputs" else [size for size, _ in sizes]
            inputs = [] if side == "outputs" else [size for _, size in sizes]
            for size in (*outputs, *inputs):
                if size % number:
                    return f"{field.replace('_', ' ')} {number} does not divide {size}"
        return None

    def frozen_parameters(self, shape: ModelShape) -> int:
        """Those of all adapted layers."""
        return shape.layers * sum(
            self.frozen_layer_parameters(*size) for size in self._sizes(shape)
        )

    def _sizes(self, shape: ModelShape) -> list[tuple[int, int]]:
        """Outputs and inputs of the adapted linear layers of a block."""
        sizes = linear_sizes(shape)
        return [sizes[name] for name in adapted_linears(shape, self.target_modules)]
