"""A process whose GPU is broken ends; any other goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from trainables.process.lost_device import end_with_lost_device

def synchronize():
    if {broken}:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = synchronize
end_with_lost_device()
print("went on")
"""


@pytest.mark.parametrize("broken", [True, False])
def test_the_process_ends_where_the_device_answers_no_more(broken: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(broken=broken)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == ((1, "") if broken else (0, "went on\n"))
    assert ("illegal memory access" in done.stderr) is broken
