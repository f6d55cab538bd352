"""Has Tune take processes that Ray kills for want of memory for lost ones, like any other.

Ray has a type of error of its own for them, which Tune does not know: it would end the whole sweep
with "Caught unexpected exception".
"""

from __future__ import annotations

from ray.air.execution._internal import actor_manager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller


def take_for_losses() -> None:
    """Have Tune take them for lost processes, for as long as this process lives."""
    for module in (actor_manager, tune_controller):
        module.RayActorError = (RayActorError, OutOfMemoryError)
