"""Entry point: `python tune/run.py [SWEEP]`. Defines nothing that is sent to workers.

Python puts this file's folder first on its path, where one of our modules could shadow a
library's, so the first lines put the project's folder there instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tune.cli import main  # noqa: E402 - after the path is right

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
