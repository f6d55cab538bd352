"""LoRA-GA."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from trainables.decoder_shape import ModelShape
from trainables.methods.base import Seen
from trainables.methods.started import Started

_GAMMA = 16  # PEFT's and the paper's


class LoraGa(Started):
    """Starts along the first gradient G of full fine-tuning, from G = U S V^T.

    A0 is the first R rows of V^T; B0 is the next R columns of U, times their S and
    O^(1/4) / gamma^(1/2), gamma 16, as PEFT has it by default.
    G is the mean over samples of the training data of the gradient of their mean loss.
    """

    name: ClassVar[str] = "loraga"
    title: ClassVar[str] = "LoRA-GA"
    source: ClassVar[str] = "Wang et al. 2024, 2407.05000, as in PEFT"
    starts_from: ClassVar[Literal["general_text", "data"] | None] = "data"
    reads_gradients: ClassVar[bool] = True

    def observe(self, seen: Seen) -> Any:
        """The gradient of W0 (O, I)."""
        return seen.gradients_TO.T @ seen.inputs_TI

    def first_factors(self, weight_OI: Any, observed: Any) -> tuple[Any, Any]:
        """The second R left, and the first R right singular vectors of the gradient."""
        import torch

        # Sketched as in PEFT, but with random numbers of its own.
        devices = [observed.device] if observed.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            count = min(4 * self.rank, *observed.shape)
            left_OK, values_K, right_IK = torch.svd_lowrank(observed, q=count, niter=4)
        second = slice(self.rank, 2 * self.rank)
        scale = len(observed) ** 0.25 / _GAMMA**0.5
        return left_OK[:, second] * values_K[second] * scale, right_IK[:, : self.rank].T

    def misfit(self, shape: ModelShape) -> str | None:
        """A matrix has no more directions than its shorter side, and it takes two a rank."""
        shortest = min(min(size) for size in self._sizes(shape))
        too_large = 2 * self.rank > shortest
        return f"rank {self.rank} is above {shortest // 2}" if too_large else None
