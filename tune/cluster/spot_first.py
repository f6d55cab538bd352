"""Spot nodes first, on-demand ones while there is no spot capacity.

`cluster.yaml` names `score` as the rule by which Ray's autoscaler (v1) chooses the type of the next
node. Ray's own rule considers only resources, so if a spot and an on-demand instance offer the same
it asks for one of them forever, whether there is capacity or not (ray #20774, #53636).
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

_SPOT = "_spot"


def score(
    node_resources: dict[str, float],
    demands: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[bool, Any, bool] | None:
    """How well a node type serves the demands: the type with the highest score is launched next.

    A type is passed over for half an hour (Ray's `AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S`)
    after the cloud refused to launch it.

    Args:
        node_resources: what a node of the type offers.
        demands: what pending trials ask for.
        node_type: its name in `available_node_types`; the name of a spot type ends in `_spot`.
        node_availability_summary: Ray's record of attempted launches.

    Returns:
        Whether it is available, Ray's own score, whether it is spot; None if it serves none of
        the demands.
    """
    own = _default_utilization_scorer(
        node_resources, demands, node_type, node_availability_summary=node_availability_summary
    )
    if own is None:
        return None
    launches = node_availability_summary.node_availabilities
    refused = node_type in launches and not launches[node_type].is_available
    return not refused, own, node_type.endswith(_SPOT)
