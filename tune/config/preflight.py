"""Checks what a sweep file names: files before anything runs, metrics once the base is known."""

from __future__ import annotations

from pathlib import Path

from trainables.errors import Fault, UserError
from trainables.files.locations import is_local, resolve
from trainables.files.storage import Location
from trainables.inputs.data import SOURCES, check_templates, load_rows, read_general_text
from trainables.metric_keys import METRICS, VALIDATION_LOSS
from trainables.results.records import BaseRecord
from tune.config.sweep_config import EVALUATED, SweepConfig

_RELATIVE = (
    "paths are relative to the sweep file's folder; with ${...} or --set, to where the command runs"
)


def check_files(config: SweepConfig, output_dir: Location) -> int | None:
    """Read the local files that a sweep names; returns the number of training rows, if local.

    Raises:
        UserError: files are missing or malformed; names all of them.
    """
    faults: list[Fault] = []
    rows: int | None = None
    for source in SOURCES:
        path = getattr(config.data, source)
        if path is None or not is_local(path):
            continue
        try:
            found = load_rows(config.data, source)
        except UserError as error:
            faults += error.faults
            continue
        faults += check_templates(config.data, found, source)
        if source == "path":
            rows = len(found)
    missing = _missing_paths(config)
    faults += missing or _unreadable_text(config)
    faults += _deepspeed_faults(config)
    if config.inspect and isinstance(output_dir, str):
        rule = f"needs the sweep in a folder, got {output_dir}"
        remedy = "leave it out; copy the sweep to a folder afterwards: `python -m analysis inside`"
        faults.append(Fault("inspect", rule, remedy))
    if faults:
        raise UserError(faults)
    return rows


def _missing_paths(config: SweepConfig) -> list[Fault]:
    wanted = [("eval.task_dirs", folder) for folder in config.eval.task_dirs]
    if config.eval.general_text:
        wanted.append(("eval.general_text", config.eval.general_text))
    if is_local(config.model.name):
        wanted.append(("model.name", config.model.name))
    for role, task in config.eval.tasks():
        wanted += [(f"eval.{role}", file) for file in (task.data_files or {}).values()]
    faults = []
    for field, location in wanted:
        try:
            path = Path(resolve(location)).expanduser()
        except ModuleNotFoundError as error:
            faults.append(Fault(field, str(error)))
            continue
        if not path.exists():
            faults.append(Fault(field, f"no such file or folder: {path}", _RELATIVE))
    return faults


def _unreadable_text(config: SweepConfig) -> list[Fault]:
    if config.eval.general_text is None:
        return []
    try:
        read_general_text(config.eval.general_text)
    except UserError as error:
        return error.faults
    return []


def _deepspeed_faults(config: SweepConfig) -> list[Fault]:
    settings = config.deepspeed.config or {}
    if "scheduler" in settings:  # DeepSpeed's would replace the one that LoRA trials use
        rule = "must hold no scheduler, so that all methods have the same one"
        remedy = "leave it out; set train.schedule and train.warmup"
        return [Fault("deepspeed.config", rule, remedy)]
    rate = settings.get("optimizer", {}).get("params", {}).get("lr", "auto")
    if rate != "auto":
        rule = f"must leave the learning rate to the search, got optimizer.params.lr {rate}"
        return [Fault("deepspeed.config", rule, "write auto, or leave it out")]
    return []


def check_metrics(config: SweepConfig, base: BaseRecord) -> None:
    """Check that all metrics that the sweep file names are logged.

    The base's evaluation shows which scores the tasks yield.

    Raises:
        UserError: nothing logs a metric.
    """
    of_training = set(METRICS) & config.logged_metrics() - set(EVALUATED)
    if base.validation_samples == 0:
        of_training -= {VALIDATION_LOSS}
    known = of_training | set(base.metrics)
    faults = [
        Fault(field, f"nothing logs {metric}", f"known: {', '.join(sorted(known))}")
        for field, metric in config.named_metrics()
        if metric not in known
    ]
    if faults:
        raise UserError(faults)
