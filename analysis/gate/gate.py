"""The command: judge a model by criteria, print the verdicts, return the exit code."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.gate.criteria import check_measured
from analysis.gate.evidence import find_evidence
from analysis.gate.junit_report import write_junit
from analysis.gate.subject import Subject
from analysis.gate.verdict import exit_code, judge
from trainables.config import Constraint
from trainables.errors import Fault, UserError


def check_usage(options: Namespace) -> None:
    """Check that the options are those of a sweep, or those of a model with its base.

    Raises:
        UserError: some are of the other kind, or the model is missing or given twice.
    """
    given = options.subject, options.model
    faults: list[Fault] = []
    if options.base is None:
        for option in ("model", "tasks", "set"):
            if getattr(options, option):
                faults.append(Fault(f"--{option}", "needs --base", "name the model's base"))
        if options.subject is None and not faults:
            faults.append(Fault("SWEEP_OR_MODEL", "is missing", "name a sweep's folder"))
        elif options.subject and _is_model(Path(options.subject)):
            rule = f"is a model, and needs --base: {options.subject}"
            faults.append(Fault("SWEEP_OR_MODEL", rule, "give --base BASE --tasks TASK"))
    else:
        for option in ("trial", "strength"):
            if getattr(options, option) is not None:
                faults.append(Fault(f"--{option}", "is of a sweep", "leave it out, or --base"))
        if given.count(None) != 1:
            faults.append(Fault("--model", "must be given once", "name one model beside --base"))
    if faults:
        raise UserError(faults)


def _is_model(folder: Path) -> bool:
    return any((folder / f"{kind}config.json").exists() for kind in ("", "adapter_"))


def pass_gate(
    subject: Subject,
    criteria: Sequence[Constraint],
    junit: Path | None,
    write: Callable[[str], None],
) -> int:
    """Judge a model; returns the exit code, see `exit_code`.

    Args:
        subject: the model.
        criteria: at least one.
        junit: also write the verdicts there.
        write: called with one line for each criterion.

    Raises:
        UserError: the model lacks a metric, or the file cannot be written.
    """
    check_measured(criteria, subject.metrics, subject.name)
    verdicts = [
        judge(
            criterion, subject.metrics[criterion.metric], find_evidence(criterion.metric, subject)
        )
        for criterion in criteria
    ]
    for verdict in verdicts:
        write(str(verdict))
    if junit is not None:
        write_junit(junit, subject.name, verdicts)
    return exit_code(verdicts)
