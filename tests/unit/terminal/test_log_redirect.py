"""What libraries write goes to the log, and the terminal stays the sweep's."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys

import pytest

from tune.terminal.log_redirect import redirect_logs


def test_other_output_goes_to_the_log_and_the_console_to_stdout(tmp_path, capfd):
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


def test_streams_and_handlers_are_restored(tmp_path, capfd):
    root = logging.getLogger()
    printed = logging.StreamHandler()
    root.addHandler(printed)
    handlers = list(root.handlers)
    streams = (sys.stdout, sys.stderr)
    try:
        with redirect_logs(tmp_path / "log") as console:
            assert sys.stdout is not streams[0]
            logging.getLogger("x").warning("once")
            library = logging.StreamHandler()  # as Ray's is made: on what stderr is just now
        assert (sys.stdout, sys.stderr) == streams
        assert root.handlers == handlers
    finally:
        root.removeHandler(printed)
    os.write(2, b"err\n")
    os.write(1, b"out\n")
    console.print("console")
    library.emit(logging.makeLogRecord({"msg": "library"}))
    del library  # and with it the last use of the stream, which must leave descriptor 2 open
    os.write(2, b"raw\n")
    assert capfd.readouterr() == ("out\nconsole\n", "err\nlibrary\nraw\n")
    assert (tmp_path / "log").read_text().count("once") == 1


def test_an_exception_is_raised_and_logged(tmp_path, capfd):
    def break_off() -> None:
        with redirect_logs(tmp_path / "log"):
            sys.stdout.write("half a line ")
            raise ValueError("what went wrong")

    with pytest.raises(ValueError, match="what went wrong"):
        break_off()
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


def test_a_closed_pipe_or_a_poor_encoding_does_not_end_the_command(tmp_path):
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
    assert process.stdout.read(7) == "before "
    process.stdout.close()  # as `head` does
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == 0
    assert log.read_text() == "went on\nby a library "
