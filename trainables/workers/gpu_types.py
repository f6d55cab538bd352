"""GPUs by type, which Ray does not count: it only knows which nodes have which type.

Amounts of resources are keyed by Ray's kinds, such as `CPU` and `GPU`. GPUs of known type are
counted a second time under a kind of their own, such as `GPU:H100`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KIND = "GPU:"
_NODE_RESOURCE = "accelerator_type:"  # Ray's resource: each node with such GPUs has 1
SMALLEST_SHARE = 1e-4  # of any resource that Ray counts: a node has room for ten thousand


def gpu_kind(gpu_type: str) -> str:
    """The kind under which GPUs of a type are counted."""
    return f"{_KIND}{gpu_type}"


def type_in_kind(kind: str) -> str | None:
    """The GPU type that a kind counts; None if it is not such a kind."""
    return kind.removeprefix(_KIND) if kind.startswith(_KIND) else None


def gpu_types(node: Mapping[str, float]) -> list[str]:
    """The types of GPUs, one or none, of a node with these resources, as Ray counts them."""
    return [kind.removeprefix(_NODE_RESOURCE) for kind in node if kind.startswith(_NODE_RESOURCE)]


def counted_by_type(node: Mapping[str, float]) -> dict[str, float]:
    """A node's resources, as Ray counts them, with its GPUs a second time under their type."""
    return dict(node) | {gpu_kind(gpu_type): node.get("GPU", 0.0) for gpu_type in gpu_types(node)}


def reserved(held: Mapping[str, float]) -> dict[str, float]:
    """Ray resources to request for these amounts; a GPU type becomes a sliver of a node with it."""
    return {kind: amount for kind, amount in held.items() if type_in_kind(kind) is None} | {
        f"{_NODE_RESOURCE}{gpu_type}": SMALLEST_SHARE
        for kind in held
        if (gpu_type := type_in_kind(kind))
    }


def as_options(held: Mapping[str, float]) -> dict[str, Any]:
    """The same as options of `ray.remote`."""
    custom = reserved(held)
    cpus, gpus = custom.pop("CPU", 0.0), custom.pop("GPU", 0.0)
    memory = custom.pop("memory", None)
    return {"num_cpus": cpus, "num_gpus": gpus, "memory": memory, "resources": custom}
