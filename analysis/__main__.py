"""`python -m analysis`: figures from a finished or running sweep."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainables.errors import UserError


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code, 2 where the input is at fault."""
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    figure = commands.add_parser("figure", help="the trade-off as PNG, PDF or SVG")
    figure.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR")
    figure.add_argument("--to", type=Path, default=Path("trade_off.png"), metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        _figure(options.sweep_dir, options.to)
    except UserError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return 2
    return 0


def _figure(sweep_dir: Path, file: Path) -> None:
    from analysis.figures import save, trade_off
    from analysis.frame import load_base, load_trials

    save(trade_off(load_trials(sweep_dir), load_base(sweep_dir), sweep_dir.name), file)
    print(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
