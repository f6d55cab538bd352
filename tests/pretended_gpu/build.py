"""Compiles the device against the installed torch, which must be a build without CUDA."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).parent / "device.cpp"
NAME = "pretended_gpu_device"


def obstacle() -> str | None:
    """Why there can be no pretended GPU here; None if there can be one."""
    if (_torch() / "lib/libtorch_cuda.so").exists():
        return "torch is built with CUDA"
    return None if shutil.which("g++") else "g++ is not installed"


def built() -> Path:
    """The folder of the module `NAME`, which is compiled if it has not been with this torch.

    Torch is not imported: the module takes the place of parts of it, and so must be loaded first.
    """
    content = SOURCE.read_bytes() + version("torch").encode()
    folder = Path(sys.prefix) / "pretended_gpu" / hashlib.sha256(content).hexdigest()[:16]
    module = folder / f"{NAME}.so"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / "unfinished.so"
        subprocess.run(_command(unfinished), check=True)
        unfinished.rename(module)
    return folder


def _torch() -> Path:
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _command(module: Path) -> list[str]:
    torch = _torch()
    headers = [torch / "include", torch / "include/torch/csrc/api/include"]
    headers.append(Path(sysconfig.get_paths()["include"]))
    return [
        *("g++", "-std=c++20", "-O1", "-w", "-fPIC", "-shared", f"-DTORCH_EXTENSION_NAME={NAME}"),
        *(f"-I{folder}" for folder in headers),
        *(str(SOURCE), "-o", str(module), f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}"),
        *("-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]
