"""W&B views against a GraphQL server on loopback that checks and keeps what is sent."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import pytest
from builders import GAIN, LOSS, OOD, SWEEP_ID, change_config, record_sweep
from wandb_graphql_server import ENTITY, GraphqlServer, graphql_server

from analysis.sweeps import open_sweeps
from analysis.tracking.wandb_inspection import log_inspection
from trainables import metric_keys
from trainables.inspection.inspection_records import (
    AttentionDrift,
    InspectionFolder,
    InspectionRecord,
    MatrixChange,
)
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialRecord, TrialStatus
from tune.tracking.saved_views import have_views_made

PROJECT = Path(__file__).parents[3]
KEY = "f00d" * 10
TRIALS = 12


FOUND = InspectionRecord(
    number=2,
    trial_id=f"{SWEEP_ID}-0002",
    ended=builders.trial(2).ended,
    key="abc",
    matrices=tuple(
        MatrixChange(
            layer=n, module="self_attn.q_proj", shape=(8, 8), rank_limit=8, relative_norm=0.1,
            stable_rank=1.5 + n, intruders=n or None, singular_values=(1.0,) * n,
        )
        for n in range(3)
    ),
    attention=tuple(
        AttentionDrift(
            layer=n, js=(0.1, 0.2), js_without_first=(0.3, 0.4),
            entropy_shift=(0.0, -0.5), entropy_shift_without_first=(0.0, -0.6),
        )
        for n in range(3)
    ),
)  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The records of a sweep of LoRA and full trials."""
    folder = tmp_path / "my sweep"
    record_sweep(folder, *map(trial, range(TRIALS)), trials=16)
    return folder


def trial(number: int, **fields: Any) -> TrialRecord:
    full = number % 4 == 3
    metrics = {GAIN: 0.5 + number / 100, LOSS: number / 100, OOD: 0.4,
               metric_keys.TRAIN_LOSS: 0.3, metric_keys.VALIDATION_LOSS: 0.4}  # fmt: skip
    return builders.trial(
        number,
        metrics,
        method="full" if full else builders.adapter(rank=2 ** (number % 4), alpha=8),
        **fields,
    )


@pytest.fixture
def server() -> Iterator[GraphqlServer]:
    with graphql_server(KEY) as running:
        running.projects["forgetting-sweeps"] = [SWEEP_ID] * (TRIALS + 1) + ["another-sweep"]
        yield running


def wandb_views(
    sweep: Path, tmp_path: Path, url: str, key: str | None = KEY, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    places = {"NETRC": "no-netrc", "WANDB_CONFIG_DIR": "no-config", "WANDB_CACHE_DIR": "cache"}
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "wandb-views", str(sweep)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **clean,
            **{name: str(tmp_path / place) for name, place in places.items()},
            "WANDB_BASE_URL": url,
            **({"WANDB_API_KEY": key} if key else {}),
            **environment,
        },
    )
    assert KEY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def panels_of(view: dict[str, Any]) -> list[dict[str, Any]]:
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def grids_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    blocks = report["spec"]["blocks"]
    return [block["metadata"] for block in blocks if block["type"] == "panel-grid"]


