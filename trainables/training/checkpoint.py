"""Checkpoints of a trial: written atomically, verified on reading, no pickle.

A checkpoint is a folder `step_00000040` with

    training.safetensors     each trained parameter in fp32, its moments and its steps, and the
                             method's own state; a large one is split into
                             `training-00001-of-00003.safetensors` and so on
    random_0.safetensors     random state of rank 0, and so on
    progress.json            step, scheduler, measurements so far
    files.json               size and digest of all of the above; written last
    evaluated.json           measurements so far, after the evaluation of the step

Parameters and moments are stored whole under the parameter's name, whatever the ZeRO stage or the
number of workers, so that another group of workers can resume.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

from trainables.methods import Method
from trainables.process.collectives import from_each, is_first_worker
from trainables.storage.disk import whole_folder
from trainables.training import optimizer_state, random_state
from trainables.training.checkpoint_files import FILES, digest

_TRAINING = "training{suffix}.safetensors"
_RANDOM = "random_{rank}.safetensors"
_MOST_IN_A_FILE = "32GB"  # pyarrow uploads 10,000 parts of 10 MiB at most to S3
_PROGRESS = "progress.json"
_EXTRA = "method/"


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    Attributes:
        step: optimizer steps done.
        tokens_seen: input tokens trained on.
        scheduler: state of the learning-rate scheduler.
        carried: state of the measurements, and the best evaluation so far.
    """

    step: int
    tokens_seen: int
    scheduler: dict[str, Any]
    carried: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A copy of a training's state, unaffected by what the training does next.

    Attributes:
        tensors: parameters, moments and the method's own state, whole, on the CPU.
        random: each worker's random state, by rank.
        progress: how far the training has come.
    """

    tensors: dict[str, torch.Tensor]
    random: list[dict[str, torch.Tensor]]
    progress: Progress


def take(model: Any, optimizer: Any, progress: Progress, method: Method) -> Snapshot:
    """Copy a training's state; every worker calls it, and only the first gets the tensors."""
    tensors = optimizer_state.read(model, optimizer)
    extra = method.extra_state(model) if is_first_worker() else {}
    for name, tensor in extra.items():
        tensors[f"{_EXTRA}{name}"] = tensor.detach().to("cpu", copy=True).contiguous()
    return Snapshot(tensors, from_each(random_state.read()), progress)


def write(checkpoint: Path, snapshot: Snapshot, is_scratch: bool = False) -> None:
    """Write a snapshot, on the first worker; `newest_valid` finds it once it is complete."""
    with whole_folder(checkpoint, is_scratch=is_scratch) as folder:
        files = split_torch_state_dict_into_shards(
            snapshot.tensors, filename_pattern=_TRAINING, max_shard_size=_MOST_IN_A_FILE
        )
        for name, keys in files.filename_to_tensors.items():
            save_file({key: snapshot.tensors[key] for key in keys}, folder / name)
        for rank, state in enumerate(snapshot.random):
            save_file(state, folder / _RANDOM.format(rank=rank))
        (folder / _PROGRESS).write_text(json.dumps(vars(snapshot.progress)))
        digests = {file.name: digest(file) for file in sorted(folder.iterdir())}
        (folder / FILES).write_text(json.dumps(digests, indent=1))


def load_progress(checkpoint: Path) -> Progress:
    """How far the training was at the checkpoint."""
    return Progress(**json.loads((checkpoint / _PROGRESS).read_text()))


def load_training_state(checkpoint: Path, model: Any, optimizer: Any, method: Method) -> None:
    """Restore the method's own state, parameters and optimizer moments.

    Raises:
        KeyError: the checkpoint belongs to another model or adapter.
        CannotResume: see `optimizer_state.restore`.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob(_TRAINING.format(suffix="*"))):
        tensors |= load_file(file)
    extra = {key: tensors.pop(key) for key in list(tensors) if key.startswith(_EXTRA)}
    method.load_extra_state(model, {key.removeprefix(_EXTRA): extra[key] for key in extra})
    optimizer_state.restore(model, optimizer, tensors)


def load_random_state(checkpoint: Path, rank: int) -> dict[str, torch.Tensor] | None:
    """That worker's random state; None if the checkpoint is of fewer workers."""
    file = checkpoint / _RANDOM.format(rank=rank)
    return load_file(file) if file.exists() else None
