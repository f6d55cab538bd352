"""What nodes report is checked before a trial is spent."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from trainables.errors import UserError
from trainables.workers.node import NodeReport
from tune.cluster import node_checks
from tune.cluster.node_checks import check_nodes

OURS = NodeReport(address="10.0.0.1", ray="2.60.0", python="3.11.9")


def report(**fields: object) -> NodeReport:
    return OURS.model_copy(update={"address": "10.0.0.2", **fields})


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"ray": "2.59.1"}, ["node 10.0.0.2", "Ray 2.59.1", "Ray 2.60.0", "constraints.txt"]),
        ({"python": "3.12.1"}, ["Python 3.12.1", "Python 3.11.9"]),
        ({"python": "3.11.12"}, []),  # bug-fix releases work together
        ({"absent": ["/data/rows"]}, ["node 10.0.0.2", "has no /data/rows"]),
        ({"storage_fault": "not there"}, ["--output-dir", "1 of 2 nodes", "10.0.0.2 (not there)"]),
    ],
)
def test_nodes_that_differ_are_named(
    fields: dict[str, object], facts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_checks, "this_node", lambda: OURS)
    reports = [OURS, report(**fields)]
    if not facts:
        check_nodes(reports, Path("sweeps"))
        return
    with pytest.raises(UserError) as caught:
        check_nodes(reports, Path("sweeps"))
    assert len(caught.value.faults) == 1
    for fact in facts:
        assert fact in str(caught.value)


def test_nodes_that_go_away_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": name, "Alive": name != "dead", "Resources": {"CPU": 1.0}}
        for name in ("here", "dead", "drains")
    ]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    draining = SimpleNamespace(get_draining_nodes=lambda: {"drains": 0})
    monkeypatch.setattr("ray._private.state.state", draining)
    assert node_checks.nodes_up() == [{"CPU": 1.0}]
