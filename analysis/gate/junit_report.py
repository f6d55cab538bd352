"""Verdicts as JUnit XML, which CI services show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from analysis.gate.verdict import Verdict
from analysis.results.formatting import without_controls
from trainables.errors import Fault, UserError
from trainables.storage.disk import write_whole


def write_junit(file: Path, subject: str, verdicts: Sequence[Verdict]) -> None:
    """Write one test case for each criterion: `failure` if it fails, `skipped` if none can tell.

    Args:
        file: created or replaced, with its folder.
        subject: what was judged.
        verdicts: in order.

    Raises:
        UserError: the file cannot be written.
    """
    outcomes = [verdict.outcome for verdict in verdicts]
    counts = {
        "tests": len(verdicts),
        "failures": outcomes.count("fail"),
        "errors": 0,
        "skipped": outcomes.count("cannot tell"),
    }
    attributes = {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "gate"} | attributes)
    for verdict in verdicts:
        names = {"classname": without_controls(subject), "name": str(verdict.criterion)}
        case = ElementTree.SubElement(suite, "testcase", names)
        text = without_controls(verdict.finding)
        tag = {"fail": "failure", "cannot tell": "skipped"}.get(verdict.outcome)
        if tag:
            ElementTree.SubElement(case, tag, {"message": text})
        else:
            ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(suites)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, ElementTree.tostring(suites, "unicode", xml_declaration=True) + "\n")
    except OSError as error:
        rule = f"cannot write {file}: {error.strerror or error}"
        raise UserError([Fault("--junit", rule, "name a file that can be written")]) from error
