"""`torch.cuda` for a pretended GPU, whose device must have been loaded before torch."""

from __future__ import annotations

import time
from typing import Any

import pretended_gpu_device as device
import torch

_BYTES = 80 * 2**30


class _Properties:
    name = "pretended GPU"
    major, minor = 9, 0
    total_memory = _BYTES
    multi_processor_count = 132


class _Stream:
    """All that is asked of the device is done before the next is asked."""

    cuda_stream = 0

    def __init__(self, *arguments: Any, **named: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *error: object) -> None: ...

    def synchronize(self) -> None: ...

    def wait_stream(self, other: _Stream) -> None: ...

    def wait_event(self, event: _Event) -> None: ...

    def record_event(self, event: _Event | None = None) -> _Event:
        return event or _Event()


class _Event:
    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.record()

    def record(self, stream: _Stream | None = None) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        return (end.time - self.time) * 1e3

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def wait(self, stream: _Stream | None = None) -> None: ...


def pretend() -> None:
    """Give `torch.cuda` what a build without CUDA lacks."""
    generator, stream = device.generator(), _Stream()
    constants: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "device_count": 1,
        "current_device": 0,
        "current_stream": stream,
        "default_stream": stream,
        "stream": stream,
        "device": stream,  # entered like a stream
        "get_device_properties": _Properties,
        "get_device_capability": (_Properties.major, _Properties.minor),
        "get_device_name": _Properties.name,
    }
    for name in ("_lazy_init", "set_device", "set_stream", "synchronize", "empty_cache"):
        constants[name] = None
    for name, value in constants.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    functions = {
        "get_rng_state": lambda *_: generator.get_state(),
        "set_rng_state": lambda state, *_: generator.set_state(state),
        "manual_seed": generator.manual_seed,
        "manual_seed_all": generator.manual_seed,
        "memory_allocated": lambda *_: device.memory_allocated(),
        "memory_reserved": lambda *_: device.memory_allocated(),
        "max_memory_allocated": lambda *_: device.max_memory_allocated(),
        "max_memory_reserved": lambda *_: device.max_memory_allocated(),
        "reset_peak_memory_stats": lambda *_: device.reset_peak_memory_stats(),
        "mem_get_info": lambda *_: (_BYTES - device.memory_allocated(), _BYTES),
    }
    for name, function in functions.items():
        setattr(torch.cuda, name, function)
    torch.cuda.Stream, torch.cuda.Event = _Stream, _Event
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: 0
    torch.Tensor.pin_memory = lambda self, *_: self
    empty = torch.empty
    torch.empty = lambda *sizes, pin_memory=False, **named: empty(*sizes, **named)
    torch.Tensor.record_stream = lambda *_: None
