"""Sharding a loaded model by DeepSpeed's ZeRO-3.

Transformers' own loading into shards gives buffers DeepSpeed's dtype, loads weights of some model
families differently, and fails for others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import deepspeed_config

from trainables.compat.deepspeed import shard_parameter
from trainables.process.collectives import agreed


def shard(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Shard the parameters, in place, and cast them to the dtype that DeepSpeed trains in.

    Every worker calls it. The first worker's values are sent one parameter at a time; the models of
    the others may be hollow. Buffers keep their dtype.
    """
    from deepspeed import zero

    # Files may have a tied weight twice, equal or not. A hollow model cannot see that, and its
    # worker would hang with a parameter more or less.
    model.all_tied_weights_keys = agreed(model.all_tied_weights_keys)
    model.tie_weights(recompute_mapping=False)
    shards: Any = zero.Init(module=nn.Module(), config_dict_or_path=deepspeed_config())
    for buffer in model.buffers():
        _put(buffer, shards.local_device, buffer.dtype)
        torch.distributed.broadcast(buffer.data.view(-1).view(torch.uint8), src=0)
    for parameter in model.parameters():
        is_cast = parameter.is_floating_point()
        _put(parameter, shards.local_device, dtype if is_cast else parameter.dtype)
        shard_parameter(shards, parameter)


def _put(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> None:
    """Move a tensor in place; a meta tensor is allocated."""
    if tensor.is_meta:
        room = torch.empty(tensor.shape, device=device, dtype=dtype)
        if isinstance(tensor, nn.Parameter):
            room = nn.Parameter(room, tensor.requires_grad)
        torch.utils.swap_tensors(tensor, room)
    else:
        tensor.data = tensor.data.to(device, dtype).contiguous()
