"""Checks of every node before a trial is spent: one task per node, all in parallel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError

from trainables.compat.ray import draining_nodes
from trainables.errors import Fault, UserError, first_line
from trainables.records.ledger import cannot_write
from trainables.records.record_paths import SweepFolder
from trainables.records.schema import ENDED_WELL, TrialRecord
from trainables.storage.storage import Location, open_storage
from trainables.workers.gpu_types import counted_by_type
from trainables.workers.node import SHARE_STORAGE, NodeReport, on_node, report_node, this_node
from trainables.workers.ray_tasks import clear_trials

_TIMEOUT_S = 60.0
_CLEANUP_S = 30.0
_HEAD = "node:__internal_head__"  # Ray's resource of that node


def ask_nodes(location: Location, paths: list[str]) -> list[NodeReport]:
    """Reports of all nodes that are up and not draining, on the sweep's folder and these paths.

    Raises:
        UserError: a node cannot run a task or does not answer within a minute.
    """
    with marker_in(location) as marker:
        place = str(location.absolute() if isinstance(location, Path) else location)
        return _ask(place, marker, paths)


@contextmanager
def marker_in(location: Location) -> Iterator[str]:
    """The name of a file that exists in a folder of the sweep within this context.

    Raises:
        UserError: the folder cannot be written to.
    """
    name = f".seen_by_nodes.{uuid4().hex}"
    try:
        storage = open_storage(location)
        storage.write(name, b"")
    except OSError as error:
        raise cannot_write(location, error) from error
    try:
        yield name
    finally:
        with suppress(OSError):  # it does no harm; where nothing may be deleted, the nodes say so
            storage.remove(name)


def _ask(location: str, marker: str, paths: list[str]) -> list[NodeReport]:
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in _staying()}
    questions = {node: on_node(report_node, node).remote(location, marker, paths) for node in nodes}
    ray.wait(list(questions.values()), num_returns=len(questions), timeout=_TIMEOUT_S)
    still_up = {node["NodeID"] for node in _staying()}
    reports, faults = [], []
    for node in still_up & questions.keys():
        try:
            reports.append(ray.get(questions[node], timeout=0))
        except RayError as error:
            faults.append(_unfit(nodes[node], error))
    if faults:
        raise UserError(sorted(faults, key=str))
    return reports


def check_nodes(reports: Sequence[NodeReport], location: Location) -> None:
    """Check that every node runs the driver's versions, reaches the sweep's folder and has files.

    Ray itself refuses a joining node of other versions, but not one changed while Ray runs there.

    Raises:
        UserError: nodes differ, do not reach the folder, or lack files; names all of them.
    """
    ours = this_node()
    faults = [
        Fault(
            f"node {report.address}",
            f"runs {_versions(report)}, this command {_versions(ours)}",
            "install the same on all nodes (clusters/constraints.txt) and start Ray there again",
        )
        for report in reports
        if _compatibility(report) != _compatibility(ours)
    ]
    if blind := [f"{r.address} ({r.storage_fault})" for r in reports if r.storage_fault]:
        rule = f"{len(blind)} of {len(reports)} nodes cannot use {location}: {', '.join(blind)}"
        faults.append(Fault("--output-dir", rule, SHARE_STORAGE))
    faults += [
        Fault(
            f"node {report.address}",
            f"has no {', '.join(report.absent)}",
            "put what the sweep file names where every node sees it under the same path",
        )
        for report in reports
        if report.absent
    ]
    if faults:
        raise UserError(faults)


def largest_cluster(
    nodes: Sequence[Mapping[str, float]], most_workers: Mapping[str, float]
) -> dict[str, float]:
    """Resources of the cluster at the largest its autoscaler may make it; it grows on demand.

    Args:
        nodes: resources of the nodes that are up, the head included.
        most_workers: resources of all workers that the autoscaler may start.
    """
    now: Counter[str] = Counter()
    for node in nodes:
        now.update(node)
    head = next((node for node in nodes if _HEAD in node), {})
    largest = {kind: head.get(kind, 0.0) + amount for kind, amount in most_workers.items()}
    return dict(now) | {kind: max(now[kind], amount) for kind, amount in largest.items()}


def nodes_up() -> list[dict[str, float]]:
    """Resources of each node that is up and not draining."""
    return [counted_by_type(node["Resources"]) for node in _staying()]


def _staying() -> list[dict[str, Any]]:
    """Nodes that are up and not draining."""
    leaving = draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def smallest_gpu(reports: Sequence[NodeReport], gpu_type: str | None) -> int | None:
    """Bytes of the smallest GPU of any node, or of those with a GPU type; None if none has any."""
    sizes = (
        report.gpu_bytes
        for report in reports
        if report.gpu_bytes and (gpu_type is None or gpu_type in report.gpu_types)
    )
    return min(sizes, default=None)


def clear_nodes(folder: SweepFolder, records: Iterable[TrialRecord]) -> None:
    """Remove what trials that ended well left on the nodes; one that does not answer is skipped.

    Trials clean up themselves, but Ray may end the last one's workers before they are done.
    """
    ended = [record for record in records if record.status in ENDED_WELL]
    addresses = [folder.absolute(folder.attempts(record)[-1]) for record in ended]
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    clearing = [on_node(clear_trials, node).remote(addresses) for node in nodes]
    ray.wait(clearing, num_returns=len(clearing), timeout=_CLEANUP_S)


def _unfit(address: str, error: RayError) -> Fault:
    silent = isinstance(error, ray.exceptions.GetTimeoutError)
    cause = getattr(error, "cause", None) or error
    reason = f"no answer within {_TIMEOUT_S:g} s" if silent else first_line(cause)
    return Fault(f"node {address}", f"cannot run a task: {reason}", "repair it or take it out")


def _versions(report: NodeReport) -> str:
    return f"Ray {report.ray} and Python {report.python}"


def _compatibility(report: NodeReport) -> tuple[str, list[str]]:
    """The versions to compare; Python bug-fix releases work together where Ray admits them."""
    return report.ray, report.python.split(".")[:2]
