"""The folders that W&B keeps of a sweep's runs, online and offline."""

from __future__ import annotations

import shutil
from pathlib import Path


def run_folders(folder: Path, run_id: str, kind: str = "offline-run") -> list[Path]:
    """W&B's folders of a run below a sweep's folder, the oldest first.

    Args:
        folder: the sweep's folder.
        run_id: the run's id.
        kind: `offline-run`, or `run` for those that were logged online.
    """
    # W&B numbers those of the same second.
    folders = folder.glob(f"wandb/{kind}-*-{run_id}*")
    return sorted(f for f in folders if (f / f"run-{run_id}.wandb").is_file())


def was_ever_online(folder: Path) -> bool:
    """Whether a start of the sweep sent anything to W&B by itself."""
    return any(folder.glob("wandb/run-*"))


def waiting_runs(folder: Path) -> list[Path]:
    """Offline runs below a sweep's folder that are not uploaded yet."""
    files = folder.glob("wandb/offline-run-*/run-*.wandb")
    return sorted(file.parent for file in files if not _upload_mark(file).exists())


def uploaded_at(folder: Path, run_id: str) -> float:
    """When the user last uploaded offline data of a run, as a Unix time; 0 if never."""
    files = [file for f in run_folders(folder, run_id) for file in f.glob("run-*.wandb")]
    marks = [mark for file in files if (mark := _upload_mark(file)).exists()]
    return max((mark.stat().st_mtime for mark in marks), default=0.0)


def discard_waiting(folder: Path, run_id: str) -> None:
    """Delete what was logged offline of a run and not uploaded: it is written anew."""
    for waiting in set(run_folders(folder, run_id)) & set(waiting_runs(folder)):
        shutil.rmtree(waiting)


def _upload_mark(file: Path) -> Path:
    """The file by which `wandb sync` remembers that it has uploaded a run's file."""
    return file.with_suffix(".wandb.synced")
