"""Applies each fault of mutants.toml in a copy of the project and runs the tests of its room.

Usage: python tests/mutants.py [TEXT ...]   # only mutants whose file contains one of these texts
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

PROJECT = Path(__file__).resolve().parents[1]
WORKERS = 2
# What a mutant may cost: one that makes its tests hang is found, too.
LONGEST_S = 600


def copied(to: Path) -> None:
    """Copy the files of the project that git knows, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, to / name)


def mutated(file: Path, line: str, replacement: str) -> str:
    """The file's text with its one such line replaced.

    Raises:
        ValueError: there is not exactly one.
    """
    lines = file.read_text(encoding="utf-8").split("\n")
    if lines.count(line) != 1:
        raise ValueError(f"{file.name}: {lines.count(line)} lines are {line.strip()!r}")
    lines[lines.index(line)] = replacement
    return "\n".join(lines)


def is_found(mutant: dict[str, str]) -> bool:
    """Whether a test of the mutant's room fails."""
    with TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        copied(copy)
        file = copy / mutant["file"]
        file.write_text(mutated(file, mutant["line"], mutant["replacement"]), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        marks = "not ray and not slow and not gpu"
        try:
            done = subprocess.run(
                [*command, "-m", marks, *mutant["tests"].split()],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                timeout=LONGEST_S,
            )
        except subprocess.TimeoutExpired:
            return True
        if done.returncode not in (0, 1):  # not even collected
            raise RuntimeError(f"{mutant['file']}: {done.stdout.decode()[-2000:]}")
        return done.returncode == 1


def main(wanted: list[str]) -> int:
    """Prints each mutant's fate and how many were found; returns 0 if enough were."""
    mutants = tomllib.loads((PROJECT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    chosen = [m for m in mutants["mutant"] if not wanted or any(w in m["file"] for w in wanted)]
    found = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        for mutant, was_found in zip(chosen, pool.map(is_found, chosen), strict=True):
            found += was_found
            fate = "found   " if was_found else "SURVIVED"
            print(f"{fate} {mutant['file']}: {mutant['breaks']}", flush=True)
    print(f"{found} of {len(chosen)} found")
    return int(found < len(chosen) * 55 / 60)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
