"""The command line: arguments in, exit code out.

Exit codes: 0 done; 1 no trial completed; 2 the input is at fault; 3 the cluster's head is lost;
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.errors import Fault, UserError, causes, first_line
from trainables.records.ledger import Ledger, cannot_write
from trainables.records.schema import TrialStatus
from trainables.redaction import redacted
from trainables.storage.disk import MAKE_ROOM, disk_full, find_full_disk_message, is_disk_full
from trainables.storage.storage import join, parse_location
from tune.config.sweep_file import bundled_sweeps, load_sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from trainables.records.record_paths import SweepFolder
    from trainables.storage.storage import Location
    from tune.config.sweep_config import SweepConfig
    from tune.folder.lock import SweepLock

OK, NOTHING_COMPLETED, BAD_INPUT, HEAD_LOST, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show ends nothing
    try:
        options = _parser().parse_args(arguments)
        from_options = _overrides(options)
        config = load_sweep(options.sweep, [*options.overrides, *from_options], from_options)
        if options.stop_trial is not None:
            from tune.folder.ask_to_stop import ask_to_stop

            print(ask_to_stop(join(options.output_dir, config.name), options.stop_trial))  # noqa: T201
            return OK
        from tune.config.preflight import check_files
        from tune.tracking.wandb_settings import check_variables, in_its_project

        samples = check_files(config, options.output_dir)
        check_variables(config.wandb)
        config = in_its_project(config, options.output_dir)
        if options.dry_run:
            from tune.folder.sweep_folder import check_sweep_folder
            from tune.terminal.dry_run import print_plan

            print_plan(config, samples, options.output_dir, options.retry_failed)
            if isinstance(options.output_dir, Path):  # a store may be out of reach from here
                check_sweep_folder(options.output_dir / config.name)
            return OK
        return _run(config, options)
    except UserError as error:
        for fault in error.faults:
            print(redacted(f"error: {fault}"), file=sys.stderr)  # noqa: T201
        return BAD_INPUT
    except KeyboardInterrupt:  # before the first trial, or for the second time
        print("interrupted; the same command goes on", file=sys.stderr)  # noqa: T201
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python tune/run.py",
        description="Search method, rank, alpha and learning rate for the best trade-off between "
        "learning a domain and forgetting the rest. Rerun the same command to resume.",
    )
    parser.add_argument(
        "sweep",
        nargs="?",
        default="quickstart",
        metavar="SWEEP",
        help=f"a YAML file, or one of: {', '.join(bundled_sweeps())} (default: quickstart)",
    )
    parser.add_argument(
        "--num-trials", type=int, metavar="N", help="trials in total, not counting repeats"
    )
    parser.add_argument(
        "--max-gpus", type=int, metavar="N", help="use at most this many GPUs at once"
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="run failed trials again, from their checkpoints",
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument(
        "--stop-trial",
        type=int,
        metavar="N",
        help="end this running trial; the others go on",
    )
    parser.add_argument(
        "--output-dir",
        type=parse_location,
        default=Path("sweeps"),
        metavar="DIR",
        help="folder of sweeps, or s3://bucket/sweeps (default: sweeps)",
    )
    parser.add_argument(
        "--address",
        help="Ray cluster to join: auto for the one that runs on this machine, or HOST:PORT "
        "(default: start Ray here)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override the sweep file; may be repeated",
    )
    one.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    return parser


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    """Overrides by options such as `--num-trials`, each with the text that was typed."""
    fields = {"--num-trials": "budget.trials", "--max-gpus": "resources.max_gpus"}
    given = [(name, getattr(options, name[2:].replace("-", "_"))) for name in fields]
    return {f"{fields[name]}={n}": f"{name} {n}" for name, n in given if n is not None}


def _run(config: SweepConfig, options: argparse.Namespace) -> int:
    """Run the sweep in its folder, which is left as it was if the input is at fault."""
    from tune.folder.sweep_folder import check_sweep_folder

    location = join(options.output_dir, config.name)
    is_new = check_sweep_folder(location)
    if not is_new or config.warm_start:
        from tune.search.earlier_trials import preview_earlier_trials

        # Before Ray starts, which takes many seconds; the sweep checks again under its lock.
        preview_earlier_trials(config, options.output_dir)
    where = f"connecting to Ray at {options.address}" if options.address else "starting Ray"
    print(f"{config.name}: {where} ...", flush=True)  # noqa: T201
    from tune.cluster.ray_cluster import ray_cluster
    from tune.folder.lock import SweepLock
    from tune.process_signals import interrupting
    from tune.sweep import Sweep
    from tune.terminal.console import ConsoleListener
    from tune.terminal.hints import to_go_on, to_retry
    from tune.terminal.log_redirect import redirect_logs
    from tune.terminal.summary import print_summary
    from tune.tracking.saved_views import in_wandb
    from tune.tracking.wandb_listener import WandbListener

    ledger = Ledger(location)
    with (
        interrupting(),
        _ending_at_once_if_lost(),
        SweepLock(location) as lock,
        _cleared_on_fault(ledger, options.output_dir, lock, is_new),
        _mirrored(ledger, lock),
        redirect_logs(ledger.folder.log) as console,
        ray_cluster(options.address, lambda: _end_without_head(console, options.address)),
        interrupting(),  # again: Ray has set a handler of its own
    ):
        base_cache = join(options.output_dir, ".base")
        sweep = Sweep(config, location, base_cache, options.retry_failed, may_write=lock.check)
        console_listener = ConsoleListener(config, console)
        wandb_listener = WandbListener(config.wandb, location, console_listener.preparing)
        outcome = sweep.run([console_listener, wandb_listener])
        hints = [
            *to_go_on(options, config, outcome),
            *to_retry(options, outcome),
            *in_wandb(wandb_listener, location, outcome.interrupted),
        ]
        print_summary(console, config, outcome.base, outcome.records, location, hints)
    if outcome.interrupted:
        return INTERRUPTED
    complete = any(record.status is TrialStatus.COMPLETE for record in outcome.records)
    return OK if complete else NOTHING_COMPLETED


def _end_without_head(console: Console, address: str | None) -> None:
    """Report it and exit at once: calls into Ray may block forever. The ledger is intact.

    Without an address the command itself had started Ray.
    """
    message = "the cluster's head answers no more; start the cluster again, then the same command"
    if address is None:
        message = "Ray, started by this command, answers no more; the same command starts it and"
    console.show_cursor()
    console.print(f"\nerror: {message} goes on where it stopped", soft_wrap=True)
    os._exit(HEAD_LOST)


@contextlib.contextmanager
def _ending_at_once_if_lost() -> Iterator[None]:
    """Report that another driver has the sweep, and exit before W&B marks its runs as finished."""
    from tune.folder.lock import SweepLost

    try:
        yield
    except SweepLost as error:
        print(redacted(f"error: {error}"), file=sys.stderr, flush=True)  # noqa: T201
        sys.stdout.flush()
        os._exit(BAD_INPUT)


@contextlib.contextmanager
def _mirrored(ledger: Ledger, lock: SweepLock) -> Iterator[None]:
    """Fetch an object store's log at the start and publish the mirrors to it at the end."""
    ledger.folder.root.mkdir(parents=True, exist_ok=True)
    ledger.fetch_log()
    yield
    lock.check()
    ledger.publish_mirrors()


