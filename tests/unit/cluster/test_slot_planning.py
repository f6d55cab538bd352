"""Slots without torch: which trials can have one, how many there are, where they are put."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from builders import adapter, trial_config
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayError
from sweep_files import edited

from trainables.packing.planning import Speed, best, why_not_packed
from tune.cluster import waiting
from tune.cluster.packed_recipes import largest_in_slots, packed_recipes
from tune.cluster.slot_hosts import (
    HostPool,
    beside_hosts,
    hosts_that_fit,
    hosts_to_start,
)
from tune.config.sweep_config import SweepConfig
from tune.resources.capacity import max_concurrent


def config(**changes: Any) -> SweepConfig:
    return SweepConfig.model_validate(yaml.safe_load(edited(**changes)))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host answers what its method returns, or raises it; it is up again at once."""

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    restarts = count()
    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("ray.wait", lambda asked, **options: (asked, []))
    monkeypatch.setattr(waiting, "life_of", lambda host: ("ALIVE", next(restarts)))


@pytest.mark.parametrize(
    "changes",
    [{"method": "full"}, {"method": adapter(dora=True)}, {"workers": 2}],
)
def test_some_trials_cannot_be_packed(changes: dict[str, Any]) -> None:
    assert why_not_packed(trial_config()) is None
    assert why_not_packed(trial_config(**changes))


@pytest.mark.parametrize(
    ("seconds", "slot_seconds", "expected"),
    [
        ([600, 600 / 1.9, 200, 600 / 3.1], 0.0, 4),  # 3 % is not worth the latency
        ([600, 600 / 1.04, 600 / 1.08], 0.0, 4),  # small gains add up
        ([100, 60, 40, 30], 0.0, 8),  # 100 + 0, 60 + 0, 40 + 0, 30 + 0 seconds
        ([100, 60, 40, 30], 50.0, 1),  # 150, 160, 240, 430
    ],
)
def test_slots_are_as_many_as_pay(seconds: list[float], slot_seconds: float, expected: int) -> None:
    speeds = [Speed(2**power, 6000 / taken) for power, taken in enumerate(seconds)]
    assert best(speeds, 6000, slot_seconds) == expected


def test_where_a_host_dies_of_measuring_the_sweep_goes_on_with_one_slot(answers: None) -> None:
    """As Ray kills it where its machine runs out of memory; each start would end the same way."""
    lines: list[str] = []
    sweep = config(resources__lora__slots="auto")
    pool = HostPool(sweep, {"CPU": 4.0}, lambda *point: trial_config(), {}, lines.append)
    asked: list[Any] = []
    error = OutOfMemoryError("low on memory")
    probe = SimpleNamespace(remote=lambda *arguments: asked.append(arguments) or error)
    host = SimpleNamespace(probe=probe, load=SimpleNamespace(remote=lambda: 0))
    pool._actors, pool._process_seconds = (host,) * 2, 1.0
    assert pool._measured(trial_config(), samples=100) == 1
    assert len(asked) == 4
    assert "2 hosts of 1 slot" in lines[-1]
    assert "resources.lora.slots" in lines[-1]


