"""The logs of trials and of other work on a worker."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from trainables.storage.disk import log_stream


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Redirect what libraries print and log to the trial's own file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with log_stream(file) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            with redirect_stdout(stream), redirect_stderr(stream):
                yield
        finally:
            root.removeHandler(handler)
            sys.stdout.flush()
