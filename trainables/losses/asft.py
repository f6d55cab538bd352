"""Anchored supervised fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.losses.base import Tokens
from trainables.losses.dft import Dft
from trainables.losses.kl import Kl, divergence


class Asft(Kl):
    """DFT that is held at the base: sum (p nll + beta KL(base || tuned)) / N."""

    name: ClassVar[str] = "asft"
    title: ClassVar[str] = "ASFT"
    source: ClassVar[str] = "Zhu et al. 2025, 2509.23753"

    def token_losses(self, tokens: Tokens) -> Any:
        """P nll + beta KL."""
        return Dft().token_losses(tokens) + self.beta * divergence(tokens)
