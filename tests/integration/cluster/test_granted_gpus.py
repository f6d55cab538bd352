"""A granted GPU that torch cannot use is refused, and a process without a GPU sees none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from trainables.errors import UserError
from trainables.workers import granted_gpus

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="plays an unusable GPU")


@pytest.mark.parametrize(
    ("granted", "drivers", "devices", "is_wrong"),
    [
        ([], ["550.54.14"], 1, False),
        (["0"], [], 0, False),  # a simulated node
        (["0"], [], 1, True),  # a container without nvidia-smi
        (["1"], ["550.54.14"], 1, False),  # more are claimed than there are
    ],
)
def test_a_granted_gpu_that_torch_cannot_use_is_refused(
    granted: list[str],
    drivers: list[str],
    devices: int,
    is_wrong: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Context:
        def get_accelerator_ids(self) -> dict[str, Any]:
            return {"GPU": granted}

    for number in range(devices):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(granted_gpus, "_DEVICES", tmp_path)
    monkeypatch.setattr(granted_gpus, "ask_nvidia_smi", lambda field: drivers)
    monkeypatch.setattr("ray.get_runtime_context", Context)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    if not is_wrong:
        granted_gpus.check_granted_gpus()
        return
    with pytest.raises(UserError) as caught:
        granted_gpus.check_granted_gpus()
    for fact in ("built for CUDA 13.0", "NVIDIA's driver >= 580", "driver >= 525", *drivers):
        assert fact in str(caught.value)


def test_a_process_without_a_gpu_sees_none(cluster: None) -> None:
    @ray.remote(num_cpus=0)
    def sees() -> str | None:
        import os

        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(sees.remote()) == ""
