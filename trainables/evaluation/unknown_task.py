"""What is told of a task that neither the harness nor the user's folders have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainables.config import Role
from trainables.errors import Fault, did_you_mean


def unknown_task(role: Role, name: str, known: Iterable[str], folders: Sequence[str]) -> Fault:
    """The fault of a name that is none of the known ones, which the folders' tasks are among."""
    where = f"{', '.join(folders)} or the harness" if folders else "the harness"
    hint = did_you_mean(name, known) or "see `lm-eval ls tasks` for the harness's own"
    return Fault(f"eval.{role}", f"no task named {name} in {where}", hint)
