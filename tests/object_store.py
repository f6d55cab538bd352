"""A real S3 server on this machine's loopback, for the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def reserve() -> socket.socket:
    """A port for the server; what reaches it stands in the environment from now on.

    The socket keeps it from all others until the server comes, which as one that reuses addresses
    may bind beside one that does not listen.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    os.environ |= _CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{_port(held)}"}
    return held


@contextmanager
def s3_server(held: socket.socket) -> Iterator[str]:
    """Address of an empty bucket, on a server in a process of its own at a port from `reserve`."""
    import boto3

    port = _port(held)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        boto3.client("s3").create_bucket(Bucket="sweeps")
        yield "s3://sweeps"
    finally:
        server.kill()
        server.wait()
        held.close()


@contextmanager
def failing_server(
    seconds: float, status: int, code: str, asked: list[tuple[str, str]] | None = None
) -> Iterator[str]:
    """Address of an empty bucket, on a server that then answers with an error for so long.

    `asked`: takes method and path of each request that failed.
    """
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    working, fails_until = DomainDispatcherApplication(create_backend_app), 0.0

    def answer(environment: Any, start: Any) -> Any:
        if time.monotonic() > fails_until:
            return working(environment, start)
        if asked is not None:
            asked.append((environment["REQUEST_METHOD"], environment["PATH_INFO"]))
        start(f"{status} {code}", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code></Error>".encode()]

    before = dict(os.environ)
    held = reserve()
    server = make_server("127.0.0.1", _port(held), answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        boto3.client("s3").create_bucket(Bucket=code.lower())
        fails_until = time.monotonic() + seconds
        yield f"s3://{code.lower()}"
    finally:
        server.shutdown()
        held.close()
        os.environ.update(before)


def _port(held: socket.socket) -> int:
    return int(held.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise TimeoutError(f"no S3 server answers on port {port}")
