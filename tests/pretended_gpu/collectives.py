"""NCCL, which needs CUDA, by gloo on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pretended_gpu_device as device
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

# As process groups call them, and as gloo does.
_COLLECTIVES = {
    name: name
    for name in (
        *("allgather", "allgather_coalesced", "allreduce", "allreduce_coalesced", "alltoall"),
        *("alltoall_base", "barrier", "broadcast", "gather", "recv", "reduce", "reduce_scatter"),
        *("scatter", "send", "_allgather_base", "_reduce_scatter_base"),
    )
} | {
    "all_gather_single": "_allgather_base",
    "all_to_all_single": "alltoall_base",
    "reduce_scatter_single": "_reduce_scatter_base",
}


class _Group(dist.ProcessGroup):
    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.gloo = dist.ProcessGroupGloo(store, rank, size, timeout)


def _by_gloo(name: str) -> Callable[..., Any]:
    def collective(self: _Group, *arguments: Any, **named: Any) -> Any:
        run = getattr(self.gloo, name)
        return run(*map(_on_cpu, arguments), **{n: _on_cpu(v) for n, v in named.items()})

    return collective


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return device.on_cpu(value.detach()) if value.is_cuda else value
    return [_on_cpu(item) for item in value] if isinstance(value, (list, tuple)) else value


def pretend() -> None:
    """Make groups that are asked for by the name of NCCL."""
    for name, gloo_name in _COLLECTIVES.items():
        setattr(_Group, name, _by_gloo(gloo_name))
    dist.Backend.register_backend("pretended", _Group, devices=["cuda", "cpu"])
    for name in ("init_process_group", "new_group"):
        make = _accept_nccl(getattr(dist, name))
        setattr(dist, name, make)
        setattr(distributed_c10d, name, make)
    dist.is_nccl_available = distributed_c10d.is_nccl_available = lambda: True


def _accept_nccl(make: Callable[..., Any]) -> Callable[..., Any]:
    def pretended(*arguments: Any, **named: Any) -> Any:
        named.pop("device_id", None)
        names = ["pretended" if name == "nccl" else name for name in arguments]
        if named.get("backend") == "nccl":
            named["backend"] = "pretended"
        return make(*names, **named)

    return pretended
