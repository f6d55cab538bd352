"""(IA)^3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from trainables.decoder_shape import ModelShape, adapted_linears, linear_sizes
from trainables.methods.base import Modules
from trainables.methods.peft_method import PeftMethod

_AFTER_ACTIVATION = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2")


class IA3(PeftMethod):
    """diag(l) W0: keys, values and the hidden units of MLPs are scaled, each by a number.

    In an MLP's last layer, to which the hidden units are the inputs, it is W0 diag(l).
    """

    name: ClassVar[str] = "ia3"
    title: ClassVar[str] = "(IA)^3"
    source: ClassVar[str] = "Liu et al. 2022, 2205.05638"
    peft_class: ClassVar[str] = "IA3Config"
    interpolated: ClassVar[tuple[str, ...]] = ("ia3_l",)

    target_modules: Modules = ("down_proj", "k_proj", "v_proj")

    def options(self, steps: int) -> dict[str, Any]:
        """With the layers whose inputs are scaled."""
        chosen = self.target_modules
        names = _AFTER_ACTIVATION if isinstance(chosen, str) else chosen
        last = [name for name in names if name.rpartition(".")[2] in _AFTER_ACTIVATION]
        return {**super().options(steps), "feedforward_modules": last}

    def parameters(self, shape: ModelShape) -> int:
        """O of each layer, I of an MLP's last."""
        sizes = {n: linear_sizes(shape)[n] for n in adapted_linears(shape, self.target_modules)}
        return shape.layers * sum(
            inputs if name in _AFTER_ACTIVATION else outputs
            for name, (outputs, inputs) in sizes.items()
        )

    def stored_update(
        self, tensors: Mapping[str, Any], base_OI: Any
    ) -> tuple[Any, Any] | Any | None:
        """W0 (l - 1), where l has the shape (O, 1) or (1, I)."""
        return base_OI * (tensors["ia3_l"] - 1)
