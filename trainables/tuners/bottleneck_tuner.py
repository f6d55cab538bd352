"""A small network after a linear layer: h + W_up act(W_down h).

Shapes: O outputs of the layer, K of the network's hidden layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.activations import ACT2FN

from trainables.compat.peft import Tuner, TunerConfig, TunerLayer, register_tuner


@dataclass
class BottleneckConfig(TunerConfig):
    """Settings.

    Attributes:
        size: K.
        activation: its name in Transformers.
    """

    size: int = 8
    activation: str = "relu"

    def __post_init__(self) -> None:
        """With its type."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class BottleneckLayer(TunerLayer):
    """h + W_up act(W_down h), where h (..., O) is what the linear layer gives; no biases.

    `bottleneck_down` (K, O) starts as `torch.nn.Linear` does, `bottleneck_up` (O, K) at 0.
    """

    adapter_layer_names: tuple[str, ...] = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: Any) -> None:
        super().__init__(base_layer)
        self.bottleneck_down = torch.nn.ModuleDict()
        self.bottleneck_up = torch.nn.ModuleDict()
        self.activations: dict[str, str] = {}

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add a fresh adapter of that name."""
        linear = self.get_base_layer()
        outputs = getattr(linear, "out_features", None) or getattr(linear, "nf", None)
        if outputs is None:
            raise ValueError(f"a {type(linear).__name__} is not a linear layer")
        down_KO = torch.nn.Linear(outputs, config.size, bias=False)
        up_OK = torch.nn.Linear(config.size, outputs, bias=False)
        torch.nn.init.zeros_(up_OK.weight)
        self.bottleneck_down[adapter_name], self.bottleneck_up[adapter_name] = down_KO, up_OK
        self.activations[adapter_name] = config.activation
        self.place(adapter_name, config)

    def forward(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output with what the active adapters add to it, one after another."""
        h_O: torch.Tensor = self.base_layer(inputs, *args, **kwargs)
        for name in self.used_adapters(self.bottleneck_down):
            down, up = self.bottleneck_down[name], self.bottleneck_up[name]
            hidden_K = ACT2FN[self.activations[name]](down(h_O.to(down.weight.dtype)))
            h_O = h_O + up(hidden_K).to(h_O.dtype)
        return h_O


class BottleneckModel(Tuner):
    """A base with bottleneck adapters."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer


PEFT_TYPE = register_tuner("bottleneck_adapter", BottleneckConfig, BottleneckModel)
