"""A GPU for tests on machines without one: `pytest -p pretended_gpu`, with `tests` on the path.

Torch then has one CUDA device; `device.cpp` tells what of it is real. A plugin of pytest, and no
fixture, as the device must be loaded before torch.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from pretended_gpu.build import built, obstacle

OBSTACLE = obstacle()


def pytest_report_header() -> str:
    return "GPU: pretended" if OBSTACLE is None else f"GPU: not pretended, as {OBSTACLE}"


def launched() -> int:
    """How many kernels the device has been asked for."""
    import pretended_gpu_device

    return int(pretended_gpu_device.launched())


def _pretend() -> None:
    sys.path.append(str(built()))
    import pretended_gpu_device  # noqa: F401 - before torch

    with suppress(ImportError):  # before there is a GPU, for which it lacks CUDA's libraries
        import bitsandbytes  # noqa: F401
    from pretended_gpu import collectives, cuda

    cuda.pretend()
    collectives.pretend()


if OBSTACLE is None:
    _pretend()
