"""A hub on loopback: what Hugging Face's own client asks for when it fetches a gated model.

Files with their ETag and commit, and what the hub's API tells of a model. What was sent is counted.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from loopback import Reply, Request, json_reply, served

COMMIT = hashlib.sha1(b"the only commit", usedforsecurity=False).hexdigest()
_PATIENCE_S = 90.0


_NOTHING = Reply(HTTPStatus.NOT_FOUND)


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

    def answer(self, request: Request) -> Reply:
        """The reply to a request."""
        method, path, headers, _ = request
        _, of_the_model, rest = path.partition("?")[0].partition(f"/{self._name}")
        if not of_the_model:
            return _NOTHING
        with self._changed:
            if headers.get("authorization") != f"Bearer {self._token}":
                self.refused += 1
                return Reply(HTTPStatus.UNAUTHORIZED, headers={"X-Error-Code": "GatedRepo"})
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
            return Reply(HTTPStatus.NOT_FOUND, headers={"X-Error-Code": "EntryNotFound"})
        with self._changed:
            (self.looks if method == "HEAD" else self.downloads)[name] += 1
            self._changed.notify_all()
            copy = self.downloads[name]
            if method == "GET" and (held := self._held.get(name, ())[copy - 1 : copy]):
                self._changed.wait_for(lambda: self.looks[name] >= held[0], _PATIENCE_S)
        content = self._files[name]
        told = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}
        return Reply(HTTPStatus.OK, content, told)

    def _described(self, place: str) -> Reply:
        """What the hub's API tells of the model: its commit, or its files."""
        if place == "tree":
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in sorted(self._files.items())
            ]
            return json_reply(files)
        siblings = [{"rfilename": name} for name in sorted(self._files)]
        return json_reply({"id": self._name, "sha": COMMIT, "tags": [], "siblings": siblings})


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
    with served(hub.answer) as hub.url:
        yield hub
