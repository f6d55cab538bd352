"""Keeps secrets out of what is recorded, logged, shown or uploaded of errors.

A task's own code may put the whole environment into an error, and a library an address with its
password.
"""

from __future__ import annotations

import os
import re

_REDACTED = "***"
_SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 8  # characters; shorter ones are words, such as true
_USER = re.compile(r"(:/+)[^\s/@:'\"]*:[^\s@'\"]{0,1000}@")
_OPTION = re.compile(
    r"([?&](?:x-(?:amz|goog)-)?"
    r"(?:api_?key|key|(?:access_|security-)?token|sig|signature|credential|password|secret)=)"
    r"[^&\s'\";)]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with `***` for secrets.

    These are values of environment variables whose names say so, users and passwords in addresses,
    and keys among an address's options.
    """
    for value in _secrets():
        text = text.replace(value, _REDACTED)
    text = _USER.sub(rf"\1{_REDACTED}@", text)
    return _OPTION.sub(rf"\1{_REDACTED}", text)


def _secrets() -> list[str]:
    """Values of this process's environment to keep out, as they are and as `repr` has them."""
    named = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    # A path that exists says where a key is. `Path.exists` raises for a text too long for one.
    values = {v for v in named if len(v) >= _SHORTEST and not os.path.exists(v)}  # noqa: PTH110
    return sorted(values | {repr(value)[1:-1] for value in values}, key=len, reverse=True)
