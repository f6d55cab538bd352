"""A process whose GPU is broken ends; any other goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import torch

Lost = getattr(torch, "AcceleratorError", RuntimeError)  # older Torch raises that

def synchronize():
    if {broken}:
        raise Lost("CUDA error: an illegal memory access was encountered")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = synchronize
"""
ANYWHERE = """
from trainables.process.lost_process import end_with_lost_device

def publish():
    print("tried", flush=True)
    raise ConnectionError("no store")

end_with_lost_device(publish)
print("went on")
"""


def ran(script: str, broken: bool, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(broken=broken) + script, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("broken", [True, False])
def test_the_process_ends_if_the_device_stops_answering(broken: bool) -> None:
    """Also where its log cannot be saved."""
    done = ran(ANYWHERE, broken)
    assert (done.returncode, done.stdout) == ((1, "tried\n") if broken else (0, "went on\n"))
    assert ("illegal memory access" in done.stderr) is broken
