"""The files that W&B keeps of a run: each start of the command leaves one more part of it.

What counts as logged is what `wandb sync` will upload: of a killed driver, the whole records that
were flushed. A part's torn end is cut off, since `wandb sync` uploads no part of a run that
follows a torn one.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

# LevelDB's log format, preceded by W&B's own header: blocks, in which a record is one chunk (FULL)
# or several (FIRST, MIDDLE, LAST), each preceded by its checksum, length and kind.
_FILE_HEADER_BYTES = 7
_BLOCK_BYTES = 32 * 1024
_CHUNK_HEADER = struct.Struct("<IHB")
_FULL, _LAST = 1, 4


def parts_of(folder: Path, run_id: str) -> list[Path]:
    """The parts of a run below a sweep's folder.

    Looked for only in folders with its name, since a sweep has very many others.
    """
    # W&B numbers those of the same second.
    return sorted(folder.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb"))


def was_ever_online(folder: Path) -> bool:
    """Whether a start of the sweep sent anything to W&B by itself."""
    return any(folder.glob("wandb/run-*"))


def is_offline(part: Path) -> bool:
    """Whether a part was logged for a later `wandb sync`."""
    return part.parent.name.startswith("offline-run-")


def waiting_parts(folder: Path) -> list[Path]:
    """Parts below a sweep's folder that were logged offline and are not uploaded yet."""
    parts = folder.glob("wandb/offline-run-*/run-*.wandb")
    return sorted(part for part in parts if not is_set_aside(part))


def config_of(part: Path) -> dict[str, Any]:
    """The configuration that a part's run was opened with; empty if the part is."""
    opened = (record.run.config for record in _records(part) if record.HasField("run"))
    return {entry.key: json.loads(entry.value_json) for config in opened for entry in config.update}


def steps_in(part: Path) -> list[int]:
    """The steps that a part holds, in the part's order."""
    return [record.history.step.num for record in _records(part) if record.HasField("history")]


def mend(part: Path) -> None:
    """Cut off what a killed driver or a power cut left after a part's last whole record."""
    content = part.read_bytes()
    ends = [end for end, _ in _whole_records(content)]
    whole = ends[-1] if ends else min(_FILE_HEADER_BYTES, len(content))
    if whole < len(content):
        os.truncate(part, whole)


def is_whole(part: Path) -> bool:
    """Whether a part holds its run to the end.

    W&B writes the end last, and nothing more after what it had no room for.
    """
    return any(record.HasField("exit") for record in _records(part))


def is_empty(part: Path) -> bool:
    """Whether the driver died before the part even named its run.

    A single such part makes `wandb sync` refuse everything it is given.
    """
    return not any(record.HasField("run") for record in _records(part))


def set_aside(part: Path) -> None:
    """Keep a part out of every later `wandb sync`."""
    _mark(part).touch()


def is_set_aside(part: Path) -> bool:
    """Whether no later `wandb sync` sends the part, as it was uploaded or set aside."""
    return _mark(part).exists()


def put_away(part: Path) -> None:
    """Have a part belong to its run no more; its folder is kept in `wandb/replaced/`."""
    kept = part.parents[1] / "replaced"
    kept.mkdir(exist_ok=True)
    part.parent.rename(kept / part.parent.name)


def _mark(part: Path) -> Path:
    """The file by which W&B itself marks a part as uploaded."""
    return part.with_suffix(".wandb.synced")


def _records(part: Path) -> Iterator[Record]:
    for _, record in _whole_records(part.read_bytes()):
        yield Record.FromString(record)


def _whole_records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The records of a part up to the first that is torn, each after where it ends."""
    position, record = _FILE_HEADER_BYTES, b""
    while True:
        room = _BLOCK_BYTES - position % _BLOCK_BYTES
        if room < _CHUNK_HEADER.size:  # the rest of a block, too short for a chunk
            position += room
        body = position + _CHUNK_HEADER.size
        if body > len(content):
            return
        checksum, length, kind = _CHUNK_HEADER.unpack_from(content, position)
        position = body + length
        # The checksum covers the kind, which precedes the body.
        if position > len(content) or zlib.crc32(content[body - 1 : position]) != checksum:
            return
        record += content[body:position]
        if kind in (_FULL, _LAST):
            yield position, record
            record = b""
