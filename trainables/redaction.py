"""Removes secrets from errors before they are recorded, logged, shown or uploaded.

A task's code may put the whole environment into an error, a library an address with its password.
"""

from __future__ import annotations

import os
import re
from functools import cache, lru_cache

_REDACTED = "***"
_SECRET_NAME = re.compile(
    "(?<!MON)KEY(?!BOARD)|TOKEN(?!IZ|S)|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE
)
# Says where a secret is, which helps if it is missing there.
_PLACE_NAME = re.compile("_(FILE|PATH|DIR|HOST)$|APPLICATION_CREDENTIALS$", re.IGNORECASE)
_SHORTEST = 8  # characters; shorter ones are words, such as true
# User and password; a host and its port may stand before an @, too.
_USER = re.compile(r"(:/+)[^\s/@:'\"]*:(?!\d{1,5}[/,])[^\s@'\"]{0,1000}@")
_OPTION = re.compile(
    r"([?&](?:x-(?:amz|goog)-)?"
    r"(?:api_?key|key|(?:access_|security-)?token|sig|signature|credential|password|secret)=)"
    r"[^&\s'\";)]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with `***` for secret environment variables, and keys and passwords in addresses."""
    if len(text) < _SHORTEST:
        return text
    # Not by items(), which fails if a thread removes a variable meanwhile.
    values = frozenset(os.environ.get(name, "") for name in os.environ if _is_secret(name))
    for value in _longest_first(values):
        text = text.replace(value, _REDACTED)
    text = _USER.sub(rf"\1{_REDACTED}@", text)
    return _OPTION.sub(rf"\1{_REDACTED}", text)


@cache  # every line of a log asks again
def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _PLACE_NAME.search(name)


@lru_cache(maxsize=1)
def _longest_first(values: frozenset[str]) -> list[str]:
    """Secrets among the values, and their `repr`."""
    # A path says where a key is. `Path.exists` raises for a text too long for a path.
    kept = {v for v in values if len(v.strip()) >= _SHORTEST and not os.path.exists(v)}  # noqa: PTH110
    return sorted(kept | {repr(value)[1:-1] for value in kept}, key=len, reverse=True)
