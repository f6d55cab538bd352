"""The nodes of a cluster are asked for their GPUs' memory, on GPUs that are busy as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).parents[2]
# A cluster of its own; its processes find the program that stands for NVIDIA's on their path.
SCRIPT = """
import ray
from tune.ray_cluster import smallest_gpu

@ray.remote(num_gpus=2)
class Busy:
    def ready(self):
        return True

ray.init(address="local", num_cpus=1, num_gpus=2, include_dashboard=False, log_to_driver=False)
busy = Busy.remote()
ray.get(busy.ready.remote())
print(smallest_gpu())
"""


def test_a_busy_node_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 24564\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == 24564 << 20
