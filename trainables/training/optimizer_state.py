"""The trained parameters, the optimizer's moments and its steps, as whole tensors.

They are read and restored under the parameter's name whatever wraps the optimizer: nothing,
mixed precision's fp32 copies, or ZeRO's partitions at any stage on any number of workers.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from trainables.compat.deepspeed import is_partitioned, link_optimizer_states
from trainables.errors import TrialError
from trainables.process.collectives import is_first_worker

_MOMENTS = ("exp_avg", "exp_avg_sq")
# DeepSpeed's names: at stage 3, at 1 and 2, and at 1 in bfloat16 with gradients in fp32.
_PARTITIONS = (
    "fp32_partitioned_groups_flat",
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
)


class CannotResume(TrialError):
    """The state of this optimizer cannot be restored from a checkpoint."""


def read(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU, 12 bytes per parameter; every worker calls it.

    Returns:
        On the first worker `parameter/{name}` and the moments `exp_avg/{name}` and
        `exp_avg_sq/{name}`, in fp32; on all `steps`, which the optimizer has done, and
        `step/{name}` of parameters with their own count.
    """
    tensors: dict[str, torch.Tensor] = {}
    is_kept = is_first_worker()
    _link_moments(optimizer)
    for name, parameter in _trained(model):
        for kind in (None, *_MOMENTS):
            value = _get(parameter, kind, optimizer)
            if is_kept and value is not None:
                tensors[f"{kind or 'parameter'}/{name}"] = _on_cpu(value)
    states = _base_optimizer(optimizer).state.values()
    counts = [float(state["step"]) for state in states if "step" in state]
    tensors["steps"] = torch.tensor(max(counts, default=0.0))
    for name, state in _own_states(model, optimizer).items() if is_kept else ():
        if "step" in state:
            tensors[f"step/{name}"] = torch.tensor(float(state["step"]))
    return tensors


