"""Sharding a model by DeepSpeed's ZeRO-3 that was loaded as any other is.

Transformers has a way of its own to load into shards. It gives buffers DeepSpeed's dtype, loads
weights of some families otherwise than it usually does, and fails on others.
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
    """Leave this worker its shard of each parameter, and all buffers. Every worker calls it.

    The first worker's values count, sent one parameter at a time; models of others may be hollow.

    The model is changed in place, its parameters to the dtype that DeepSpeed trains all of them in,
    as at its other stages; buffers keep theirs.
    """
    from deepspeed import zero

    # Files may hold a weight under both its names, alike or not: a hollow model cannot tell, and
    # with a parameter more or less its worker would wait for ever.
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
    """Move a tensor in place, contiguous; one without values gets room for them."""
    if tensor.is_meta:
        room = torch.empty(tensor.shape, device=device, dtype=dtype)
        if isinstance(tensor, nn.Parameter):
            room = nn.Parameter(room, tensor.requires_grad)
        torch.utils.swap_tensors(tensor, room)
    else:
        tensor.data = tensor.data.to(device, dtype).contiguous()
