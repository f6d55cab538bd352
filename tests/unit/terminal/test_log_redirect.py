"""What libraries write goes to the log, and the terminal stays the sweep's."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys

import pytest

from tune.terminal.log_redirect import redirect_logs


def test_all_chatter_goes_to_the_log_and_the_console_to_stdout(tmp_path, capfd):
    log = tmp_path / "new" / "sweep.log"
    logger = logging.getLogger("some.library")
    with redirect_logs(log) as console:
        os.write(2, b"from C++\n")
        os.write(1, b"from C\n")
        print("from print", flush=False)
        sys.stderr.write("from stderr\n")
        logger.warning("from logging")
        subprocess.run(["sh", "-c", "echo child out; echo child err >&2"], check=True)
        console.print("from the sweep")
    out, err = capfd.readouterr()
    assert (out, err) == ("from the sweep\n", "")
    said = log.read_text()
    for source in ("C++", "C", "print", "stderr", "logging"):
        assert f"from {source}\n" in said
    assert "child out\nchild err\n" in said
    assert re.search(r"^\d{4}-\S+ \S+ WARNING some.library: from logging$", said, re.MULTILINE)
    assert "from the sweep" not in said


def test_everything_is_as_before_afterwards(tmp_path, capfd):
    root = logging.getLogger()
    printed = logging.StreamHandler()
    root.addHandler(printed)
    handlers = list(root.handlers)
    streams = (sys.stdout, sys.stderr)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    try:
        with redirect_logs(tmp_path / "log") as console:
            assert sys.stdout is not streams[0]
            logging.getLogger("x").warning("once")
            library = logging.StreamHandler()  # as Ray's is made: on what stderr is just now
        assert (sys.stdout, sys.stderr) == streams
        assert root.handlers == handlers
    finally:
        root.removeHandler(printed)
    if descriptors:
        assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    os.write(2, b"err\n")
    os.write(1, b"out\n")
    console.print("console")
    library.emit(logging.makeLogRecord({"msg": "library"}))
    del library  # and with it the last use of the stream, which must leave descriptor 2 open
    os.write(2, b"raw\n")
    assert capfd.readouterr() == ("out\nconsole\n", "err\nlibrary\nraw\n")
    assert (tmp_path / "log").read_text().count("once") == 1


def test_an_exception_escapes_whole_and_is_logged(tmp_path, capfd):
    def break_off() -> None:
        with redirect_logs(tmp_path / "log"):
            sys.stdout.write("half a line ")
            raise ValueError("what went wrong")

    streams = (sys.stdout, sys.stderr)
    with pytest.raises(ValueError, match="what went wrong"):
        break_off()
    assert (sys.stdout, sys.stderr) == streams
    os.write(2, b"err\n")
    assert capfd.readouterr() == ("", "err\n")
    said = (tmp_path / "log").read_text()
    assert said.startswith("half a line ")
    assert "Traceback" in said
    assert "ValueError: what went wrong" in said


IN_A_PIPE = """
import sys
from pathlib import Path
from tune.terminal.log_redirect import redirect_logs

sys.stdout.write("before ")
with redirect_logs(Path({log!r})) as console:
    sys.__stdout__.write("by a library ")
    sys.stdin.readline()
    console.print("caf\u00e9")
    print("went on")
"""


@pytest.mark.parametrize("is_read", [True, False])
def test_into_a_pipe_goes_what_is_said_however_it_ends_and_is_encoded(tmp_path, is_read):
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_PIPE.format(log=str(log))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""},
    )
    assert process.stdin
    assert process.stdout
    if not is_read:
        assert process.stdout.read(7) == "before "
        process.stdout.close()  # as `head` does
    process.stdin.write("\n")
    process.stdin.close()
    received = process.stdout.read() if is_read else ""
    assert process.wait(60) == 0
    assert received == ("before caf?\n" if is_read else "")
    assert log.read_text() == "went on\nby a library "
