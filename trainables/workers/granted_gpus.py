"""Checks that torch can use the GPUs that Ray gave this process; else it would train on the CPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import ray

from trainables.errors import Fault, UserError

_DEVICES = Path("/dev")
_ASK_DRIVER_TIMEOUT_S = 30.0


def check_granted_gpus() -> None:
    """Check that torch can use the GPUs that Ray has given this process, if any.

    GPU numbers beyond this machine's devices are ignored, as nodes of a simulated cluster declare
    GPUs that they do not have.

    Raises:
        UserError: a GPU exists, but torch cannot use it.
    """
    granted = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not granted:
        return
    import torch

    if torch.cuda.is_available():
        return
    drivers = ask_nvidia_smi("driver_version")
    devices = len(drivers) or len(list(_DEVICES.glob("nvidia[0-9]*")))
    if any(int(gpu) < devices if gpu.isdigit() else devices for gpu in granted):
        cuda = torch.version.cuda
        built = f"for CUDA {cuda}" if cuda else "without CUDA"
        driver = " ".join(["NVIDIA's driver", *drivers[:1]])
        fault = Fault(
            f"node {ray.util.get_node_ip_address()}",
            f"torch, which is built {built}, cannot use its GPU with {driver}",
            "install torch for CUDA 13 and NVIDIA's driver >= 580, or for CUDA 12 and a driver "
            ">= 525 (clusters/README.md)",
        )
        raise UserError([fault])


def ask_nvidia_smi(field: str) -> list[str]:
    """A field of each GPU of this node, in use or not, such as `memory.total` in MiB.

    Empty if no NVIDIA driver answers.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            [program, f"--query-gpu={field}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_ASK_DRIVER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.split() if done.returncode == 0 else []
