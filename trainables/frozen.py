"""Base of all configuration and records."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of all that is sent to a process or written to disk: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
