"""Runs read back from W&B through its public API, against a server on loopback."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from loopback import Reply, Request, json_reply, served
from synthetic_sweep import SyntheticSweep

from analysis.__main__ import main
from analysis.frame import trials_frame
from analysis.sweeps import open_sweeps
from analysis.tracking.wandb_download import load_wandb_runs
from trainables.errors import UserError
from trainables.metric_keys import FORGETTING_MEAN, IN_DOMAIN_ACC
from trainables.records.ledger import Ledger
from trainables.records.schema import TrialStatus
from tune.tracking.wandb_fields import base_config, best_values, trial_config

KEY = "k" * 40
ADMITTED = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()


class Runs:
    """Answers what `wandb.Api().runs` asks: who am I, and a page of a group's runs.

    Args:
        runs: group to runs, each with `name`, `config` and `summary`.

    Attributes:
        asked: variables of each query for runs.
    """

    def __init__(self, runs: dict[str, list[dict[str, Any]]]) -> None:
        self._runs, self.asked, self.url = runs, [], ""

    def answer(self, request: Request) -> Reply:
        body = json.loads(request.content) if request.path == "/graphql" else {"query": ""}
        variables = body.get("variables") or {}
        if request.headers.get("authorization") != ADMITTED:
            return json_reply({"errors": [{"message": "user is not logged in"}]}, 403)
        if variables.get("project") == "private":
            return json_reply({"errors": [{"message": "permission denied"}]}, 403)
        return json_reply({"data": self._data(body["query"], variables)})

    def _data(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "runs(" not in query:
            viewer = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        self.asked.append(variables)
        if variables["project"] != "sweeps":
            return {"project": None}
        found = self._runs.get(json.loads(variables["filters"])["group"], [])
        start = int(variables["cursor"] or 0)
        page = found[start : start + 3]  # a server may send fewer than it is asked for
        edges = [
            {"node": self._node(run), "cursor": str(start + i + 1)} for i, run in enumerate(page)
        ]
        end = start + len(page)
        info = {"endCursor": str(end), "hasNextPage": end < len(found)}
        runs = {"edges": edges, "pageInfo": info}
        project = {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}
        return {"project": project}

    def _node(self, run: dict[str, Any]) -> dict[str, Any]:
        config = {key: {"value": value, "desc": None} for key, value in run["config"].items()}
        config["_wandb"] = {"value": {"cli_version": "0.31"}}
        return {
            "id": run["name"],
            "projectId": "1",
            "tags": [],
            "name": run["name"],
            "displayName": run["name"],
            "state": "finished",
            "config": json.dumps(config),
            "systemMetrics": "{}",
            "summaryMetrics": json.dumps({**run["summary"], "_step": 7, "_runtime": 1.5}),
            "historyLineCount": 1,
            "user": {"name": "me", "username": "me"},
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "historyKeys": None,
            **dict.fromkeys(("sweepName", "group", "jobType", "commit", "description", "notes")),
        }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    synthetic = SyntheticSweep(trials=8, failures={3: TrialStatus.FAILED})
    ledger = Ledger(synthetic.write(tmp_path_factory.mktemp("sweep")))
    other = ledger.trials()[5]  # whose length epochs set
    train = other.config.train.model_copy(update={"steps": None, "epochs": 3, "warmup": 0.2})
    config = other.config.model_copy(update={"seed": 8, "train": train})
    more = {"config": config, "attempt": 3, "best": {IN_DOMAIN_ACC: 0.9}}
    ledger.write_trial(other.model_copy(update=more))
    return open_sweeps([ledger.folder.root])[0]


@pytest.fixture(scope="module")
def server(sweep):
    """Has the runs that the sweep's listener would have logged, the base first."""
    base = {"name": "base", "config": base_config(sweep.record, sweep.base)}
    logged = [{**base, "summary": {**sweep.base.metrics, "status": "COMPLETE", "base/seconds": 2}}]
    for record in reversed(sweep.trials):
        final = record.last.metrics if record.last else {}
        verdict = {"status": record.status.value, "reason": record.reason}
        summary = {**final, **best_values(record), **verdict}
        name, config = record.config.trial_id, trial_config(record)
        logged.append({"name": name, "config": config, "summary": summary})
    runs = Runs({"a-sweep": logged, "base": logged[:1]})
    with served(runs.answer) as runs.url:
        yield runs


@pytest.fixture
def api(server, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return server


def test_runs_come_back_as_the_folder_has_them(api, sweep):
    trials = load_wandb_runs("me/sweeps", "a-sweep")
    expected = trials_frame([sweep])
    assert list(trials.index) == list(expected.index)
    shared = [column for column in trials.columns if column in expected.columns]
    assert {IN_DOMAIN_ACC, FORGETTING_MEAN, "lora/rank", "learning_rate", "status"} <= set(shared)
    assert not [c for c in trials.columns if c.startswith(("_", "best/", "base/"))]
    for column in shared:
        if column != "sweep":
            assert trials[column].fillna("none").tolist() == pytest.approx(
                expected[column].fillna("none").tolist()
            ), column
    assert len(api.asked) > 1
    assert json.loads(api.asked[0]["filters"]) == {"group": "a-sweep"}


@pytest.mark.parametrize(
    ("project", "group", "says"),
    [
        ("me/sweeps", "nothing", "me/sweeps has no runs in the group nothing"),
        ("me/sweeps", "base", "the group base has no trial yet"),
        ("me/private", "a-sweep", "cannot read me/private from W&B: permission denied"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(api, project, group, says):
    with pytest.raises(UserError) as caught:
        load_wandb_runs(project, group)
    assert says in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_refused_key_is_not_shown(api, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "beef" * 10)
    with pytest.raises(UserError, match="user is not logged in") as caught:
        load_wandb_runs("me/sweeps", "a-sweep")
    assert "beef" not in str(caught.value)


def test_the_key_comes_from_the_environment_alone(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="WANDB_API_KEY: is not set"):
        load_wandb_runs("me/sweeps", "a-sweep")


def test_the_command_writes_a_table(api, tmp_path, capsys):
    file = tmp_path / "runs.csv"
    command = ["wandb-runs", "me/sweeps", "a-sweep", "--to"]
    assert main([*command, str(file)]) == 0
    assert file.read_text().startswith("trial_id,sweep,number,confirms,recipe,method")
    assert main([*command, str(tmp_path)]) == 2
    assert f"error: --to: cannot write {tmp_path}: " in capsys.readouterr().err
