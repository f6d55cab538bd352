"""Writing a report to a file in the requested format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.report.formats import as_csv, as_json, as_markdown
from analysis.report.page import render
from analysis.results import Results
from analysis.sweeps import open_sweeps
from trainables.errors import Fault, UserError
from trainables.files.disk import write_whole
from trainables.files.storage import Location

FORMATS: dict[str, Callable[[Results], str]] = {
    "html": render,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def write_report(sweep_dirs: Sequence[Location], file: Path | None, kind: str | None) -> Path:
    """Write a report about sweeps; returns its file.

    Args:
        sweep_dirs: of sweeps with the same model and evaluation.
        file: default `report.KIND` in the first sweep's folder, or in the current one if that is
            in an object store; if a folder, which one that is new and has no suffix shall be,
            `report.KIND` in it.
        kind: one of `FORMATS`; default the file's suffix, else html.

    Raises:
        UserError: as `open_sweeps`, or the file's suffix is of no format, or it cannot be written.
    """
    kind = kind or _kind_of(file)
    results = Results(open_sweeps(sweep_dirs))
    if file is None:
        first = sweep_dirs[0]
        file = first if isinstance(first, Path) else Path.cwd()
    is_named = bool(file.suffix or file.exists()) and not file.is_dir()
    if not is_named:
        file /= f"report.{kind}"
    text = FORMATS[kind](results)
    try:
        if is_named:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        else:
            write_whole(file, text)  # not to where a link in the folder of somebody else leads
    except OSError as error:
        raise UserError([Fault("--to", f"cannot write {file}: {error.strerror}")]) from error
    return file


def _kind_of(file: Path | None) -> str:
    suffix = file.suffix.removeprefix(".").lower() if file and not file.is_dir() else ""
    if suffix and suffix not in FORMATS:
        known = ", ".join(f".{kind}" for kind in FORMATS)
        rule = f"must end in one of {known}, got {file}"
        raise UserError([Fault("--to", rule, "or give --format")])
    return suffix or "html"
