"""How the unit tests run."""

from __future__ import annotations

from hypothesis import settings

# A busy machine makes a slow example, not a wrong one.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
