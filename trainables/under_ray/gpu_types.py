"""GPUs by type, which Ray does not count: of each type it knows but the nodes that have it.

Amounts of resources have Ray's kinds here, such as `CPU` and `GPU`. GPUs whose type is known are
counted a second time under a kind of that type, such as `GPU:H100`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KIND = "GPU:"
_OF_NODE = "accelerator_type:"  # Ray's resource, of which each node with such GPUs has 1
_SLIVER = 1e-4  # the smallest share that Ray counts: a node has room for thousands


def kind_of(gpu_type: str) -> str:
    """The kind under which GPUs of a type are counted."""
    return f"{_KIND}{gpu_type}"


def type_of(kind: str) -> str | None:
    """The type whose GPUs a kind counts; None where it is no such kind."""
    return kind.removeprefix(_KIND) if kind.startswith(_KIND) else None


def gpu_types(node: Mapping[str, float]) -> list[str]:
    """The types of a node's GPUs, which is one or none.

    Args:
        node: its resources, as Ray counts them.
    """
    return [kind.removeprefix(_OF_NODE) for kind in node if kind.startswith(_OF_NODE)]


def counted_by_type(node: Mapping[str, float]) -> dict[str, float]:
    """The resources of a node, its GPUs a second time under their type.

    Args:
        node: as Ray counts them.
    """
    return dict(node) | {kind_of(gpu_type): node.get("GPU", 0.0) for gpu_type in gpu_types(node)}


def reserved(held: Mapping[str, float]) -> dict[str, float]:
    """What to ask of Ray for a process that holds so much: where a type matters, a node with it."""
    return {kind: amount for kind, amount in held.items() if type_of(kind) is None} | {
        f"{_OF_NODE}{gpu_type}": _SLIVER for kind in held if (gpu_type := type_of(kind))
    }


def as_options(held: Mapping[str, float]) -> dict[str, Any]:
    """The same as options of `ray.remote`."""
    custom = reserved(held)
    cpus, gpus = custom.pop("CPU", 0.0), custom.pop("GPU", 0.0)
    return {"num_cpus": cpus, "num_gpus": gpus, "resources": custom}