def check_panels(panels: list[dict[str, Any]], runs: int) -> None:
    """What a comparison needs is there, under the keys that the sweep logs."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for panel in panels:
        by_kind.setdefault(panel["viewType"], []).append(panel["config"])
    [parallel] = by_kind.pop("Parallel Coordinates Plot")
    assert [column["accessor"] for column in parallel["columns"]] == [
        "config:recipe.value",
        "config:capacity.value",
        "config:train/learning_rate.value",
        f"summary:{GAIN}",
        f"summary:{LOSS}",
        f"summary:{OOD}",
    ]
    assert [bool(column.get("inverted")) for column in parallel["columns"]] == [
        *[False] * 4, True, False,
    ]  # fmt: skip
    scatters = {(s["xAxis"], s["yAxis"], s["zAxis"]) for s in by_kind.pop("Scatter Plot")}
    assert scatters == {
        (f"summary:{key}", f"summary:{GAIN}", "config:recipe.value") for key in (LOSS, OOD)
    }
    bars = by_kind.pop("Bar Chart")
    assert [bar["metrics"] for bar in bars] == [*[[GAIN], [OOD]] * 2, *[[LOSS]] * 2]
    curves = by_kind.pop("Run History Line Plot")
    drawn = [metric for curve in curves for metric in curve["metrics"]]
    assert drawn == [GAIN, LOSS, OOD, metric_keys.VALIDATION_LOSS, metric_keys.TRAIN_LOSS]
    assert {curve["xAxis"] for curve in curves} == {metric_keys.GLOBAL_STEP}
    for grouped in (*bars, *curves):
        by_recipe = grouped in bars and "capacity" not in grouped["chartTitle"]
        assert grouped["groupBy"] == ("recipe.value" if by_recipe else "setting/group.value")
        assert (grouped["groupAgg"], grouped["groupArea"]) == ("mean", "minmax")
        assert grouped["limit"] == runs
    assert [p["targetKey"] for p in by_kind.pop("Parameter Importance")] == [GAIN, LOSS, OOD]
    assert not by_kind


def filters_of(run_set: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": found["key"], "op": found["op"], "value": found["value"]}
        for found in run_set["filters"]["filters"]
    ]


def of_groups(*groups: str) -> dict[str, Any]:
    key = {"section": "config", "name": "setting/group.value"}
    return {"key": key, "op": "IN", "value": list(groups)}


OF_THE_SWEEP = {"key": {"section": "run", "name": "group"}, "op": "=", "value": SWEEP_ID}


def test_the_view_and_the_report_are_made_once_and_then_updated(
    sweep: Path, server: GraphqlServer, tmp_path: Path
) -> None:
    first = wandb_views(sweep, tmp_path, server.url)
    assert first.returncode == 0, first.stderr
    assert server.rejected == []
    assert server.upserts == [True, True]

    view = server.only("project-view")
    check_panels(panels_of(view), runs=17)
    section = view["spec"]["section"]
    assert section["settings"]["maxRuns"] == 17  # the budget's 16 trials and the base
    [run_set] = section["runSets"]
    assert filters_of(run_set) == [OF_THE_SWEEP]
    assert [(key["key"]["name"], key["ascending"]) for key in run_set["sort"]["keys"]] == [
        (GAIN, False)
    ]
    base = base64.b64encode(f"Run:v1:{SWEEP_ID}-base:forgetting-sweeps:{ENTITY}".encode()).decode()
    assert run_set["baselineRunId"] == base
    assert run_set["pinnedRunIds"] == [base]

    report = server.only("runs")
    check_panels(
        [p for grid in grids_of(report) for p in grid["panelBankSectionConfig"]["panels"]], 17
    )
    groups = [*(f"LoRA, rank {rank}" for rank in (1, 2, 4)), "full fine-tuning"]
    filters = [filters_of(grid["runSets"][0]) for grid in grids_of(report)]
    assert filters == [
        [OF_THE_SWEEP],
        [OF_THE_SWEEP, of_groups(*groups, "base")],
        [OF_THE_SWEEP, of_groups(*groups)],
        *[[OF_THE_SWEEP]] * 2,
    ]
    # Gain and forgetting grow alike from trial 0 to 11, so that 5 and 6 are the knee alike.
    said = json.dumps(report["spec"]["blocks"][:4])
    assert "The sweep is not finished: 12 of 16 trials ended." in said
    assert "Recommended: trial 5 (lora, rank 2, " in said
    assert first.stdout.splitlines() == [
        f"view    {server.url}/{ENTITY}/forgetting-sweeps?nw={view['name'][3:-2]}",
        f"report  {server.url}/{ENTITY}/forgetting-sweeps/reports/"
        f"Forgetting-sweep-{SWEEP_ID}--{report['id'].rstrip('=')}",
    ]

    # More trials, the same view and report, whatever became of their names by hand.
    server.views[report["id"]]["displayName"] = "My favourite sweep"
    for number in range(12, 21):
        more: dict[int, dict[str, Any]] = {19: {"confirms": 5}, 20: {"status": TrialStatus.FAILED}}
        Ledger(sweep).write_trial(trial(number, **more.get(number, {})))
    second = wandb_views(sweep, tmp_path, server.url)
    assert second.returncode == 0, second.stderr
    assert server.upserts == [True, True, False, False]
    assert server.rejected == []
    assert server.only("project-view")["spec"]["section"]["settings"]["maxRuns"] == 22
    assert len(panels_of(server.only("project-view"))) == len(panels_of(view))
    again = server.only("runs")
    assert again["id"] == report["id"]
    assert again["displayName"] == "My favourite sweep"
    assert [filters_of(grid["runSets"][0]) for grid in grids_of(again)] == filters
    assert "not finished" not in json.dumps(again["spec"]["blocks"])
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if KEY.encode() in file.read_bytes()]


def test_without_a_key_it_says_what_it_would_make_and_how(
    sweep: Path, server: GraphqlServer, tmp_path: Path
) -> None:
    (sweep / "wandb" / "offline-run-1").mkdir(parents=True)
    InspectionFolder(sweep).write(FOUND)
    [opened] = open_sweeps([sweep])
    log_inspection(opened, "offline")
    done = wandb_views(sweep, tmp_path, server.url, key=None)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"of group {SWEEP_ID}" in done.stdout
    steps = [line.strip() for line in done.stdout.splitlines()[-3:]]
    assert steps == [
        "wandb login",
        f"wandb sync '{sweep}/wandb'/offline-run-*",
        f"python -m analysis wandb-views '{sweep}'",
    ]
    assert server.views == {}


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_what_cannot_be_shown_is_refused_in_one_line(
    sweep: Path, server: GraphqlServer, tmp_path: Path
) -> None:
    (sweep / "wandb" / "offline-run-1").mkdir(parents=True)
    server.projects["forgetting-sweeps"] = ["another-sweep"]
    assert "has no run of the sweep" in refusal(wandb_views(sweep, tmp_path, server.url))
    message = refusal(wandb_views(sweep, tmp_path, server.url, key="beef" * 10))
    assert "W&B did not make the views" in message
    assert "beef" not in message
    change_config(Ledger(sweep), wandb={"mode": "disabled", "project": "p"})
    assert "wandb.mode: disabled" in refusal(wandb_views(sweep, tmp_path, server.url))
    assert server.views == {}


def test_an_online_sweep_gets_its_views_at_its_end(
    sweep: Path, server: GraphqlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, whatever lies in the folder where the user is."""
    for shadow in ("analysis.py", "pandas.py"):
        (tmp_path / shadow).write_text("raise SystemExit('not ours')")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    InspectionFolder(sweep).write(FOUND)
    view, report = have_views_made(sweep.relative_to(tmp_path))
    assert view.startswith("view ")
    assert report.startswith("report ")
    assert server.upserts == [True, True]
    summary = server.runs.runs[FOUND.trial_id].summary
    assert {"inspection/spectra", "inspection/attention"} <= summary.keys()
    assert "inspection/spectra" in json.dumps(server.only("project-view")["spec"])
    server.projects.clear()
    assert have_views_made(sweep) == ["python -m analysis wandb-views 'my sweep'"]