@contextlib.contextmanager
def _cleared_on_fault(
    ledger: Ledger, output_dir: Location, lock: SweepLock, is_new: bool
) -> Iterator[None]:
    """If the input is wrong, remove a folder that is new and holds no sweep yet.

    Raises:
        UserError: also if the disk is full, or the sweep's store does not answer or refuses.
    """
    from ray.tune import TuneError

    try:
        yield
    except UserError:
        lock.check()
        with contextlib.suppress(OSError):
            if is_new and not ledger.exists():
                ledger.storage.remove("")
                shutil.rmtree(ledger.folder.root, ignore_errors=True)
                if isinstance(output_dir, Path):
                    output_dir.rmdir()
        raise
    except (OSError, TuneError) as error:  # a listener's error arrives as text
        lock.check()
        if user_error := _as_user_error(error, ledger.folder):
            raise user_error from error
        raise


def _as_user_error(error: Exception, folder: SweepFolder) -> UserError | None:
    """The message about a full disk or a store that fails; None for other errors."""
    from trainables.storage.object_storage import is_store_error

    if is_disk_full(error):
        rule = find_full_disk_message(error) or disk_full(error, folder.root)
        return UserError([Fault("--output-dir", rule, MAKE_ROOM)])
    for each in causes(error):
        if isinstance(each, UserError):
            return each
    of_store = next(filter(is_store_error, causes(error)), None) if folder.is_in_store else None
    return cannot_write(folder.location, first_line(of_store)) if of_store else None
