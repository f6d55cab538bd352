"""Bottleneck adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from trainables.methods.base import Footprint, Modules
from trainables.methods.peft_method import PeftMethod


class Bottleneck(PeftMethod):
    """h + W_up act(W_down h), h the output of a block's attention and that of its MLP.

    W_down (K, O) is random at the start and W_up (O, K) is 0; there are no biases. Houlsby et al.
    put one after each of the two, as here; others put one into a block (2005.00247), which is
    `target_modules: [[down_proj]]`.

    Attributes:
        size: K, the size of the bottleneck.
        activation: act.
    """

    name: ClassVar[str] = "bottleneck"
    title: ClassVar[str] = "Bottleneck adapter"
    source: ClassVar[str] = "Houlsby et al. 2019, 1902.00751"
    peft_fields: ClassVar[Mapping[str, str]] = {"size": "size", "activation": "activation"}
    capacity_field: ClassVar[str | None] = "size"
    merges: ClassVar[bool] = False
    in_peft: ClassVar[bool] = False
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("bottleneck_up",)

    size: int = Field(ge=1)
    activation: Literal["relu", "gelu", "silu"] = "relu"
    target_modules: Modules = ("down_proj", "o_proj")

    @property
    def smallest(self) -> Self:
        """Size 1."""
        return self.model_copy(update={"size": 1})

    def peft_config(self, steps: int) -> Any:
        """The adapter as PEFT's configuration."""
        from trainables.tuners.bottleneck_tuner import BottleneckConfig

        return BottleneckConfig(task_type="CAUSAL_LM", **self.options(steps))

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """2 K O."""
        return 2 * self.size * outputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """The layer's output in fp32, and the hidden layer before and after the activation."""
        hidden = self.size if self.activation == "relu" else 2 * self.size
        return Footprint(per_token_fp32=outputs + hidden, keeps_input=False)