def test_spectra_and_attention_go_to_the_trials_own_run_once(sweep: Path, tmp_path: Path) -> None:
    InspectionFolder(sweep).write(FOUND)
    other = f"{SWEEP_ID}-0003"
    InspectionFolder(sweep).write(
        InspectionRecord(number=3, trial_id=other, key="abc", reason="damaged")
    )
    (sweep / "wandb").mkdir()
    change_config(Ledger(sweep), wandb={"mode": "offline", "project": "mine", "entity": "me"})
    [opened] = open_sweeps([sweep])
    for _ in range(2):
        log_inspection(opened, "offline")
    [part] = sweep.glob("wandb/offline-run-*")
    sent = (part / f"run-{SWEEP_ID}-0002.wandb").read_bytes()
    for text in (SWEEP_ID, "lora", "mine", "me"):
        assert bytes([len(text)]) + text.encode() in sent  # as Protobuf has a text
    tables = {
        file.name.split("_summary_")[0]: json.loads(file.read_bytes())
        for file in part.glob("files/media/table/inspection/*.json")
    }
    assert tables.keys() == {"spectra", "attention"}
    spectra, heads = tables["spectra"], tables["attention"]
    assert spectra["columns"] == [
        "layer", "module", "rank_limit", "relative_norm", "stable_rank", "effective_rank",
        "rank_90", "intruders", "cosine_by_index", "cosine_by_maximum",
    ]  # fmt: skip
    first, *_, last = spectra["data"]
    assert first == [0, "self_attn.q_proj", 8, 0.1, 1.5, *[None] * 5]
    assert last == [2, "self_attn.q_proj", 8, 0.1, 3.5, None, None, 2, None, None]
    assert heads["columns"][:3] == ["layer", "head", "js"]
    assert [row[:3] for row in heads["data"]] == [
        [layer, head, (0.1, 0.2)[head]] for layer in range(3) for head in (0, 1)
    ]
    # Another look, other tables: at other weights, or at what broke off before.
    other = FOUND.model_copy(update={"key": "def", "attention": ()})
    for count, look in enumerate((other, FOUND.model_copy(update={"key": "def"})), start=2):
        InspectionFolder(sweep).write(look)
        log_inspection(opened, "offline")
        assert len(list(sweep.glob("wandb/offline-run-*"))) == count
