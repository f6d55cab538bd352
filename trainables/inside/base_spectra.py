"""Left singular vectors of the base's matrices: computed once per node, used by every trial.

On disk, below `model.node_cache()`, they take about 1.3 times the model in float32 (8 B
parameters: 20 GiB of vectors); computing them takes one decomposition per matrix,
O(min(O, I)^3). Reading or computing, one matrix is in memory at a time.
"""

from __future__ import annotations

import torch
from filelock import FileLock
from safetensors.torch import load_file

from trainables.files.locations import node_cache
from trainables.inside.spectra import dense_spectrum
from trainables.inside.weights import save_whole


def left_vectors(fingerprint: str, name: str, base_OI: torch.Tensor) -> torch.Tensor:
    """All left singular vectors of a matrix by descending singular value, float32, on its device.

    `fingerprint`: of the base model's content and dtype.
    """
    folder = node_cache() / "spectra" / _file_name(fingerprint)
    file = folder / f"{_file_name(name)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)  # for the lock
    with FileLock(f"{file}.lock"):
        if not file.exists():
            left_OK = dense_spectrum(base_OI).left_OK.float().contiguous()
            save_whole(file, {"left": left_OK.cpu()})
            return left_OK
    return load_file(file)["left"].to(base_OI.device)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
