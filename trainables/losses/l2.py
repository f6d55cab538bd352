"""Cross-entropy with a penalty on moving away from the base's weights."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from trainables.losses.base import Loss


class L2(Loss):
    """Cross-entropy, and beta times the squared distance from the base: beta ||theta - theta0||^2.

    The loss that is logged is without the penalty.

    Attributes:
        beta: weight of the distance.
    """

    name: ClassVar[str] = "l2"
    title: ClassVar[str] = "SFT + L2"
    source: ClassVar[str] = "squared distance to the base's weights"
    reads_base_weights: ClassVar[bool] = True

    beta: float = Field(default=1e-3, ge=0)

    def penalty(self, model: Any, base: Any) -> Any:
        """Beta times the sum of squared differences of the trained weights."""
        import torch

        weights = dict(base.named_parameters())
        return self.beta * sum(
            (parameter - weights[name]).square().sum(dtype=torch.float32)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        )
