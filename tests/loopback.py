"""Servers of the tests' own, on this machine's loopback."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    """What a client sent: names of headers in lower case, the content unzipped."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes


class Reply(NamedTuple):
    """What a request is answered with."""

    status: int
    content: bytes = b""
    headers: Mapping[str, str] = {}


def json_reply(value: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


@contextmanager
def served(answer: Callable[[Request], Reply]) -> Iterator[str]:
    """Address of a server on a free port that answers so, several at a time, until the block ends.

    The length of the content is told by itself.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            """Silent."""

        def _reply(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            content = self.rfile.read(int(headers.get("content-length", 0)))
            if headers.get("content-encoding") == "gzip":
                content = gzip.decompress(content)
            reply = answer(Request(self.command, self.path, headers, content))
            self.send_response(reply.status)
            told = {**reply.headers, "Content-Length": str(len(reply.content))}
            for name, value in told.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.content)

        do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = _reply

    class Server(ThreadingHTTPServer):
        def handle_error(self, *of: Any) -> None:
            """Silent where a client that was killed hangs up."""
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(*of)

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
