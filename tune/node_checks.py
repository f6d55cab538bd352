"""Checks of every node before a trial is spent: one task on each, all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.errors import Fault, UserError, first_line
from trainables.under_ray.node import NodeReport, report_node, this_node

_TIMEOUT_S = 60.0


def ask_nodes() -> list[NodeReport]:
    """Reports of all nodes that are up.

    Raises:
        UserError: a node cannot run a task, or does not answer within a minute.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    questions = {
        node: report_node.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in nodes
    }
    ray.wait(list(questions.values()), num_returns=len(questions), timeout=_TIMEOUT_S)
    still_up = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    reports, faults = [], []
    for node in still_up & questions.keys():
        try:
            reports.append(ray.get(questions[node], timeout=0))
        except RayError as error:
            faults.append(_unfit(nodes[node], error))
    if faults:
        raise UserError(sorted(faults, key=str))
    return reports


def check_nodes(reports: Sequence[NodeReport]) -> None:
    """See whether every node runs what the driver runs.

    Ray refuses most mixtures by itself: a node that joins must have the head's versions. It lets
    through one that was changed while Ray ran on it.

    Raises:
        UserError: the nodes that differ, all of them.
    """
    ours = this_node()
    faults = [
        Fault(
            f"node {report.address}",
            f"runs {_versions(report)}, this command {_versions(ours)}",
            "install the same on all nodes (clusters/constraints.txt) and start Ray there again",
        )
        for report in reports
        if _compared(report) != _compared(ours)
    ]
    if faults:
        raise UserError(faults)


def largest_cluster(now: Mapping[str, float], reports: Sequence[NodeReport]) -> dict[str, float]:
    """Resources of the cluster once its autoscaler has made all it may; it grows by demand.

    Args:
        now: what it has, the head's own included.
        reports: of its nodes.
    """
    largest = dict(now)
    for report in reports:
        for kind, amount in report.most_workers.items():
            largest[kind] = max(largest.get(kind, 0.0), amount)
    return largest


def smallest_gpu(reports: Sequence[NodeReport]) -> int | None:
    """Bytes of the smallest GPU of any node; None where there is none."""
    return min((report.gpu_bytes for report in reports if report.gpu_bytes), default=None)


def _unfit(address: str, error: RayError) -> Fault:
    silent = isinstance(error, ray.exceptions.GetTimeoutError)
    reason = f"no answer within {_TIMEOUT_S:g} s" if silent else first_line(error)
    return Fault(f"node {address}", f"cannot run a task: {reason}", "repair it or take it out")


def _versions(report: NodeReport) -> str:
    return f"Ray {report.ray} and Python {report.python}"


def _compared(report: NodeReport) -> tuple[str, list[str]]:
    """Python's bug-fix releases understand each other, where Ray has let them in."""
    return report.ray, report.python.split(".")[:2]
