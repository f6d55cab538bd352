"""What is private of Ray does what we use it for, and is still needed."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import ray

from trainables.compat import ray as compat

SCRIPT = """
from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller
from trainables.compat.ray import count_memory_kills_as_lost_processes
for module in (actor_manager, tune_controller):
    assert not issubclass(OutOfMemoryError, module.RayActorError), "Tune knows it now"
count_memory_kills_as_lost_processes()
for module in (actor_manager, tune_controller):
    assert issubclass(OutOfMemoryError, module.RayActorError)
    assert issubclass(RayActorError, module.RayActorError)
"""


def test_tune_does_not_know_memory_kills_by_itself() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=120)


def test_tune_looks_errors_up_by_the_name_that_is_replaced() -> None:
    from ray.air.execution._internal import actor_manager
    from ray.tune.execution import tune_controller

    for module in (actor_manager, tune_controller):
        assert "RayActorError)" in inspect.getsource(module)


def test_nodes_and_actors_are_known(cluster: None) -> None:
    @ray.remote(num_cpus=0)
    class Sleeper:
        def ready(self) -> bool:
            return True

    actor = Sleeper.remote()
    assert ray.get(actor.ready.remote())
    assert compat.actor_state(actor) == ("ALIVE", 0)
    ray.kill(actor)
    assert compat.draining_nodes() == set()
    assert compat.node_launches(ray.get_runtime_context().gcs_address) == {}
    assert not {"draining_nodes", "get_draining_nodes"} & set(dir(ray)), "there is an API now"


def test_cpus_are_counted_and_a_head_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.container_cpus() >= 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert compat.running_head() == "10.0.0.1:6379"


def test_a_node_type_is_scored_by_what_it_serves() -> None:
    from ray.autoscaler._private.node_provider_availability_tracker import (
        NodeProviderAvailabilityTracker,
    )

    launches = NodeProviderAvailabilityTracker().summary()
    assert compat.utilization_score({"CPU": 4}, [{"CPU": 1}], "small", launches) is not None
    assert compat.utilization_score({"CPU": 4}, [{"GPU": 1}], "small", launches) is None


def test_a_raycluster_cannot_be_read_outside_of_kubernetes() -> None:
    with pytest.raises(OSError, match=""):
        compat.kuberay_config("default", "sweeps")
