"""OLoRA."""

from __future__ import annotations

from typing import Any, ClassVar

from trainables.methods.started import Started


class OLora(Started):
    """Starts at the first R columns of Q and rows of R' in the QR decomposition W0 = Q R'."""

    name: ClassVar[str] = "olora"
    title: ClassVar[str] = "OLoRA"
    source: ClassVar[str] = "Büyükakyüz 2024, 2406.01775"

    def first_factors(self, weight_OI: Any, observed: Any) -> tuple[Any, Any]:
        """Orthonormal columns, and rows of a triangle."""
        import torch

        Q_OK, triangle_KI = torch.linalg.qr(weight_OI)
        return Q_OK[:, : self.rank], triangle_KI[: self.rank]
