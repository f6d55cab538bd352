"""What Google's object store answers about objects in folders that are but parts of their names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from loopback import Reply, Request, json_reply, served

_BUCKET, _FOLDER = "sweeps", "mine/"
_ENDPOINT = "CLOUD_STORAGE_EMULATOR_ENDPOINT"  # where Google's client looks for a server


@contextmanager
def google_store(objects: dict[str, bytes]) -> Iterator[str]:
    """Address of a folder with these objects by name, on a server at this machine's loopback."""
    unfinished, uploads = dict[str, bytes](), count()

    def answer(request: Request) -> Reply:
        parts = urlsplit(request.path)
        query = {key: value for key, (value, *_) in parse_qs(parts.query).items()}
        name = _name(parts.path)
        match request.method:
            case "GET" if parts.path.endswith("/o"):
                return json_reply(_listed(objects, **query))
            case "GET" if name not in objects:
                return Reply(404)
            case "GET" if query.get("alt") == "media":
                return Reply(200, objects[name])
            case "POST":  # begins an upload
                upload = f"/o/{quote(query['name'])}?upload_id={next(uploads)}"
                unfinished[upload] = b""
                return Reply(200, b"{}", {"Location": f"http://{request.headers['host']}{upload}"})
            case "PUT":  # the next part of an upload; only the last knows the whole's size
                unfinished[request.path] += request.content
                if request.headers["content-range"].endswith("/*"):
                    done = f"bytes=0-{len(unfinished[request.path]) - 1}"
                    return Reply(308, headers={"Range": done})
                objects[name] = unfinished.pop(request.path)
            case "DELETE":
                return Reply(404 if objects.pop(name, None) is None else 204)
        return json_reply(_described(name, objects[name]))

    with served(answer) as address:
        os.environ[_ENDPOINT] = address
        try:
            yield f"gs://anonymous@{_BUCKET}/{_FOLDER.rstrip('/')}"
        finally:
            del os.environ[_ENDPOINT]


def _name(path: str) -> str:
    _, _, name = path.partition("/o/")
    return unquote(name).removeprefix(_FOLDER)


def _listed(
    objects: dict[str, bytes], prefix: str = "", delimiter: str = "", **_: str
) -> dict[str, Any]:
    """Up to the next delimiter a name is listed as a prefix, which is no item."""
    prefix = prefix.removeprefix(_FOLDER)
    names = sorted(name for name in objects if name.startswith(prefix))
    items = [n for n in names if not delimiter or delimiter not in n[len(prefix) :]]
    folders = {prefix + n[len(prefix) :].partition(delimiter)[0] for n in names if n not in items}
    return {
        "kind": "storage#objects",
        "items": [_described(name, objects[name]) for name in items],
        "prefixes": [f"{_FOLDER}{folder}{delimiter}" for folder in sorted(folders)],
    }


def _described(name: str, content: bytes) -> dict[str, str]:
    at, size = "2026-01-01T00:00:00Z", str(len(content))
    versions = {"generation": "1", "metageneration": "1", "timeCreated": at, "updated": at}
    return {
        "kind": "storage#object",
        "bucket": _BUCKET,
        "name": _FOLDER + name,
        "size": size,
        **versions,
    }