@pytest.mark.parametrize(
    "error",
    [ActorUnavailableError("restarting", None), ActorDiedError()],  # the latter of a drained node
)
def test_a_host_that_lost_its_node_is_asked_again_once_it_has_another(
    error: RayError, answers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may take a while to notice; meanwhile the user reads what the sweep waits for."""
    states = [*[("RESTARTING", 3)] * 5, ("ALIVE", 3)]
    seen = iter([*states, *[("ALIVE", 3)] * 9])
    monkeypatch.setattr(waiting, "life_of", lambda host: next(seen))
    monkeypatch.setattr(waiting, "_POLL_S", 0.001)
    monkeypatch.setattr(waiting, "_TELL_EVERY_S", 0.0)
    monkeypatch.setattr(waiting, "nodes_up", list)
    monkeypatch.setattr(waiting, "last_launch_failure", lambda: None)
    given, lines = iter([error, "an answer"]), list[str]()
    load, probe = (SimpleNamespace(remote=answer) for answer in (lambda: 0, lambda: next(given)))
    host = SimpleNamespace(probe=probe, load=load)
    assert waiting.answer_of([host], "probe", (), {"GPU": 1}, lines.append) == "an answer"
    assert "process of a slot host was lost" in lines[0]
    assert set(lines[1:]) == {"waiting for a node with 1 GPU"}


FULL = {"learning_rate": [1e-5]}
PACKED = ("lora",)


@pytest.mark.parametrize(
    ("changes", "cluster", "hosts", "concurrent"),
    [
        ({}, {"CPU": 2.0}, 2, 8),
        ({}, {"CPU": 16.0, "GPU": 2.0}, 2, 8),
        ({"search__full": FULL}, {"CPU": 2.0}, 1, 5),  # one host, one full fine-tuning
        ({"resources__max_concurrent": 1}, {"CPU": 8.0}, 1, 1),
    ],
)
def test_hosts_and_trials_fit_the_cluster(
    changes: dict[str, Any], cluster: dict[str, float], hosts: int, concurrent: int
) -> None:
    sweep = config(**changes)
    assert hosts_that_fit(sweep, PACKED, cluster, [cluster]) == hosts
    left = beside_hosts(sweep, PACKED, cluster, hosts)
    assert max_concurrent(sweep, left, 4 * hosts, PACKED) == concurrent


@pytest.mark.parametrize(
    ("full", "nodes", "hosts"),
    [
        ({"cpus_per_worker": 4}, [{"CPU": 4.0}] * 2, 1),  # a second one may be on the other node
        ({"cpus_per_worker": 3}, [{"CPU": 4.0}] * 2, 3),
        ({"workers": 8}, [{"CPU": 96.0, "GPU": 8.0}] * 2, 8),
    ],
)
def test_hosts_leave_room_for_a_full_trial_wherever_they_are_put(
    full: dict[str, Any], nodes: list[dict[str, float]], hosts: int
) -> None:
    changes = {f"resources__full__{key}": value for key, value in full.items()}
    sweep = config(search__full=FULL, train__batch_size=8, train__micro_batch_size=1, **changes)
    cluster = {kind: amount * len(nodes) for kind, amount in nodes[0].items()}
    assert hosts_that_fit(sweep, PACKED, cluster, nodes) == hosts
    larger = {"CPU": 192.0, "GPU": 16.0}  # as it may grow
    assert hosts_that_fit(sweep, PACKED, larger, nodes) == 16 - full.get("workers", 1)


@pytest.mark.parametrize(
    ("up", "slots", "expected"),
    [
        (0, 16, 3),  # 40 trials fill three of the 28
        (8, 16, 8),  # nodes that are up anyway are used
        (8, 2, 20),
    ],
)
def test_a_growing_cluster_gets_as_many_hosts_as_trials_fill(
    up: int, slots: int, expected: int
) -> None:
    assert hosts_to_start(28, up, 40, slots) == expected


def test_full_trials_may_leave_no_room_for_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.cluster.slot_hosts.nodes_up", lambda: [{"CPU": 1.0}])
    lines: list[str] = []
    sweep = config(search__full=FULL, resources__lora__slots=4)
    pool = HostPool(sweep, {"CPU": 1.0}, lambda *point: trial_config(), {}, lines.append)
    assert not pool.start()
    assert "search.full=null" in lines[0]


ADAPTER = {"method": "lora", "rank": [4], "alpha_ratio": 2, "learning_rate": [1e-4]}


@pytest.mark.parametrize(
    ("search", "resources", "packed", "alone"),
    [
        ({}, {}, ("lora", "more"), {}),
        ({"rank": [16, 64]}, {}, ("lora", "more"), {}),
        ({"method": "full", "rank": None, "alpha_ratio": None}, {}, ("lora",), "changes the base"),
        ({"target_modules": [["q_proj"]]}, {}, ("lora",), "search.more.target_modules"),
        ({}, {"slots": 8}, ("lora",), "resources.more"),
        ({}, {"slots": 0}, ("lora",), {}),  # nobody asked for it
        ({"dora": [False, True]}, {}, ("lora",), "DoRA"),
    ],
)
def test_one_set_of_hosts_serves_all_recipes_that_are_alike(
    search: dict[str, Any], resources: dict[str, Any], packed: tuple[str, ...], alone: Any
) -> None:
    space = {key: value for key, value in (ADAPTER | search).items() if value is not None}
    usual = {"slots": "auto", "cpus_per_worker": 2}
    sweep = config(search__more=space, resources__lora=usual, resources__more=usual | resources)
    found = packed_recipes(sweep)
    assert found.names == packed
    assert found.alone.keys() == ({"more"} if alone else set())
    if alone:
        [message] = found.messages()
        assert "more" in message
        assert alone in message
    largest = "more" if search.get("rank") else "lora"
    assert largest_in_slots(sweep, found.names) == largest
