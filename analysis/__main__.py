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
    inside = commands.add_parser("inside", help="what changed inside the models of trials")
    inside.add_argument("sweep_dir", type=Path, metavar="SWEEP_DIR")
    which = inside.add_mutually_exclusive_group()
    which.add_argument("--trials", type=int, nargs="+", metavar="NUMBER")
    which.add_argument("--all", action="store_true", help="not only the notable ones")
    options = parser.parse_args(arguments)
    try:
        if options.command == "inside":
            _inside(options.sweep_dir, options.trials, options.all)
        else:
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


def _inside(sweep_dir: Path, trials: list[int] | None, everything: bool) -> None:
    from rich.console import Console

    from analysis.inside import as_table, every_trial, look_inside
    from trainables.inside.records import InsideFolder

    records = look_inside(
        sweep_dir,
        every_trial(sweep_dir) if everything else trials,
        lambda r: print(f"trial {r.number}: {r.reason or f'{r.seconds:.1f} s'}", flush=True),
    )
    Console().print(as_table(records, sweep_dir))
    print(InsideFolder(sweep_dir).root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
