"""DeepSpeed, tried with 0.19.7 and 0.19.8."""

from __future__ import annotations

from inspect import getclosurevars, isfunction
from typing import Any


def shard_parameter(shards: Any, parameter: Any) -> None:
    """Send rank 0's values of a parameter to all workers, and keep this worker's part.

    Args:
        shards: a `deepspeed.zero.Init`.
        parameter: a parameter with values on rank 0 and room for them elsewhere.

    Why: `zero.Init(module=...)` shards a whole model at once, which must fit before.
    Upstream: none.
    """
    shards._convert_to_zero_parameters([parameter])


def forget_modules() -> None:
    """Release modules, and so all of the training, that ZeRO-3 keeps for the process's lifetime.

    Why: they are in a list of computing modules, from which the outermost is never removed, and are
    keys in a method's cache, so that a second trial in a process runs out of memory. Upstream:
    deepspeedai/DeepSpeed#5143 for stage 2, open.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    for method in vars(PartitionedParameterCoordinator).values():
        if isfunction(method):
            for wrapped in getclosurevars(method).nonlocals.values():
                if hasattr(wrapped, "cache_clear"):
                    wrapped.cache_clear()


def link_optimizer_states(optimizer: Any) -> None:
    """Link a ZeRO 1 or 2 optimizer's moments to the parameters that they are of.

    Why: before the first step none are linked, and after it only those of the first parameter
    group, so that `safe_get_full_optimizer_state` finds no others. Upstream: none.
    """
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO holds a parameter's values elsewhere.

    Why: `ds_id` marks those of ZeRO-3 alone. Upstream: none.
    """
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
