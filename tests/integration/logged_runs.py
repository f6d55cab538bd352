"""Offline runs, read back with W&B's own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WANDB = str(Path(sys.executable).with_name("wandb"))


class LoggedRun:
    """One `.wandb` file, as `wandb leet inspect` prints it."""

    def __init__(self, file: Path) -> None:
        command = [WANDB, "leet", "inspect", "--json", str(file)]
        environment = {**os.environ, "WANDB_MODE": "offline"}
        lines = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout
        self._records: list[dict[str, Any]] = [json.loads(line) for line in lines.splitlines()]
        self.run = self._of_type("run")[0]
        self.exit_codes = [record.get("exit_code", 0) for record in self._of_type("exit")]
        history = [record["item"] for record in self._of_type("history")]
        self.points = [{k: v for k, v in item.items() if k[0] != "_"} for item in history]
        self.steps = [item["_step"] for item in history]
        self.times = [item["_timestamp"] for item in history]
        self.config = self._merged("config", self.run["config"]["update"])
        self.summary = self._merged("summary", {})
        self.step_metrics = {
            m.get("name") or m.get("glob_name"): m.get("step_metric")
            for m in self._of_type("metric")
        }

    def _of_type(self, kind: str) -> list[dict[str, Any]]:
        return [record[kind] for record in self._records if record["type"] == kind]

    def _merged(self, kind: str, start: dict[str, Any]) -> dict[str, Any]:
        merged = dict(start)
        for record in self._of_type(kind):
            merged.update(record.get("update", {}))
        return merged


def logged_runs(folder: Path, *run_ids: str) -> list[LoggedRun]:
    """Every offline file of these runs, the oldest first."""
    pattern = "wandb/offline-run-*/run-{}.wandb"
    files = [file for run_id in run_ids for file in folder.glob(pattern.format(run_id))]
    with ThreadPoolExecutor() as pool:  # the reader takes half a second to start
        return list(pool.map(LoggedRun, sorted(files, key=lambda file: file.stat().st_mtime_ns)))
