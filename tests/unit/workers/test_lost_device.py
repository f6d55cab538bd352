"""A process whose GPU is broken ends; any other goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
IN_A_GROUP = """
import os, sys
from types import SimpleNamespace
from trainables.workers import worker

def train(trial, reporter):
    raise Lost("CUDA error: an illegal memory access was encountered")

for name in ("use_credentials", "check_sees", "check_granted_gpus"):
    setattr(worker, name, lambda *_: None)
worker.trial_function = lambda trial: train
os.environ["RANK"] = "1"
folder = sys.argv[1]
trial = dict(base_dir=folder, output_dir=folder, published_dir=None)
trial |= dict(number=0, workers=2, minutes_per_report=None)
try:
    worker.Worker().train(SimpleNamespace(**trial))
except Lost:
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
def test_the_process_ends_where_the_device_answers_no_more(broken: bool) -> None:
    """Also where its log cannot be saved."""
    done = ran(ANYWHERE, broken)
    assert (done.returncode, done.stdout) == ((1, "tried\n") if broken else (0, "went on\n"))
    assert ("illegal memory access" in done.stderr) is broken


def test_a_worker_of_a_group_ends_with_its_device(tmp_path: Path) -> None:
    """The trial's own process, which holds no GPU, would else take the error for the trial's."""
    done = ran(IN_A_GROUP, True, str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "illegal memory access" in (tmp_path / "worker_1.log").read_text()
