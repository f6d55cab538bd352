"""The report as a file: a page, Markdown for reading, CSV and JSON for computing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from analysis.comparability import notices
from analysis.conclusions import conclude
from analysis.frame import points_frame, trials_frame
from analysis.matched_accuracy import MatchedRow, matched_rows
from analysis.paper_table import LOSS, UNLIKE_BASE, UNLIKE_REFERENCE, paper_table
from analysis.report.answer import answer
from analysis.report.charts import finite
from analysis.report.cost import costs, failures, gpu_hours, none_failed, number, trial_hours
from analysis.report.page import render
from analysis.report.recipe_section import recipe_answer, recipe_table
from analysis.report.strength_section import strength_table
from analysis.report.task_section import flips
from analysis.results.formatting import capitalized, count_trials, without_controls
from analysis.results.repeats import diverged
from analysis.shown_sweeps import Results
from analysis.sweeps import open_sweeps
from trainables.errors import Fault, UserError
from trainables.metric_keys import METRICS
from trainables.storage.disk import write_whole
from trainables.storage.storage import Location


def as_csv(results: Results) -> str:
    """Every trial, including failed ones, and every point: settings, status, final metrics."""
    text: str = points_frame(results.sweeps).set_index("trial_id").to_csv(lineterminator="\n")
    return text


def as_json(results: Results) -> str:
    """The report's sentences and tables; missing numbers are null."""
    found = answer(results)
    document = {
        "sweeps": [sweep.record.model_dump(mode="json") for sweep in results.sweeps],
        "notices": notices(results.sweeps),
        "unfinished": {s.title: s.unfinished for s in results.sweeps if s.unfinished},
        "bases": {sweep.title: sweep.base.metrics for sweep in results.sweeps},
        "recommended": found.trial_id if found else None,
        "strength": found.strength if found else None,
        "repair": found.repair if found else None,
        "reason": found.reason if found else None,
        "feasible": found.is_feasible if found else None,
        "answer": _answer(results),
        "front": [
            {"trial": r.config.trial_id, "strength": r.strength, "repair": r.repair}
            for r in results.front
        ],
        "recipe_answer": recipe_answer(results),
        "recipes": [_matched(row) for row in matched_rows(results)],
        "conclusions": [vars(conclusion) for conclusion in conclude(results)],
        "table": paper_table(results).frame().to_dict("records"),
        "costs": [asdict(cost) for cost in costs(results)],
        "gpu_hours": gpu_hours(results),
        "trial_hours": trial_hours(results),
        "failures": [asdict(failure) for failure in failures(results)],
        "trials": trials_frame(results.sweeps).reset_index().to_dict("records"),
        "metrics": {key: asdict(metric) for key, metric in METRICS.items()},
    }
    return json.dumps(finite(document), indent=1, allow_nan=False) + "\n"


def _answer(results: Results) -> dict[str, object] | None:
    """How certain the recommended trial's numbers are, and what flipped; None without one."""
    if results.recommendation is None:
        return None
    trial, goals = results.recommendation.trial, results.goals
    judged_by = dict.fromkeys([*results.judged_by, *(c.metric for c in goals.constraints)])
    over_items = {m: results.items.interval(trial, m, len(results.candidates)) for m in judged_by}
    seeds = {m: results.over_seeds(trial, m) for m in judged_by}
    return {
        "picked_from": len(results.candidates),
        "intervals": {metric: asdict(found) for metric, found in over_items.items() if found},
        "over_seeds": {metric: asdict(found) for metric, found in seeds.items() if found},
        "repeats": len(results.repeats(trial)),
        "repeats_diverged": diverged(results.repeats(trial)),
        "flips": [asdict(flip) for flip in flips(results, trial)],
    }


def _matched(row: MatchedRow) -> dict[str, object]:
    """A recipe's row, with its trial's id, strength and repair in place of the trial."""
    interval, trial = asdict(row.interval) if row.interval else None, row.trial
    at = {"trial": trial.config.trial_id, "strength": trial.strength, "repair": trial.repair}
    return vars(row) | at | {"interval": interval}


