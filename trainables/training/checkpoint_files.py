"""The checkpoints of a trial as files: which exist, which are intact, which may be deleted.

An attempt's folder holds

    checkpoints/step_00000040/   see `checkpoint`; newest two while the trial runs
    best/                        weights at the best evaluation, and its `evaluation.json`

Imports no heavy library, since the driver uses this module too.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainables.config import Frozen
from trainables.storage.disk import write_whole
from trainables.storage.local_storage import LocalStorage

CHECKPOINTS, BEST, FILES = "checkpoints", "best", "files.json"
_EVALUATED = "evaluated.json"
BEST_EVALUATION = "evaluation.json"


class CheckpointLost(Exception):
    """The checkpoint to resume from was deleted before it was read, or is not visible.

    An earlier attempt that lives on behind a cut network may delete it, or the driver, to keep to
    the disk budget. The next attempt resumes from what there is then.
    """


class BestEvaluation(Frozen):
    """The evaluation at which the weights beside it were saved."""

    step: int
    metric: str
    value: float


def checkpoint_dir(attempt_dir: Path, step: int) -> Path:
    """Folder of the checkpoint after a step."""
    return attempt_dir / CHECKPOINTS / f"step_{step:08d}"


def best_dir(attempt_dir: Path) -> Path:
    """Folder of the weights at the best evaluation."""
    return attempt_dir / BEST


def checkpoints(attempt_dirs: Sequence[Path]) -> list[Path]:
    """Every checkpoint of all attempts, newest first; at equal steps, later attempts first."""
    found = [
        (name, attempt, folder / CHECKPOINTS / name)
        for attempt, folder in enumerate(attempt_dirs)
        for name in LocalStorage(folder).children(CHECKPOINTS)  # unlike `glob`, hides no error
        if name.startswith("step_")
    ]
    return [path for _, _, path in sorted(found, reverse=True)]


def newest_valid(attempt_dirs: Sequence[Path]) -> Path | None:
    """The newest checkpoint of any attempt whose files are all present and intact.

    Raises:
        CheckpointLost: none is valid, and some were deleted meanwhile: there may be newer ones.
    """
    seen = checkpoints(attempt_dirs)
    found = next(filter(is_valid, seen), None)
    if found is None and not all(path.exists() for path in seen):
        raise CheckpointLost(f"below {attempt_dirs[-1].parent} checkpoints are being deleted")
    return found


def is_valid(checkpoint: Path) -> bool:
    """Whether every file has the size and digest recorded when it was written.

    Raises:
        OSError: a file cannot be read now, so it may be valid or not.
    """
    return _all_match(checkpoint, lambda file, recorded: digest(file) == recorded)


def seems_valid(checkpoint: Path) -> bool:
    """Whether every file has its recorded size: digests of a large model take minutes."""
    return _all_match(checkpoint, lambda f, recorded: recorded.startswith(f"{f.stat().st_size}:"))


@contextmanager
def unchanged(checkpoint: Path) -> Iterator[None]:
    """Context for reading a checkpoint, which must still be whole at the end.

    Raises:
        CheckpointLost: some of it was deleted, or cannot be read; replaces errors of the reading.
    """
    try:
        yield
    finally:
        problem = ""
        try:
            if not seems_valid(checkpoint):
                problem = "was deleted before the training had resumed from it"
        except OSError as error:
            problem = f"cannot be read: {error}"
        if problem:
            raise CheckpointLost(f"{checkpoint} {problem}")


def _all_match(checkpoint: Path, matches: Callable[[Path, str], bool]) -> bool:
    try:
        files = json.loads((checkpoint / FILES).read_text())
        return all(matches(checkpoint / name, recorded) for name, recorded in files.items())
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def set_damaged_aside(attempt_dirs: Sequence[Path], resumed: Path | None) -> None:
    """Rename all checkpoints that are newer than the one that the training resumes from.

    They are damaged, and `keep_newest` would keep them and delete intact ones. Steps of one that
    an earlier attempt wrote late are trained again.
    """
    for path in checkpoints(attempt_dirs):
        if path == resumed:
            return
        with suppress(OSError):
            path.rename(path.with_name(f"damaged_{path.name}"))


def keep_newest(attempt_dirs: Sequence[Path], count: int) -> None:
    """Delete all but the newest checkpoints, over all attempts."""
    for path in checkpoints(attempt_dirs)[count:]:
        shutil.rmtree(path, ignore_errors=True)


def remove_checkpoints(attempt_dirs: Sequence[Path]) -> None:
    """Delete every checkpoint, unfinished ones too."""
    for folder in attempt_dirs:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def remove_unfinished(attempt_dirs: Sequence[Path]) -> None:
    """Delete what a process was still writing when it died."""
    for folder in attempt_dirs:
        for path in (*folder.glob(f"{CHECKPOINTS}/.step_*"), *folder.glob(".*")):
            shutil.rmtree(path, ignore_errors=True)


def mark_evaluated(checkpoint: Path, carried: dict[str, Any]) -> Path:
    """Record that the checkpoint's step was evaluated and reported; returns the written file.

    `carried`: as in `checkpoint.Progress`, after the evaluation.
    """
    write_whole(checkpoint / _EVALUATED, json.dumps(carried))
    return checkpoint / _EVALUATED


def evaluated(checkpoint: Path) -> dict[str, Any] | None:
    """What `mark_evaluated` recorded; None if the step has not been evaluated."""
    try:
        return dict(json.loads((checkpoint / _EVALUATED).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def best_weights(attempt_dirs: Sequence[Path]) -> Iterator[tuple[Path, BestEvaluation]]:
    """Folders of best weights with their evaluations, the newest attempt's first."""
    for folder in reversed([best_dir(attempt) for attempt in attempt_dirs]):
        with suppress(OSError, ValidationError):
            content = (folder / BEST_EVALUATION).read_bytes()
            yield folder, BestEvaluation.model_validate_json(content)


def remove_best(attempt_dirs: Sequence[Path]) -> None:
    """Delete the best weights of all attempts."""
    for folder in attempt_dirs:
        shutil.rmtree(best_dir(folder), ignore_errors=True)


def digest(file: Path) -> str:
    """Size and hash of a file's content."""
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
    return f"{file.stat().st_size}:{content.hexdigest()}"
