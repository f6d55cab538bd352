"""BEFT."""

from __future__ import annotations

from typing import ClassVar

from trainables.methods.base import Footprint, Modules
from trainables.methods.peft_method import PeftMethod


class Beft(PeftMethod):
    """W0 x + b: trains a bias of the value projections only, where it works best."""

    name: ClassVar[str] = "beft"
    title: ClassVar[str] = "BEFT"
    source: ClassVar[str] = "Huang et al. 2025, 2509.15974"
    peft_class: ClassVar[str] = "BeftConfig"
    merges: ClassVar[bool] = False
    takes_4bit: ClassVar[bool] = True
    scaled: ClassVar[tuple[str, ...]] = ("beft_bias",)

    target_modules: Modules = ("v_proj",)

    def layer_parameters(self, outputs: int, inputs: int) -> int:
        """The bias."""
        return outputs

    def footprint(self, outputs: int, inputs: int) -> Footprint | None:
        """Nothing."""
        return Footprint(keeps_input=False)
