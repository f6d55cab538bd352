"""A snapshot's tensors: copied once, from whatever device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.training.optimizer_state import _on_cpu

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)


class Copies(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function in _COPIES
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_tensor_is_copied_once(device: str, dtype: torch.dtype, is_turned: bool) -> None:
    """Full fine-tuning has 12 bytes a parameter to copy while all its GPUs wait."""
    with FakeTensorMode():
        value = torch.empty(3, 5, dtype=dtype, device=device)
        with Copies() as copies:
            copied = _on_cpu(value.mT if is_turned else value)
    assert copies.count == 1
    assert (copied.device.type, copied.dtype) == ("cpu", torch.float32)
    assert copied.is_contiguous()


def test_what_is_copied_stays_as_it_was() -> None:
    value = torch.ones(3, 5)
    copied = _on_cpu(value)
    value += 1
    assert torch.equal(copied, torch.ones(3, 5))
