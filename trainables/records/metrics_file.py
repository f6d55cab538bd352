"""The lines of a trial's `metrics.jsonl`: one measurement each, with a checksum.

A line is a JSON object that ends with `"crc32"`, the CRC-32 of the object without that key, in
hexadecimal. A line without the key is accepted, so that users can repair one.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from trainables.errors import Fault, UserError
from trainables.records.reading import read_record
from trainables.records.schema import Measurement

_KEY = b',"crc32":"'
_DIGITS = 8
_TAIL = len(_KEY) + _DIGITS + len(b'"}')


@dataclass(frozen=True)
class MetricsFile:
    """The measurements as they were written, and the content up to the last whole line."""

    measurements: list[Measurement]
    whole: bytes


def to_line(measurement: Measurement) -> bytes:
    """The measurement as a line, including its line end."""
    body = measurement.model_dump_json().encode()
    return b'%s%s%08x"}\n' % (body[:-1], _KEY, zlib.crc32(body))


def read_lines(content: bytes, file: str) -> MetricsFile:
    """The measurements in a metrics file, without damaged lines at its end.

    Raises:
        UserError: a damaged line is followed by whole ones, or another version wrote a line.
    """
    measurements: list[Measurement] = []
    damage: UserError | None = None
    whole = end = 0
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            measurement = _read(line, file, number)
        except UserError as error:
            # If its checksum fits, another version wrote it.
            if _body(line) not in (None, line):
                raise
            damage = damage or error
            continue
        if damage:
            raise damage
        measurements.append(measurement)
        whole = end
    kept = content[:whole]
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    return MetricsFile(measurements, kept)


def _body(line: bytes) -> bytes | None:
    """The line without its checksum, if it has one; None if the checksum does not match."""
    key = len(line) - _TAIL
    if key <= 0 or line[key : key + len(_KEY)] != _KEY:
        return line
    body = line[:key] + b"}"
    return body if line[key + len(_KEY) :] == b'%08x"}' % zlib.crc32(body) else None


def _read(line: bytes, file: str, number: int) -> Measurement:
    remedy = "restore the line from a copy, or delete it"
    body = _body(line)
    if body is None:
        rule = "was changed since it was written: its checksum does not fit"
        mended = f'{remedy}, or delete its "crc32" to accept it as it stands'
        raise UserError([Fault(f"{file}:{number}", rule, mended)])
    return read_record(Measurement, body, file, remedy, number)
