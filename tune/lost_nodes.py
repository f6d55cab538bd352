"""Whether a process was lost with its node, or died by itself."""

from __future__ import annotations

import time

import ray

_LOOK_EVERY_S = 10.0
_ASK_AGAIN_S = 0.2
# Ray loses sight of a process at once, and takes its node for dead a little later.
_NODE_IS_DEAD_AFTER_S = 10.0
# Ray says so in its text alone, which comes through where a trial passes on what it met with.
_NODE_DIED = "its node has died"
_OUT_OF_SIGHT = "unavailable"


class LostNodes:
    """Remembers which nodes are up, and so knows when one is lost."""

    def __init__(self) -> None:
        self._up: set[str] = set()  # at the last look
        self._before: set[str] = set()  # at the one before: a node may go just before a look
        self._looked = float("-inf")

    def look(self) -> None:
        """See which nodes are up; asks no more than every few seconds."""
        if time.monotonic() - self._looked >= _LOOK_EVERY_S:
            self._before, self._up = self._up, _nodes_that_are_up()
            self._looked = time.monotonic()

    def took(self, error: Exception | None) -> bool:
        """Whether what ended a process was the end of its node.

        Of a process that Ray has only lost sight of, a node that is lost at the same time is taken
        for the reason.
        """
        said = str(error or "").strip()
        if _NODE_DIED in said:
            return True
        # Of a process that is out of sight Tune may have no words at all.
        if said and _OUT_OF_SIGHT not in said:
            return False
        deadline = time.monotonic() + _NODE_IS_DEAD_AFTER_S
        while time.monotonic() < deadline:
            if (self._before | self._up) - _nodes_that_are_up():
                return True
            time.sleep(_ASK_AGAIN_S)
        return False


def _nodes_that_are_up() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
