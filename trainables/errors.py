"""Errors of the whole project; a few others are defined where they are handled.

    UserError            the input is at fault: faults listed, exit code 2, no traceback
    TrialError           a fault inside a trial: ends that trial, never the sweep
    ├── Diverged         the loss or a gradient is NaN or infinite
    ├── OutOfMemory      no memory left, even at batches of one sample
    │   └── EvaluationOutOfMemory  in an evaluation
    └── EvaluationFailed an evaluation during training raised an error
    CannotInspect        a trial's model cannot be inspected; its record says why
    CannotRepair         a trial's weights cannot be repaired; the sweep goes on without

All survive pickling, so they reach the driver from a worker intact.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches

from trainables.redaction import redacted

_LONGEST_REASON = 1000  # characters


@dataclass(frozen=True)
class Fault:
    """One thing wrong with the input: field, rule, value and remedy.

    Attributes:
        field: dotted name in the sweep file, such as `search.lora.rank`.
        rule: what must hold, such as `must be >= 1, got 0`.
        remedy: what to do about it; may be empty if the rule says it already.
        location: `file:line`; empty if there is none.
    """

    field: str
    rule: str
    remedy: str = ""
    location: str = ""

    def __str__(self) -> str:
        text = f"{self.field}: {self.rule}" if self.field else self.rule
        if self.remedy:
            text += f"; {self.remedy}"
        return f"{text} ({self.location})" if self.location else text


def as_reason(text: str) -> str:
    """An error's text to record and upload: without secrets, the middle cut if it is long."""
    safe = redacted(text)
    if len(safe) <= _LONGEST_REASON:
        return safe
    return f"{safe[: _LONGEST_REASON // 2]} ... {safe[-_LONGEST_REASON // 2 :]}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message (or its repr), as `as_reason` shortens it."""
    lines = str(error).strip().splitlines()
    return as_reason(lines[0] if lines else repr(error))


def error_text(error: BaseException) -> str:
    """An error's type and the first line of its message; of a `UserError`, that line alone."""
    text = first_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def error_with_notes(error: BaseException) -> str:
    """Notes and `error_text`, such as `, task boolq, document 3: ValueError: why`."""
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    return f"{notes}: {error_text(error)}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause or context, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def as_written(choice: object) -> str:
    """A value of the search as a sweep file has it, such as `true` or `[q_proj, v_proj]`."""
    if isinstance(choice, tuple):
        return f"[{', '.join(choice)}]"
    return str(choice).lower() if isinstance(choice, bool) else str(choice).removesuffix(".0")


def nearest(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word nearest to a misspelt one; empty if none is near."""
    return next(iter(get_close_matches(str(word), list(known), n=1, cutoff=cutoff)), "")


def did_you_mean(word: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A remedy that names the `nearest` word; empty if none is near."""
    near = nearest(word, known, cutoff)
    return f"did you mean {near}?" if near else ""


# Errors of the hub's client, in any version, and messages of Transformers.
_UNREACHED = re.compile(
    r"\bhttpx\d*\.((Proxy|Connect|Read|Write|RemoteProtocol)Error|\w+Timeout)\b"
    "|couldn't (connect|reach)|outgoing traffic has been disabled",
    re.IGNORECASE,
).search


def hub_remedy(error: BaseException) -> str:
    """What to do if the hub was not reached; else empty."""
    kinds = ((type(each), each) for each in causes(error))
    text = " ".join(f"{kind.__module__}.{kind.__name__} {each}" for kind, each in kinds)
    if not _UNREACHED(text):
        return ""
    variables = "HTTPS_PROXY, HF_ENDPOINT, HF_HUB_OFFLINE"
    return f"see that the workers reach the hub ({variables}), or name a local copy"


def traced(error: Exception) -> Exception:
    """The error with its traceback as a note and without its frames, which hold tensors.

    Pickling loses tracebacks but keeps notes.
    """
    error.add_note("".join(traceback.format_exception(error)).rstrip())
    for each in causes(error):
        each.__traceback__ = None
    return error


def release_frames(error: BaseException) -> None:
    """Clear the variables of the frames that an error came from; its traceback stays."""
    for each in causes(error):
        traceback.clear_frames(each.__traceback__)


class UserError(Exception):
    """The input is wrong; `faults` has everything found."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


@contextmanager
def collecting(faults: list[Fault]) -> Iterator[None]:
    """Add the faults of a `UserError` in the body, and go on after it."""
    try:
        yield
    except UserError as error:
        faults += error.faults


class TrialError(Exception):
    """A fault inside a trial: the trial ends with a status and this reason."""


class Diverged(TrialError):
    """The training loss or the gradient's norm is NaN or infinite."""


class OutOfMemory(TrialError):
    """The device ran out of memory."""


class EvaluationOutOfMemory(OutOfMemory):
    """The device ran out of memory in an evaluation."""


class EvaluationFailed(TrialError):
    """An evaluation raised an error; a checkpoint holds what was trained until then."""


class CannotInspect(Exception):
    """A trial's model, or a part of it, cannot be inspected."""


class CannotRepair(Exception):
    """A trial's weights cannot be altered in some way after training."""
