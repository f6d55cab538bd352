"""What processes see of GPUs: those they were given, which end them if of no use to torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import told_by

from trainables.config import TrialConfig
from trainables.workers import granted_gpus

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="plays a GPU that torch cannot use"),
]

# The machine is said to have a GPU, and NVIDIA's driver seems to know it: all that may train on it.
SCRIPT = """
import json, os, sys
from pathlib import Path
import ray
from trainables.config import BaseRequirements, TrialConfig
from trainables.errors import TrialError, UserError
from trainables.training.reporter import ListReporter
from trainables.workers.worker_group import worker_actor
from trainables.workers.packed_trials import start_slot_host
from trainables.workers.ray_tasks import as_task, evaluate_base_on_worker
from trainables.workers.trainable import _train
from tune.cluster.node_checks import marker_in

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
trial = TrialConfig.model_validate_json(sys.stdin.read())
folder = trial.output_dir

def base(gpus):
    of_base = as_task(evaluate_base_on_worker, {"CPU": 1, "GPU": gpus})
    with marker_in(Path(folder, "base")) as marker:
        places = (f"{folder}/cache", f"{folder}/base", marker)
        arguments = (trial.model, trial.data, trial.eval, 0, *places, BaseRequirements())
        fault = ray.get(of_base.remote(*arguments))
    if fault is not None:
        raise fault

def alone(gpus):
    ray.get(ray.remote(num_gpus=gpus)(_train).remote(trial, trial, None))

def in_group(gpus):
    worker = worker_actor(1, gpus).remote()
    port = ray.get(worker.serve.remote("127.0.0.1"))
    group = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    try:
        ray.get(worker.join.remote({name: str(value) for name, value in group.items()}))
        ray.get(worker.train.remote(trial))
    finally:
        ray.kill(worker)

def in_slot(gpus):
    host = start_slot_host({"CPU": 1, "GPU": gpus})
    try:
        ray.get(host.why_not_packed.remote(trial))
    finally:
        ray.kill(host)

said = {}
for work in (base, alone, in_group, in_slot):
    try:
        work(1)
    except (TrialError, UserError) as error:
        said[work.__name__] = str(getattr(error, "cause", error))
print(json.dumps(said))
"""

# On a machine with a GPU: what torch would see of it in a process that was given none, and with it.
SEEN = """
import os
import ray
from ray.cluster_utils import Cluster
from tune.cluster.ray_cluster import ray_cluster

has = {"num_cpus": 1, "num_gpus": 1}
address = Cluster(initialize_head=True, head_node_args=has).address if {is_up} else None

def seen():
    return os.environ["CUDA_VISIBLE_DEVICES"]

with ray_cluster(address):
    amounts = [0, 1] if address else [0]
    print([ray.get(ray.remote(num_gpus=gpus)(seen).remote()) for gpus in amounts])
"""


@pytest.mark.ray
@pytest.mark.parametrize(
    ("is_up", "expected"), [(True, ["", "0"]), pytest.param(False, [""], marks=pytest.mark.slow)]
)
def test_what_is_given_no_gpu_sees_none(
    is_up: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    done = subprocess.run(
        [sys.executable, "-c", SEEN.replace("{is_up}", str(is_up))],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [str(expected)], done.stderr[-2000:]


@pytest.mark.ray
@pytest.mark.slow
def test_whatever_was_given_it_says_so(
    make_trial: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.14\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    trial = make_trial(output_dir=str(tmp_path))
    said = told_by("-c", SCRIPT, given=trial.model_dump_json())
    assert said.keys() == {"base", "alone", "in_group", "in_slot"}
    for text in said.values():
        assert text.startswith("node ")
        assert "NVIDIA's driver 550.54.14" in text


@pytest.mark.parametrize(
    ("granted", "drivers", "devices", "is_wrong"),
    [
        ([], ["550.54.14"], 1, False),
        (["0"], [], 0, False),  # a simulated node
        (["0"], [], 1, True),  # a container without nvidia-smi
        (["0"], ["550.54.14"], 0, True),  # Windows' Linux has no such device
        (["1"], ["550.54.14"], 1, False),  # more are claimed than there are
        (["GPU-8f0c"], ["550.54.14"], 1, True),
    ],
)
def test_only_a_gpu_that_is_there_counts(
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
    if not is_wrong:
        granted_gpus.check_granted_gpus()
        return
    with pytest.raises(granted_gpus.UserError, match=drivers[0] if drivers else "NVIDIA's driver"):
        granted_gpus.check_granted_gpus()


@pytest.mark.parametrize(
    ("cuda", "words"),
    [
        ("13.0", ["built for CUDA 13.0", "CUDA 13 and NVIDIA's driver >= 580"]),
        ("12.6", ["built for CUDA 12.6", "CUDA 12 and a driver >= 525"]),
        (None, ["built without CUDA", "install torch for CUDA"]),
    ],
)
def test_the_remedy_fits_torch_s_cuda(cuda: str | None, words: list[str]) -> None:
    said = str(granted_gpus._fault(["550.54.14"], cuda))
    for word in [*words, "550.54.14"]:
        assert word in said
