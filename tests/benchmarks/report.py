"""How long the HTML report of 200 trials takes, the start of Python included.

    PYTHONPATH=tests python tests/benchmarks/report.py

Asked for: under 20 s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from synthetic_sweep import SyntheticSweep

from trainables.records.schema import TrialStatus

PROJECT = Path(__file__).parents[2]
TRIALS, ITEMS = 200, 300


def main() -> None:
    failures = dict.fromkeys(range(5, TRIALS, 17), TrialStatus.DIVERGED)
    sweep = SyntheticSweep(TRIALS, ITEMS, ranks=(1, 2, 4, 8, 16, 32), failures=failures)
    with TemporaryDirectory() as folder:
        sweep.write(Path(folder))
        started = time.perf_counter()
        command = [sys.executable, "-m", "analysis", "report", folder]
        subprocess.run(command, cwd=PROJECT, check=True)
        seconds = time.perf_counter() - started
        size = (Path(folder) / "report.html").stat().st_size
    print(f"{TRIALS} trials, {6 * ITEMS} items each: {seconds:.1f} s, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
