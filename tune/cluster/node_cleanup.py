"""Removes what the trials of a sweep in an object store have left on the nodes.

They do so themselves, but Ray may end the workers of the last one before they are done.
"""

from __future__ import annotations

from collections.abc import Iterable

import ray

from trainables.records.record_paths import SweepFolder
from trainables.records.schema import ENDED_WELL, TrialRecord
from trainables.workers.node import on_node
from trainables.workers.ray_tasks import clear_trials

_TIMEOUT_S = 30.0


def clear_nodes(folder: SweepFolder, records: Iterable[TrialRecord]) -> None:
    """Clear all nodes of trials that ended well; a node that does not answer is left alone."""
    ended = [record for record in records if record.status in ENDED_WELL]
    addresses = [folder.absolute(folder.attempts(record)[-1]) for record in ended]
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    clearing = [on_node(clear_trials, node).remote(addresses) for node in nodes]
    ray.wait(clearing, num_returns=len(clearing), timeout=_TIMEOUT_S)
