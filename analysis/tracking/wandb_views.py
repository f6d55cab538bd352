"""Compares a sweep's runs in W&B: creates or updates a saved workspace view and a report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_workspaces import expr

from analysis.inspect_models import inspected
from analysis.results.formatting import score_metrics, setting
from analysis.results.recommendation import numbers_text
from analysis.results.wandb_names import (
    SETTING_GROUP,
    base_run_id,
    setting_group,
    upload_command,
    views_command,
)
from analysis.sweeps import Sweep, open_sweeps
from analysis.tracking.wandb_inspection import log_inspection, tables_of
from analysis.tracking.wandb_panels import PanelGroup, laid_out, panel_groups
from trainables import metric_keys
from trainables.compat.wandb import set_address
from trainables.errors import Fault, UserError, first_line
from trainables.records.schema import TrialStatus
from trainables.storage.storage import Location

_SECONDS_TO_ANSWER = 15
_SETTINGS = (
    "config:recipe.value",
    "config:capacity.value",
    f"config:{metric_keys.LEARNING_RATE}.value",
)


def make_views(sweep_dir: Location) -> list[str]:
    """Create or update the view and the report of a sweep.

    A sweep has one view and one report, on every machine: the view's name is
    derived from the sweep's id, the report is found by its description. Manual changes to their
    panels are overwritten.

    Returns:
        Lines for the user: where both are or, without a key, what would be made and how.

    Raises:
        UserError: no sweep in the folder, it was not meant for W&B or is not there yet, or W&B
            refuses or does not answer.
    """
    [sweep] = open_sweeps([sweep_dir])
    views = SweepViews(sweep)
    if not _has_key():
        return views.describe()
    try:
        return views.save(wandb.Api(timeout=_SECONDS_TO_ANSWER))
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        rule = f"W&B did not make the views: {first_line(error)}"
        remedy = "check the connection, `wandb login` and wandb.entity, and type the command again"
        raise UserError([Fault("", rule, remedy)]) from error


class SweepViews:
    """The view and the report of one sweep; UserError if it was not logged to W&B."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._sweep_id = sweep.record.sweep_id
        self._settings = sweep.settings
        self._folder = sweep.ledger.folder.root
        if self._settings.wandb.mode == "disabled":
            rule = "the sweep was run with wandb.mode: disabled, so W&B has none of its runs"
            raise UserError([Fault("SWEEP_DIR", rule)])
        self._runs = max(len(sweep.trials), self._settings.budget.trials) + 1  # with the base
        self._name = f"Forgetting sweep {self._sweep_id}"

    def describe(self) -> list[str]:
        """Describe what would be made, and how."""
        place = f"{self._settings.wandb.entity or 'your entity'}/{self._settings.wandb.project}"
        return [
            "W&B is offline or has no key here, so nothing was sent. To make the workspace view "
            f"and the report {self._name!r} of group {self._sweep_id} in {place}:",
            "  wandb login",
            *([f"  {upload}"] if (upload := self._upload()) else []),
            f"  {views_command(self._sweep.ledger.folder.location)}",
        ]

    def save(self, api: wandb.Api) -> list[str]:
        """Create or update both; returns where they are."""
        entity = self._settings.wandb.entity or api.settings["entity"] or api.default_entity
        project = self._settings.wandb.project
        self._check_runs(api, entity, project)
        log_inspection(self._sweep, "online")
        workspace = self._workspace(entity, project)
        workspace.save()
        report = self._report(api, entity, project)
        report.save()
        return [f"view    {workspace.url}", f"report  {report.url}"]

    def _check_runs(self, api: wandb.Api, entity: str, project: str) -> None:
        try:
            logged = len(api.runs(f"{entity}/{project}", {"group": self._sweep_id}, per_page=1))
        except ValueError:  # no such project
            logged = 0
        if not logged:
            rule = f"{entity}/{project} at W&B has no run of the sweep {self._sweep_id}"
            raise UserError([Fault("SWEEP_DIR", rule, self._upload() or "run it online first")])

    def _upload(self) -> str | None:
        folder = self._folder / "wandb"
        return upload_command(folder) if any(folder.glob("offline-run-*")) else None

    def _groups(self) -> list[PanelGroup]:
        logged = {key for record in self._sweep.trials for key in record.metrics}
        inspections = inspected(self._sweep, self._sweep.trials)
        tables = dict.fromkeys(key for _, found in inspections for key in tables_of(found))
        complete = (r for r in self._sweep.trials if r.status is TrialStatus.COMPLETE)
        settings = dict.fromkeys(setting_group(r) for r in complete if r.confirms is None)
        scaled = {key for r in self._sweep.trials for point in r.points for key in point.metrics}
        return panel_groups(logged, self._runs, tables, list(settings), scaled)

    def _workspace(self, entity: str, project: str) -> ws.Workspace:
        """W&B's existing view, or a new one, with up-to-date contents."""
        # Only the part of the URL after the host matters, even on a self-hosted server.
        slug = hashlib.sha256(self._sweep_id.encode()).hexdigest()[:11]
        try:
            workspace = ws.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={slug}")
        except ValueError as error:
            if "not found" not in str(error):
                raise
            workspace = ws.Workspace(entity=entity, project=project)
            set_address(workspace, slug)
        workspace.name = self._name
        workspace.sections = [
            ws.Section(name=group.title, panels=list(group.panels.values()), is_open=True)
            for group in self._groups()
        ]
        workspace.settings = ws.WorkspaceSettings(
            x_axis=metric_keys.GLOBAL_STEP, max_runs=self._runs
        )
        gain = metric_keys.domain_metric(self._sweep.base.metrics)
        is_loss = metric_keys.METRICS[gain].better == "min"
        workspace.runset_settings = ws.RunsetSettings(
            filters=[expr.Metric("Group") == self._sweep_id],
            order=[expr.Ordering(expr.Summary(gain), ascending=is_loss)],
            pinned_columns=self._columns(),
            baseline_run=base_run_id(self._sweep_id),
        )
        return workspace

    def _columns(self) -> list[str]:
        """What W&B's table of runs shows first."""
        scores = score_metrics(self._sweep.base.metrics)
        return [*_SETTINGS, *(f"summary:{key}" for key in scores), "summary:status"]

    def _report(self, api: wandb.Api, entity: str, project: str) -> wr.Report:
        """W&B's existing report, or a new one, with up-to-date contents."""
        description = f"Made by `python -m analysis wandb-views` of the sweep {self._sweep_id}."
        found = (r for r in api.reports(f"{entity}/{project}") if r.description == description)
        earlier = next(found, None)
        report = (
            wr.Report.from_url(earlier.url)
            if earlier
            else wr.Report(entity=entity, project=project, title=self._name)
        )
        report.description = description
        report.width = "fluid"
        report.blocks = [*self._answer(), *self._grids(entity, project)]
        return report

    def _answer(self) -> list[Any]:
        """The sweep's progress and the recommended trial."""
        unfinished = self._sweep.unfinished
        state = [wr.P(f"The sweep is not finished: {unfinished}.")] if unfinished else []
        recommendation = self._sweep.recommendation
        if recommendation is None:
            text = "No trial to recommend: none is complete with every objective."
            return [*state, wr.P(text)]
        trial = recommendation.trial
        name = f"{recommendation.word.capitalize()}: {numbers_text([trial])}"
        text = f"{name} ({setting(trial)}). "
        return [*state, wr.P(text + recommendation.reason + self._sweep.missing_repeats())]

    def _grids(self, entity: str, project: str) -> Iterator[Any]:
        for group in laid_out(self._groups()):
            runs = wr.Runset(
                entity=entity,
                project=project,
                name=self._sweep_id,
                filters=[expr.Metric("Group") == self._sweep_id, *_only(group.shown)],
                pinned_columns=["run:displayName", *self._columns()],
            )
            yield wr.H2(group.title)
            yield wr.PanelGrid(runsets=[runs], panels=list(group.panels.values()))


def _only(groups: Sequence[str]) -> list[expr.FilterExpr]:
    """A filter that keeps runs of these groups of settings; none if there are no groups."""
    # With `.value`, as W&B stores configurations and writes such filters on its own pages.
    key = f"{SETTING_GROUP}.value"
    return [expr.Config(key).isin(list(groups))] if groups else []


def _has_key() -> bool:
    """Whether W&B can be used: it is online and finds a key, which is not sent anywhere."""
    wandb.setup(wandb.Settings(silent=True))
    return bool(wandb.login(prompt=False, verify=False))
