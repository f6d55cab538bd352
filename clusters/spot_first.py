"""Start spot nodes first, and on-demand ones while the cloud has no spot capacity.

The cluster files name `score` as the rule by which Ray's autoscaler (v1) chooses the type of the
next node. Ray's own rule only considers resources: of a spot and an on-demand type with the same
resources it asks for one forever, whether there is capacity or not (ray #20774, #53636).
"""

from __future__ import annotations

from typing import Any

from trainables.compat.ray import utilization_score


def score(
    node_resources: dict[str, float],
    demands: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[bool, Any, bool] | None:
    """Score a node type for what pending trials ask for; the highest is started next.

    Returns:
        Whether it is available (not refused within Ray's half hour), Ray's own score, and whether
        it is spot, so its name ends in `_spot`; None if it serves none of the demands.
    """
    own = utilization_score(node_resources, demands, node_type, node_availability_summary)
    if own is None:
        return None
    launches = node_availability_summary.node_availabilities
    refused = node_type in launches and not launches[node_type].is_available
    return not refused, own, node_type.endswith("_spot")
