"""A hub on loopback that takes what the hub's own client pushes, and keeps it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from loopback import Reply, Request, json_reply, served

_LARGE = (".safetensors",)  # what the hub has stored by its digest, apart from the commit


@dataclass
class PushHub:
    """What was pushed, to one user whose token is known.

    Attributes:
        private: of each repository whether it was made private.
        files: of the newest commit of each repository.
        messages: of its commits, oldest first.
        card_error: why no card is accepted.
    """

    token: str
    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, list[str]] = field(default_factory=dict)
    card_error: str = ""
    _objects: dict[str, bytes] = field(default_factory=dict)

    def answer(self, request: Request) -> Reply:
        """Answer one request."""
        path = request.path.partition("?")[0]
        if request.method == "PUT" and path.startswith("/objects/"):
            self._objects[path.rpartition("/")[2]] = request.content
            return Reply(200)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return json_reply({"error": "Invalid credentials"}, 401)
        if path == "/api/validate-yaml":
            errors = [{"message": self.card_error}] if self.card_error else []
            return json_reply({"errors": errors, "warnings": []}, 400 if errors else 200)
        if path == "/api/repos/create":
            return self._create(json.loads(request.content))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|tree)/main", path):
            name, what = found.groups()
            if what == "tree":
                return self._tree(name)
            return self._preupload(request) if what == "preupload" else self._commit(name, request)
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(request.content))
        return json_reply({"error": f"no {path}"}, 404)

    def _create(self, asked: dict[str, Any]) -> Reply:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            return json_reply({"error": f"You may not create {name}"}, 403)
        if name in self.private:
            told = {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            return json_reply(told, 409)
        # Older clients say `private`.
        self.private[name] = asked.get("visibility") == "private" or asked.get("private", False)
        return json_reply({"url": f"{self.url}/{name}", "id": name})

    def _tree(self, name: str) -> Reply:
        files = self.files.get(name, {}).items()
        listed = [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in files]
        return json_reply(listed)

    def _preupload(self, request: Request) -> Reply:
        files = json.loads(request.content)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        return json_reply({"files": modes, "commitOid": "0" * 40})

    def _batch(self, asked: dict[str, Any]) -> Reply:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/objects/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        return json_reply({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, request: Request) -> Reply:
        content = dict(self.files.get(name, {}))
        for line in map(json.loads, request.content.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    self.messages.setdefault(name, []).append(value["summary"])
                case "file":
                    content[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    content[value["path"]] = self._objects[value["oid"]]
                case "deletedFile":
                    del content[value["path"]]
        self.files[name] = content
        commit = "1" * 40
        told = {"commitOid": commit, "commitUrl": f"{self.url}/{name}/commit/{commit}"}
        return json_reply({**told, "success": True})


@contextmanager
def push_server(token: str) -> Iterator[PushHub]:
    """A hub on a free port until the block ends; its only user is `me`."""
    hub = PushHub(token)
    with served(hub.answer) as hub.url:
        yield hub
