"""A matrix without its intruder dimensions, against planted ones and against PEFT."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.intruders import reduce_intruder_dimension

from trainables.inspection.spectra import dense_spectrum, vector_change
from trainables.post_steps.no_intruders import KEPT, without_intruders

O, I = 48, 32  # noqa: E741 - outputs and inputs


@pytest.fixture(name="base_OI")
def base() -> torch.Tensor:
    """A matrix with falling singular values, whose left vectors span all but 16 directions."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(O, O, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(I, I, generator=generator, dtype=torch.float64))
    return (left[:, :I] * torch.linspace(2, 0.1, I, dtype=torch.float64)) @ right.T


def planted(base_OI: torch.Tensor, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A direction that the base's columns do not have, as large as `size`, and the sum."""
    left_OO, _, right_II = torch.linalg.svd(base_OI)
    part_OI = size * torch.outer(left_OO[:, -1], right_II[3])
    return part_OI, base_OI + part_OI


def test_a_planted_intruder_is_scaled_and_nothing_else(base_OI: torch.Tensor) -> None:
    _, tuned_OI = planted(base_OI, 5.0)
    left_OK, values_K, right_KI = torch.linalg.svd(tuned_OI, full_matrices=False)
    repaired = without_intruders(base_OI, tuned_OI)
    values_K[0] *= KEPT
    torch.testing.assert_close(repaired, left_OK * values_K @ right_KI)


def test_what_turns_few_directions_is_left_as_it_is(base_OI: torch.Tensor) -> None:
    _, tuned_OI = planted(base_OI, 0.01)
    assert without_intruders(base_OI, tuned_OI) is tuned_OI


def test_it_takes_what_the_inspection_counts(base_OI: torch.Tensor) -> None:
    _, tuned_OI = planted(base_OI, 5.0)
    before = dense_spectrum(base_OI).left_OK
    assert vector_change(before, dense_spectrum(tuned_OI).left_OK).intruders == 1


@pytest.mark.parametrize("size", [0.01, 3.0, 8.0])
def test_it_is_what_peft_does_where_the_rank_leaves_room(
    base_OI: torch.Tensor, size: float
) -> None:
    linear = torch.nn.Linear(I, O, bias=False, dtype=torch.float64)
    linear.weight.data.copy_(base_OI)
    config = peft.LoraConfig(r=I, lora_alpha=2 * I, target_modules=["0"])
    model: Any = peft.get_peft_model(torch.nn.Sequential(linear), config).double()
    layer = model.base_model.model[0]
    part_OI, tuned_OI = planted(base_OI, size)
    layer.lora_A["default"].weight.data.copy_(torch.eye(I))
    layer.lora_B["default"].weight.data.copy_(part_OI / layer.scaling["default"])
    reduce_intruder_dimension(model, new_adapter_name="reduced", logging_sink=None)
    theirs = layer.get_base_layer().weight + layer.get_delta_weight("reduced")
    torch.testing.assert_close(without_intruders(base_OI, tuned_OI), theirs.detach())
