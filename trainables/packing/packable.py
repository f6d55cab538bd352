"""Whether trials can share a base in one batch, and which of its layers are adapted."""

from __future__ import annotations

from functools import partial
from typing import Any

import peft
import torch

from trainables.errors import first_line
from trainables.evaluation.model_limits import rotations
from trainables.methods import Method
from trainables.models.adapter import Adapted

_SEQUENCES = (2, 3)  # of the passes that show what it does: how many, and their tokens


class NotPackable(Exception):
    """The base would let trials in one batch affect each other; the message says how."""


def resolve_targets(base: Any, method: Method) -> tuple[list[str], peft.PeftConfig]:
    """The names of the layers that PEFT adapts, and its configuration with them resolved.

    Raises:
        NotPackable: PEFT refuses, or adapts parameters outside linear layers, such as experts'.
    """
    try:
        with torch.random.fork_rng():
            adapted = Adapted(base, method, steps=1)
    except ValueError as error:
        raise NotPackable(f"PEFT says: {first_line(error)}") from error
    names = list(adapted.model.base_model.targeted_module_names)
    parameters = list(adapted.model.base_model.targeted_parameter_names)
    resolved = adapted.model.peft_config["default"]
    adapted.remove()
    if parameters:
        raise NotPackable(f"{parameters[0]} is adapted, and is no linear layer's")
    return names, resolved


def check_packable(base: Any, names: list[str], longest: int) -> None:
    """Check that the base keeps sequences independent and adapts only plain linear layers.

    All of these layers, of the `names`, must be in its dtype, which the adapters of a group compute
    in. `longest`: tokens of the longest sequence.

    Raises:
        NotPackable: it does not.
    """
    for name in names:
        if base.get_submodule(name) is base.get_output_embeddings():
            raise NotPackable(f"layer {name} is the output head, which TRL trains no adapter of")
        kind, weight = type(base.get_submodule(name)), base.get_submodule(name).weight
        if kind is not torch.nn.Linear and kind.__name__ != "Linear4bit":
            raise NotPackable(f"layer {name} is a {kind.__name__}, not a plain linear layer")
        if kind is torch.nn.Linear and weight.dtype != base.dtype:  # packed ones compute in it
            raise NotPackable(f"layer {name} is in {weight.dtype}, the base in {base.dtype}")
    _check_pass(base, names)
    _check_positions(base, longest)


def _check_pass(base: Any, names: list[str]) -> None:
    """Check that a pass in training draws no random numbers and shows layers whole sequences.

    Mixture experts, for example, get the tokens of several sequences in one flat batch; and in
    training some compute with a layer's weight alone.
    """
    shapes: dict[str, torch.Size] = {}

    def note(name: str, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        shapes.setdefault(name, inputs[0].shape)

    hooks = [
        base.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in names
    ]
    try:
        in_training = _random_state_after_pass(base.train())
    finally:
        base.eval()
        for hook in hooks:
            hook.remove()
    # By dropout, noise in a router, or whatever it has: each has an option of its own name.
    if not torch.equal(in_training, _random_state_after_pass(base)):
        raise NotPackable("the base itself draws random numbers in training, as for dropout")
    for name in names:
        if tuple(shapes.get(name, ())[:2]) != _SEQUENCES:
            raise NotPackable(f"layer {name} does not see whole sequences")


@torch.no_grad()
def _random_state_after_pass(base: Any) -> torch.Tensor:
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        tokens = torch.ones(_SEQUENCES, dtype=torch.long, device=base.device)
        base(input_ids=tokens, use_cache=False)
        gpu_states = [torch.cuda.get_rng_state(device) for device in devices]
        return torch.cat([torch.get_rng_state(), *gpu_states])


def _check_positions(base: Any, longest: int) -> None:
    """Some take the frequencies of all a batch's positions by the longest of its sequences."""
    config = base.config.get_text_config()
    for rope in rotations(config):
        if rope.get("rope_type") in ("longrope", "dynamic"):
            most = rope.get("original_max_position_embeddings") or config.max_position_embeddings
            if longest > most:
                raise NotPackable(
                    f"one sample above {most} tokens changes the positions of all in its batch; "
                    f"data.max_length is {longest}"
                )
