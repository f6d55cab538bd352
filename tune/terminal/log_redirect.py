"""Keeps the terminal for the sweep's own output; all other output goes to a log file."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from rich.console import Console, ConsoleDimensions
from rich.live import Live

from trainables.storage.disk import LossyFile, log_stream

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def redirect_logs(log: Path) -> Iterator[Console]:
    """Send what libraries, subprocesses and C++ code write to `log`; yield the real terminal.

    File descriptors 1 and 2, `sys.stdout`, `sys.stderr` and the root logger's handlers are
    redirected within the context. An exception is also written to the log. The console still works
    afterwards, writing to `sys.stdout`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        console = _RealConsole(undo.enter_context(_copy_of_stdout()))
        undo.callback(setattr, console, "file", sys.stdout)
        undo.enter_context(_descriptors_to(log))
        # The streams may have pointed elsewhere (a notebook, a test runner). The new ones never
        # close: a library's log handler made meanwhile keeps one, and must still work afterwards.
        undo.enter_context(redirect_stdout(log_stream(1)))
        undo.enter_context(redirect_stderr(log_stream(2)))
        undo.enter_context(_root_logger_to_stderr())
        undo.callback(console.stop_live)
        try:
            yield console
        except Exception:
            traceback.print_exc()
            raise


class _RealConsole(Console):
    """Asks its own file for the size, since descriptors 0 to 2 may all be redirected by now."""

    def __init__(self, file: TextIO) -> None:
        # Without a terminal there is nothing to redraw, even if FORCE_COLOR asks for colours.
        super().__init__(file=file, force_interactive=None if file.isatty() else False)
        self._lives: list[Live] = []

    @property  # type: ignore[misc]  # read-only here, can be set in Console
    def size(self) -> ConsoleDimensions:
        try:
            columns, lines = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError):  # not a terminal
            return super().size
        # A pseudo-terminal whose size was never set reports 0.
        return ConsoleDimensions(columns, lines) if columns and lines else super().size

    def set_live(self, live: Live) -> bool:
        self._lives.append(live)
        return super().set_live(live)

    def stop_live(self) -> None:
        """Stop live displays that an exception left running; they would leave the cursor hidden."""
        for live in self._lives:
            live.stop()


@contextmanager
def _copy_of_stdout() -> Iterator[TextIO]:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    # When a terminal or pipe is closed, trials must still save their checkpoints and end.
    raw = LossyFile(os.dup(1), "w", dropped_at=(errno.EIO, errno.EPIPE))
    buffer = io.BufferedWriter(raw)
    with io.TextIOWrapper(buffer, encoding, "replace") as stream:
        yield stream


@contextmanager
def _descriptors_to(log: Path) -> Iterator[None]:
    """Point descriptors 1 and 2 to the log, for this process and those it starts."""
    _flush_standard_streams()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        for descriptor in kept:
            os.dup2(file, descriptor)
        yield
    finally:
        _flush_standard_streams()
        os.close(file)
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


@contextmanager
def _root_logger_to_stderr() -> Iterator[None]:
    """Replace the root logger's stream handlers by one that adds time and logger name."""
    root = logging.getLogger()
    before = list(root.handlers)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT))
    root.handlers = [h for h in before if type(h) is not logging.StreamHandler] + [handler]
    try:
        yield
    finally:
        added = [h for h in root.handlers if h not in before and h is not handler]
        root.handlers = before + added


def _flush_standard_streams() -> None:
    for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
        if stream is not None and not stream.closed:
            stream.flush()
