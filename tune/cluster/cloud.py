"""The door to what only growing clusters need, which is in `clusters/`, outside the packages."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import ray

_SCRIPT = Path(__file__).resolve().parents[2] / "clusters" / "autoscaler_limits.py"


class Limits(NamedTuple):
    """How far the autoscaler may grow the cluster; empty if none runs on this node, the head.

    Attributes:
        most: resources of all workers that it may start.
        types: resources of one worker of each type.
    """

    most: dict[str, float]
    types: list[dict[str, float]]


def autoscaler_limits() -> Limits:
    """The limits of this cluster's autoscaler."""
    return Limits(*_call("limits", ({}, [])))


def last_launch_failure() -> str | None:
    """Why the autoscaler could not start the last node it tried, if so."""
    failure: str | None = _call("last_failure", None)
    return failure


def _call(function: str, default: Any) -> Any:
    call = _functions().get(function)
    return call(ray.get_runtime_context().gcs_address) if call else default


@lru_cache
def _functions() -> dict[str, Callable[[str], Any]]:
    return runpy.run_path(str(_SCRIPT)) if _SCRIPT.exists() else {}
