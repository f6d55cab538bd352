"""Local paths: of files that packages carry, of users, and of the node's cache."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

PACKAGE_SCHEME = "package://"
RELATIVE = (
    "paths are relative to the sweep file's folder; with ${...} or --set, to where the command runs"
)


def resolve(location: str) -> str:
    """Turn `package://PACKAGE/FILE` into a path; leave anything else as it is.

    Raises:
        ModuleNotFoundError: the package is not installed here.
    """
    if not location.startswith(PACKAGE_SCHEME):
        return location
    package, _, inside = location.removeprefix(PACKAGE_SCHEME).partition("/")
    outer, *inner = package.split(".")
    # Unlike importlib.resources, or asking for an inner package, this does not run their code.
    spec = find_spec(outer) if outer else None
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {package!r} is not installed (pip install it)")
    found = [Path(folder, *inner, inside) for folder in spec.submodule_search_locations]
    return str(next((path for path in found if path.exists()), found[0]))


def expanded(path: str) -> Path:
    """The path with the home for `~`; a `~NAME` of a user that there is not stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises


def absence(path: Path, kind: str) -> str | None:
    """Why nothing can be read there, such as `no such file` for the kind `file`; else None."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return f"no such {kind}"
    except OSError as error:  # such as a folder that this user may not enter
        return f"cannot be read ({error.strerror})"
    return None


def is_local(location: str) -> bool:
    """Whether the location names a file or folder rather than something on a hub, by its text."""
    return location.startswith((PACKAGE_SCHEME, "/", "./", "../", "~")) or location.endswith(
        (".jsonl", ".parquet", ".gguf", ".json", ".txt", ".csv", ".tsv", ".gz")
    )


def direct(path: str) -> str:
    """A path without `..` if that names the same file, or one in the same folder.

    Links stay: on another machine they may lead elsewhere.
    """
    plain = os.path.normpath(path)
    for before, after in ((path, plain), map(os.path.dirname, (path, plain))):
        with suppress(OSError, ValueError):  # no such file, as other texts that begin like paths
            return plain if os.path.samefile(before, after) else path  # noqa: PTH121 - of texts
    return path


def node_cache() -> Path:
    """Folder on this node for files that are made once and can be made again."""
    root = os.environ.get("FORGETTING_SWEEPS_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "forgetting-sweeps"
