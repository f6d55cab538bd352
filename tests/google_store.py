"""What Google's object store answers about objects in folders that are but parts of their names."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

_BUCKET, _FOLDER = "sweeps", "mine/"
_ENDPOINT = "CLOUD_STORAGE_EMULATOR_ENDPOINT"  # where Google's client looks for a server


@contextmanager
def google_store(objects: dict[str, bytes]) -> Iterator[str]:
    """Address of a folder with these objects by name, on a server at this machine's loopback."""
    unfinished, uploads = dict[str, bytes](), count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {key: value for key, (value, *_) in parse_qs(parts.query).items()}
            name = _name(parts.path)
            if parts.path.endswith("/o"):
                self._answer(200, json.dumps(_listed(objects, **query)).encode())
            elif name not in objects:
                self._answer(404)
            elif query.get("alt") == "media":
                self._answer(200, objects[name])
            else:
                self._answer(200, json.dumps(_described(name, objects[name])).encode())

        def do_POST(self) -> None:
            """Begin an upload."""
            (name,) = parse_qs(urlsplit(self.path).query)["name"]
            upload = f"/o/{quote(name)}?upload_id={next(uploads)}"
            unfinished[upload] = b""
            self._answer(200, b"{}", Location=f"http://{self.headers['Host']}{upload}")

        def do_PUT(self) -> None:
            """Take the next part of an upload; only the last knows the whole's size."""
            unfinished[self.path] += self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Range"].endswith("/*"):
                self._answer(308, Range=f"bytes=0-{len(unfinished[self.path]) - 1}")
                return
            name = _name(urlsplit(self.path).path)
            objects[name] = unfinished.pop(self.path)
            self._answer(200, json.dumps(_described(name, objects[name])).encode())

        def do_DELETE(self) -> None:
            name = _name(urlsplit(self.path).path)
            self._answer(404 if objects.pop(name, None) is None else 204)

        def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ[_ENDPOINT] = f"http://127.0.0.1:{server.server_port}"
    try:
        yield f"gs://anonymous@{_BUCKET}/{_FOLDER.rstrip('/')}"
    finally:
        del os.environ[_ENDPOINT]
        server.shutdown()
        server.server_close()


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
