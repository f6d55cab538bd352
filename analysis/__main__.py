"""Report on sweeps, plot them, watch them, and export the winner."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory

from trainables.errors import Fault, UserError
from trainables.redaction import redacted
from trainables.storage.disk import disk_full, is_disk_full
from trainables.storage.storage import parse_folder, parse_location

NOT_READ, INTERRUPTED = 1, 130
_FORMATS = ("html", "md", "csv", "json")
_SWEEP_DIR = "folder of a sweep, such as sweeps/quickstart"
_TRUST, _TRUSTED = "--trust-remote-code", "run code that the base model brings"


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code: 2 for faulty input, 130 after Ctrl-C.

    It is 1 if nobody reads on, as after `| head`; `gate` has codes of its own.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a terminal cannot show ends nothing
    try:
        options = _parser().parse_args(arguments)
        code: int | None = options.run(options)
        sys.stdout.flush()
    except UserError as error:
        return _refused(error.faults)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # What is still to be written would fail as Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_READ
    except Exception as error:
        if not is_disk_full(error):  # for which each library that writes has an error of its own
            raise
        given = vars(options)
        rule = disk_full(error, Path(given.get("to") or given.get("sweep_dir", "")))
        return _refused([Fault("", rule, "make room, and type the same command again")])
    return code or 0


def _refused(faults: Iterable[Fault]) -> int:
    from analysis.results.formatting import without_controls

    for fault in faults:
        print(without_controls(redacted(f"error: {fault}")), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser("report", help="one HTML page, or a table as md, csv or json")
    report.add_argument(
        "sweep_dirs", type=parse_location, nargs="+", metavar="SWEEP_DIR", help=_SWEEP_DIR
    )
    report.add_argument("--to", type=Path, metavar="FILE", help="default SWEEP_DIR/report.FORMAT")
    report.add_argument("--format", choices=_FORMATS, help="default what FILE ends in, else html")
    report.set_defaults(run=_report)
    figure = commands.add_parser("figure", help="figures for a paper, as PDF, PNG or SVG")
    figure.add_argument("sweep_dir", type=parse_location, metavar="SWEEP_DIR", help=_SWEEP_DIR)
    text = "default trade_off.png; a folder: the curves over capacities, too"
    figure.add_argument("--to", type=Path, default=Path("trade_off.png"), metavar="FILE", help=text)
    figure.set_defaults(run=_figure)
    inspect = commands.add_parser("inspect", help="what changed inside the models of trials")
    inspect.add_argument("sweep_dir", type=parse_folder, metavar="SWEEP_DIR", help=_SWEEP_DIR)
    which = inspect.add_mutually_exclusive_group()
    which.add_argument("--trials", type=int, nargs="+", metavar="NUMBER", help="only these trials")
    which.add_argument(
        "--all", action="store_true", help="all trials, not only the front and each group's best"
    )
    inspect.add_argument(_TRUST, action="store_true", help=_TRUSTED)
    inspect.set_defaults(run=_inspect)
    runs = commands.add_parser("wandb-runs", help="a sweep's trials, read back from W&B, as CSV")
    runs.add_argument(
        "project", metavar="ENTITY/PROJECT", help="project in W&B; PROJECT alone: your own entity's"
    )
    runs.add_argument(
        "sweep_id", metavar="SWEEP_ID", help="the runs' group; sweep_id in sweep.json"
    )
    runs.add_argument(
        "--to", type=Path, default=Path("runs.csv"), metavar="FILE", help="default runs.csv"
    )
    runs.set_defaults(run=_wandb_runs)
    watch = commands.add_parser("watch", help="a running sweep, live; Ctrl-C leaves it running")
    watch.add_argument("sweep_dir", type=parse_folder, metavar="SWEEP_DIR", help=_SWEEP_DIR)
    watch.add_argument("--once", action="store_true", help="print it once and exit")
    watch.set_defaults(run=_watch)
    views = commands.add_parser("wandb-views", help="a view and a report in W&B, made or updated")
    views.add_argument("sweep_dir", type=parse_location, metavar="SWEEP_DIR", help=_SWEEP_DIR)
    views.set_defaults(run=_wandb_views)
    export = commands.add_parser("export", help="the winner's adapter or model, with a model card")
    export.add_argument("sweep_dir", type=parse_folder, metavar="SWEEP_DIR", help=_SWEEP_DIR)
    export.add_argument("--to", type=Path, metavar="DIR", help="new or empty folder")
    text = "push it to this repository of a Hugging Face hub, which is made private if it is new"
    export.add_argument("--push", metavar="USER/NAME", help=text)
    export.add_argument("--public", action="store_true", help="make a new repository public")
    export.add_argument(
        "--trial", type=int, metavar="N", help="this trial instead of the recommended one"
    )
    text = "at this strength of its update, one that was evaluated, instead of the recommended one"
    points = export.add_mutually_exclusive_group()
    points.add_argument("--strength", type=float, metavar="S", help=text)
    text = "its weights as this repair left them: no_intruders or seed_mean"
    points.add_argument("--repair", metavar="NAME", help=text)
    export.add_argument("--merge", action="store_true", help="merge the adapter into its base")
    export.add_argument(_TRUST, action="store_true", help=_TRUSTED)
    export.set_defaults(run=_export)
    _add_gate(commands.add_parser("gate", help="judge a model by criteria, for CI"))
    return parser


def _add_gate(gate: argparse.ArgumentParser) -> None:
    gate.description = (
        "Exit code 0: every criterion is met, 1: one is missed beyond its interval, 3: there are "
        "too few items to tell, 2: wrong usage."
    )
    text = f"{_SWEEP_DIR}; with --base a model or adapter"
    gate.add_argument("subject", nargs="?", metavar="SWEEP_OR_MODEL", help=text)
    gate.add_argument("--max-forgetting", metavar="X", help="such as 0.02: --max forgetting/mean=X")
    for option, sign in (("--min", ">="), ("--max", "<=")):
        text = f"METRIC {sign} X is a criterion; may be repeated"
        gate.add_argument(option, action="append", default=[], metavar="METRIC=X", help=text)
    text = "this trial instead of the recommended one"
    gate.add_argument("--trial", type=int, metavar="N", help=text)
    text = "this strength, one that was evaluated, instead of the recommended one"
    gate.add_argument("--strength", type=float, metavar="S", help=text)
    gate.add_argument("--base", metavar="B", help="base of a model that is of no sweep")
    gate.add_argument("--model", metavar="M", help="model, or adapter on the base")
    text = "harness tasks, each TASK (forgetting is measured on it), in_domain:TASK or ood:TASK"
    gate.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help=text)
    text = "as in a sweep file: eval.KEY or model.KEY, such as eval.limit=500"
    gate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    gate.add_argument("--junit", type=Path, metavar="FILE", help="also as JUnit XML")
    gate.set_defaults(run=_gate)


def _report(options: argparse.Namespace) -> None:
    from analysis.report.formats import write_report

    print(write_report(options.sweep_dirs, options.to, options.format))


def _figure(options: argparse.Namespace) -> None:
    from analysis.figures import save, save_all, trade_off
    from analysis.shown_sweeps import Results
    from analysis.sweeps import open_sweeps

    results = Results(open_sweeps([options.sweep_dir]))
    files: list[Path] = []
    if not options.to.suffix:
        files = save_all(results, options.to)
    elif figure := trade_off(results):
        save(figure, options.to)
        files = [options.to]
    if not files:
        rule = f"has no complete trial with forgetting or OOD accuracy: {options.sweep_dir}"
        raise UserError([Fault("SWEEP_DIR", rule)])
    print(*files, sep="\n")


def _inspect(options: argparse.Namespace) -> None:
    from rich.console import Console

    from analysis.inspect_models import as_table, inspect_trials
    from analysis.results.formatting import one_line
    from analysis.sweeps import open_ledger
    from trainables.inspection.inspection_records import InspectionFolder, InspectionRecord

    sweep_dir: Path = options.sweep_dir

    def report(record: InspectionRecord) -> None:
        result = one_line(record.reason) if record.reason else f"{record.seconds:.1f} s"
        print(f"trial {record.number}: {result}", flush=True)

    numbers = options.trials
    if options.all:
        numbers = [record.number for record in open_ledger(sweep_dir).trials()]
    records = inspect_trials(sweep_dir, numbers, report, options.trust_remote_code)
    Console().print(as_table(records, sweep_dir))
    print(InspectionFolder(sweep_dir).root)


def _wandb_runs(options: argparse.Namespace) -> None:
    from analysis.tracking.wandb_download import load_wandb_runs

    trials = load_wandb_runs(options.project, options.sweep_id)
    try:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        trials.to_csv(options.to, lineterminator="\n")
    except OSError as error:
        rule = f"cannot write {options.to}: {error.strerror}"
        raise UserError([Fault("--to", rule, "name a file that can be written")]) from error
    print(options.to)


def _watch(options: argparse.Namespace) -> None:
    from analysis.watch import watch

    watch(options.sweep_dir, options.once)


def _wandb_views(options: argparse.Namespace) -> None:
    from analysis.tracking.wandb_views import make_views

    print(*make_views(options.sweep_dir), sep="\n")


def _export(options: argparse.Namespace) -> None:
    from analysis.chosen_point import choose_point
    from analysis.export.hub import check_push, push
    from analysis.export.weights import export, export_name
    from analysis.sweeps import open_sweeps

    if options.push is not None:
        check_push(options.push)
    elif options.to is None:
        raise UserError([Fault("--to", "is required without --push", "name a new folder")])
    elif options.public:
        raise UserError([Fault("--public", "needs --push", "add --push USER/NAME")])
    [sweep] = open_sweeps(options.sweep_dir)
    record = choose_point(sweep, options.trial, options.strength, options.repair)
    with TemporaryDirectory() as scratch:
        folder = export(
            sweep,
            record,
            options.to or Path(scratch, "export"),
            options.merge,
            lambda text: print(text, file=sys.stderr),
            options.trust_remote_code,
        )
        if options.to is not None:
            print(folder)
        if options.push is not None:
            name = export_name(sweep, record)
            print(redacted(push(folder, options.push, name, options.public)))


def _gate(options: argparse.Namespace) -> int:
    from analysis.gate.criteria import read_criteria
    from analysis.gate.gate import check_usage, pass_gate

    check_usage(options)
    criteria = read_criteria(options.max_forgetting, options.min, options.max)

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if options.base is None:
        from analysis.gate.sweep_trial import read_trial

        location = parse_location(options.subject)
        subject = read_trial(location, options.trial, options.strength)
    else:
        from analysis.gate.plain_settings import read_plain_settings

        settings = read_plain_settings(options.base, options.tasks, options.set)
        from analysis.gate.plain_model import evaluate_plain

        subject = evaluate_plain(settings, options.model or options.subject, report)
    report(f"{subject.name}: {subject.about}")
    return pass_gate(subject, criteria, options.junit, print)


def _end(code: int) -> None:
    """End the process; after an error, without W&B's exit handlers, which may wait for minutes."""
    if code and "wandb" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
