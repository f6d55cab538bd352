"""The names of a decoder's matrices: in memory, where PEFT finds them, and in files.

Transformers renames weights as it loads and saves them, and builds some, such as stacked experts,
from several.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, rename_source_key


def decoder_matrices(model: Any, in_files: Iterable[str]) -> dict[str, str]:
    """The name in memory of each matrix in the decoder's layers, and its name in files.

    Left out are other weights, such as those of a vision tower, and those that the files hold in
    another form. The model is the base, with weights or hollow; the names `in_files` are those of
    its weights, or of a tuned copy's, as saved.
    """
    weights = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    converters = [step for step in transforms if isinstance(step, WeightConverter)]
    renamings = [step for step in transforms if not isinstance(step, WeightConverter)]
    decoder = model.get_decoder()
    (path,) = (name for name, module in model.named_modules() if module is decoder)
    prefix = f"{path}." if path else ""
    found = {}
    for name in in_files:
        in_memory, converter = rename_source_key(
            name, renamings, converters, model.base_model_prefix, weights
        )
        is_in_layers = in_memory.startswith(prefix) and layer_of(in_memory) is not None
        is_as_saved = converter is None and in_memory in weights
        if is_in_layers and is_as_saved and weights[in_memory].ndim == 2:
            found[in_memory] = name
    return found


def layer_of(name: str) -> int | None:
    """The first number in a dotted name; None for weights outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