def restore(model: Any, optimizer: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Restore what `read` gave; every worker calls it.

    Raises:
        KeyError: the tensors belong to another model or adapter.
        CannotResume: the optimizer updates tensors of its own that belong to no known parameter.
    """
    steps = int(tensors["steps"])
    _check_all_is_known(model, optimizer)
    _link_moments(optimizer)
    for name, parameter in _trained(model):
        _set(parameter, tensors[f"parameter/{name}"], None, optimizer)
        for moment in _MOMENTS:
            key = f"{moment}/{name}"
            if key in tensors:
                _set(parameter, tensors[key], moment, optimizer)
    set_steps(optimizer, steps)
    for name, state in _own_states(model, optimizer).items():
        if (own := tensors.get(f"step/{name}")) is not None:
            state["step"].fill_(own)


def set_steps(optimizer: Any, steps: int) -> None:
    """Set how many steps the optimizer has done, for its bias correction."""
    for state in _base_optimizer(optimizer).state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(steps)  # in place: the tensor may be shared
        elif "step" in state:
            state["step"] = torch.tensor(float(steps))


def restart(optimizer: Any) -> None:
    """Set all moments and step counts to zero, as those of a new optimizer."""
    for state in _base_optimizer(optimizer).state.values():
        for moment in _MOMENTS:
            if moment in state:
                state[moment].zero_()
    set_steps(optimizer, 0)


def _own_states(model: Any, optimizer: Any) -> dict[str, dict[str, Any]]:
    """The optimizer's states by parameter; those partitioned by ZeRO have none.

    A parameter without a gradient in some steps, such as an expert without tokens, has its own
    step count.
    """
    states = _base_optimizer(optimizer).state
    own = [(name, p) for name, p in _trained(model) if not is_partitioned(p)]
    return {name: states.get(_master(parameter, optimizer), {}) for name, parameter in own}


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _link_moments(optimizer: Any) -> None:
    """Create ZeRO's moments, if need be, and link its parameters to them.

    DeepSpeed 0.19 creates them at the first step; ZeRO 1 and 2 then link only those of the first
    parameter group.
    """
    *wrappers, base = _unwrapped(optimizer)
    for wrapper in wrappers:
        for partition in _partitions(wrapper):
            if not base.state[partition]:
                moments = {moment: torch.zeros_like(partition) for moment in _MOMENTS}
                base.state[partition] = {**moments, "step": step_counter(base, partition)}
        link_optimizer_states(wrapper)


def _partitions(wrapper: Any) -> list[Any]:
    """This worker's partitions of the fp32 parameters, which ZeRO's optimizer updates."""
    return [partition for name in _PARTITIONS for partition in getattr(wrapper, name, ())]


def _check_all_is_known(model: Any, optimizer: Any) -> None:
    """Check that every tensor that the optimizer updates can be restored.

    Without a wrapper it updates the parameters themselves.
    """
    *wrappers, base = _unwrapped(optimizer)
    if not wrappers:
        return
    known = [partition for wrapper in wrappers for partition in _partitions(wrapper)]
    whole = [parameter for _, parameter in _trained(model) if not is_partitioned(parameter)]
    known += [_master(parameter, optimizer) for parameter in whole]
    updated = {id(tensor) for group in base.param_groups for tensor in group["params"]}
    if not updated <= set(map(id, known)):
        names = " around ".join(type(each).__name__ for each in (*wrappers, base))
        raise CannotResume(
            "deepspeed.config: must not have an optimizer whose state cannot be restored from a "
            f"checkpoint, got {names}; leave out its section `optimizer`"
        )


def _get(parameter: Any, moment: str | None, optimizer: Any) -> Any:
    if is_partitioned(parameter):
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if moment is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, moment)
    master = _master(parameter, optimizer)
    state = _base_optimizer(optimizer).state.get(master, {})
    return master.data if moment is None else state.get(moment)


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    layout = torch.contiguous_format
    return value.detach().to("cpu", torch.float32, copy=True, memory_format=layout)


def _master(parameter: Any, optimizer: Any) -> Any:
    """The tensor that the optimizer updates: at stage 0 in bfloat16 an fp32 copy."""
    for wrapper in _unwrapped(optimizer)[:-1]:
        if hasattr(wrapper, "fp32_groups"):
            pairs = zip(chain(*wrapper.fp16_groups), chain(*wrapper.fp32_groups), strict=True)
            return next(master for working, master in pairs if working is parameter)
    return parameter


def _set(parameter: Any, value: torch.Tensor, moment: str | None, optimizer: Any) -> None:
    if is_partitioned(parameter):
        _set_partition(parameter, value, moment)
        if moment is None:
            _set_working_copy(parameter, value)
        return
    base, master = _base_optimizer(optimizer), _master(parameter, optimizer)
    if moment is None:
        master.data.copy_(value)
        parameter.data.copy_(value)
        return
    state = base.state[master]
    if moment not in state:
        state[moment] = torch.zeros_like(master.data)
    if "step" not in state:
        state["step"] = step_counter(base, master)
    state[moment].copy_(value)


def _set_partition(parameter: Any, value: torch.Tensor, moment: str | None) -> None:
    """Set this worker's part of the fp32 parameter, or of its moment."""
    from deepspeed import utils

    if hasattr(parameter, "ds_id"):  # stage 3, whose parts may be longer than the whole
        partition = _partition(parameter, value)
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, partition)
        else:
            utils.safe_set_local_optimizer_state(parameter, partition, moment)
    elif moment is None:
        utils.safe_set_full_fp32_param(parameter, value)
    else:
        utils.safe_set_full_optimizer_state(parameter, value, moment)


def _partition(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """This worker's part of a whole value, padded with zeros."""
    size = parameter.partition_numel()
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    ours = value.flatten()[start : start + size]
    return torch.nn.functional.pad(ours, (0, size - len(ours)))


def step_counter(optimizer: Any, parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's step counter, at 0, on the device where torch's optimizers create it."""
    is_on_device = any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups)
    return torch.zeros((), device=parameter.device if is_on_device else "cpu")


def _set_working_copy(parameter: Any, value: torch.Tensor) -> None:
    """Set the copy for forward passes, which ZeRO updates from fp32 only at the next step."""
    if not hasattr(parameter, "ds_id"):
        parameter.data.copy_(value)
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.data.copy_(value)


def _base_optimizer(optimizer: Any) -> Any:
    return _unwrapped(optimizer)[-1]


def _unwrapped(optimizer: Any) -> list[Any]:
    """Accelerate's and DeepSpeed's wrappers from the outside in, the torch optimizer last."""
    chain = [optimizer]
    while hasattr(chain[-1], "optimizer"):
        chain.append(chain[-1].optimizer)
    return chain