def as_markdown(results: Results) -> str:
    """Answer, conclusions, the table and failures."""
    lines = [_text(f"# {', '.join(sweep.title for sweep in results.sweeps)}"), ""]
    for sweep in results.sweeps:
        if sweep.unfinished:
            lines += [_text(f"**{sweep.title} is unfinished: {sweep.unfinished}.**"), ""]
    for notice in notices(results.sweeps):
        lines += [_text(f"**{notice}**"), ""]
    found = answer(results)
    if found:
        lines += [_text(f"**{found.setting}** ({found.trial}). {found.reason}"), ""]
        for one in found.numbers:
            beside = f" ({'; '.join(one.beside)})" if one.beside else ""
            lines.append(_text(f"- {one.name} **{one.value}**{beside}"))
        lines.append("")
    lines += [*_strengths(results), *_recipes(results), "## What the data say", ""]
    lines += [_text(f"- *{c.verdict}*: {c.statement} ({c.evidence})") for c in conclude(results)]
    table = paper_table(results)
    lines += ["", "## Recipes and capacities, task by task", "", *_table(table.texts())]
    of_loss = f", of the {LOSS} in nats/token" if LOSS in table.summaries else ""
    lines += [
        "",
        f"\\{UNLIKE_BASE} differs from the base, {UNLIKE_REFERENCE} from {table.reference} "
        "(McNemar, or randomised signs where items are graded; corrected for having picked the "
        "trials, Holm-adjusted, 5 %, and an interval without 0), of one run of each, whatever "
        f"repeats say: {UNLIKE_REFERENCE} does not tell what other seeds would give. "
        f"Δ in points{of_loss}. In brackets the mean over repeats with other seeds, of two or more "
        "with its 95 % interval, and how many of these diverged.",
        "",
        "## What did not run to its end",
        "",
    ]
    lines += [
        f"- {failure.count} x {failure.status}: {_plain(failure.reason)} ({_text(failure.trials)})"
        for failure in failures(results)
    ] or [none_failed(results)]
    hours = f"{number(gpu_hours(results))} GPU-hours of training and evaluation"
    lines += ["", f"{count_trials(results.trials)}, {hours}."]
    return without_controls("\n".join(lines)) + "\n"


def _strengths(results: Results) -> list[str]:
    """The recommended trial's curve; empty if it has one point."""
    table = strength_table(results)
    if table is None:
        return []
    rows = [list(row) for row in table.rows]
    rows[table.taken][0] += f" ({results.recommendation.word})" if results.recommendation else ""
    heading = f"## {capitalized(table.trial)} at each strength of its update"
    return [_text(heading), "", *_table([table.titles, *rows]), "", table.note, ""]


def _recipes(results: Results) -> list[str]:
    """Which recipe forgets least, with its table; empty if there are not two to compare."""
    table, found = recipe_table(results), recipe_answer(results)
    if table is None:
        return []
    heading = "## Which recipe learns the domain with the least forgetting"
    answered = [_text(found), ""] if found else []
    return [heading, "", *answered, *_table([table.titles, *table.rows]), "", _text(table.note), ""]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *body = [[_plain(cell) for cell in row] for row in rows]
    rule = ["---", *("---:" for _ in header[1:])]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *body)]


def _text(line: str) -> str:
    """Escape what would start HTML or a link, as in the name of somebody else's sweep."""
    return re.sub(r"<(?=[a-zA-Z/!?])|[\\[]", r"\\\g<0>", line)


def _plain(text: str) -> str:
    """Put on one line and escape markup."""
    return re.sub(r"[\\|<>*_`[]", r"\\\g<0>", " ".join(text.split()))


FORMATS: dict[str, Callable[[Results], str]] = {
    "html": render,
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}


def write_report(sweep_dirs: Sequence[Location], file: Path | None, kind: str | None) -> Path:
    """Write a report about sweeps; returns its file.

    Args:
        sweep_dirs: of sweeps with the same model and evaluation.
        file: default `report.KIND` in the first sweep's folder, or in the current one if that is
            in an object store; if a folder, which one that is new and has no suffix shall be,
            `report.KIND` in it.
        kind: one of `FORMATS`; default the file's suffix, else html.

    Raises:
        UserError: as `open_sweeps`, or the file's suffix is of no format, or it cannot be written.
    """
    kind = kind or _file_format(file)
    results = Results(open_sweeps(sweep_dirs))
    if file is None:
        first = sweep_dirs[0]
        file = first if isinstance(first, Path) else Path.cwd()
    is_named = bool(file.suffix or file.exists()) and not file.is_dir()
    if not is_named:
        file /= f"report.{kind}"
    text = FORMATS[kind](results)
    try:
        if is_named:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        else:
            write_whole(file, text)  # not to where a link in the folder of somebody else leads
    except OSError as error:
        remedy = f"name a file that can be written, such as --to ~/report.{kind}"
        raise UserError(
            [Fault("--to", f"cannot write {file}: {error.strerror}", remedy)]
        ) from error
    return file


def _file_format(file: Path | None) -> str:
    suffix = file.suffix.removeprefix(".").lower() if file and not file.is_dir() else ""
    if suffix and suffix not in FORMATS:
        known = ", ".join(f".{kind}" for kind in FORMATS)
        rule = f"must end in one of {known}, got {file}"
        raise UserError([Fault("--to", rule, "or give --format")])
    return suffix or "html"
