"""Base of all configuration and records."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of everything that crosses a process or a disk: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
