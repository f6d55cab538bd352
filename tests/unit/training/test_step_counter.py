"""Where a resumed optimizer counts its steps: on the device on which its kernel reads them."""

from __future__ import annotations

import pytest
import torch

from trainables.training.optimizer_state import step_counter


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"capturable": True}])
def test_the_counter_stands_where_torch_s_own_would(options: dict[str, bool]) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, device="meta"))
    optimizer = torch.optim.AdamW([parameter], **options)
    parameter.grad = torch.ones_like(parameter)
    state: list[torch.Tensor] = []
    optimizer._init_group(optimizer.param_groups[0], [], [], [], [], [], state)
    (own,) = state
    made = step_counter(optimizer, parameter)
    assert (made.device, made.dtype, made.shape) == (own.device, own.dtype, own.shape)


def test_that_of_a_fused_optimizer_stands_beside_its_parameter() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    elsewhere = torch.empty(3, device="meta")  # stands for a GPU
    assert step_counter(optimizer, elsewhere).device == elsewhere.device
