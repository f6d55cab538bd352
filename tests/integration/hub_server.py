"""A hub on loopback: what Hugging Face's own client asks for when it fetches a gated model.

Files with their ETag and commit, and what the hub's API tells of a model. What was sent is counted.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

COMMIT = hashlib.sha1(b"the only commit", usedforsecurity=False).hexdigest()
_PATIENCE_S = 90.0


class Reply(NamedTuple):
    """What a request is answered with."""

    status: int
    headers: dict[str, str]
    content: bytes = b""


_NOTHING = Reply(HTTPStatus.NOT_FOUND, {})


class Hub:
    """One model, for those who have its token.

    Attributes:
        downloads: how often the content of each file was sent.
        looks: how often its ETag was, as to each process that does not find the file on its node.
        processes: that were let in, by the name which the client makes up for each.
        refused: requests without the token.
    """

    def __init__(self, name: str, folder: Path, token: str) -> None:
        self.url = ""
        self.downloads: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.processes: set[str] = set()
        self.refused = 0
        self._name, self._token = name, token
        self._files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self._held: dict[str, tuple[int, ...]] = {}
        self._changed = threading.Condition()

    def hold(self, file: str, *looks: int) -> None:
        """Send a file's first copy once its ETag was sent so many times, and so on.

        So all who find it missing on their nodes have begun before one of them has it.
        """
        self._held[file] = looks

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Reply:
        """The reply to a request."""
        _, of_the_model, rest = path.partition("?")[0].partition(f"/{self._name}")
        if not of_the_model:
            return _NOTHING
        with self._changed:
            if headers.get("authorization") != f"Bearer {self._token}":
                self.refused += 1
                return Reply(HTTPStatus.UNAUTHORIZED, {"X-Error-Code": "GatedRepo"})
            if process := re.search(r"session_id/(\w+)", headers.get("user-agent", "")):
                self.processes.add(process[1])
        place, revision, file = [*rest.strip("/").split("/", 2), "", ""][:3]
        if revision not in ("", "main", COMMIT):
            return _NOTHING
        if place == "resolve":
            return self._file(method, file)
        return self._described(place) if not file else _NOTHING

    def _file(self, method: str, name: str) -> Reply:
        if name not in self._files:
            return Reply(HTTPStatus.NOT_FOUND, {"X-Error-Code": "EntryNotFound"})
        with self._changed:
            (self.looks if method == "HEAD" else self.downloads)[name] += 1
            self._changed.notify_all()
            copy = self.downloads[name]
            if method == "GET" and (held := self._held.get(name, ())[copy - 1 : copy]):
                self._changed.wait_for(lambda: self.looks[name] >= held[0], _PATIENCE_S)
        content = self._files[name]
        told = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
        return Reply(HTTPStatus.OK, told, content)

    def _described(self, place: str) -> Reply:
        """What the hub's API tells of the model: its commit, or its files."""
        if place == "tree":
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in sorted(self._files.items())
            ]
            return _json(files)
        siblings = [{"rfilename": name} for name in sorted(self._files)]
        return _json({"id": self._name, "sha": COMMIT, "tags": [], "siblings": siblings})


def _json(value: Any) -> Reply:
    content = json.dumps(value).encode()
    return Reply(HTTPStatus.OK, {"Content-Type": "application/json"}, content)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextmanager
def hub_server(name: str, folder: Path, token: str) -> Iterator[Hub]:
    """A hub with one model on a free port until the block ends.

    Args:
        name: of the model, with its owner's.
        folder: its files.
        token: without which nothing is told of it.
    """
    hub = Hub(name, folder, token)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Silent."""

        def _reply(self) -> None:
            asked = {name.lower(): value for name, value in self.headers.items()}
            status, headers, content = hub.answer(self.command, self.path, asked)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD = _reply

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Silent: a client that was killed hangs up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
