"""A W&B server on loopback: keeps what W&B's own client sends, and answers a resume truly.

Only what the client asks for is here: GraphQL for runs and files, and the file stream. It refuses
an invalid key and a deleted run with the codes after which the client drops the data. A line of
history is kept at the offset that the client gives, as W&B's server does, so a client that counts
wrongly overwrites or leaves gaps here too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from loopback import Reply, Request, json_reply, served


@dataclass
class ServedRun:
    """A run as the server has it.

    Attributes:
        fields: what the client gave beside the configuration, such as `groupName`.
        lines: of each streamed file, by their offset.
        exit_code: of the last part that ended; None where none did.
        state: as W&B shows it.
    """

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    exit_code: int | None = None
    state: str = "running"

    @property
    def history(self) -> list[dict[str, Any]]:
        """Logged points, in the order in which the server got them."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[offset]) for offset in sorted(lines)]

    @property
    def steps(self) -> list[int]:
        """W&B's own step of each point."""
        return [point["_step"] for point in self.history]

    @property
    def summary(self) -> dict[str, Any]:
        """The newest summary."""
        lines = self.lines.get("wandb-summary.json", {})
        summary: dict[str, Any] = json.loads(lines[max(lines)]) if lines else {}
        return summary

    def bucket(self) -> dict[str, Any]:
        """What a client that resumes is told."""
        tails = {
            "historyTail": list(map(json.dumps, self.history[-1:])),
            "eventsTail": [],
            "summaryMetrics": self.summary,
            "config": self.config,
            "wandbConfig": {"t": 1},
        }
        counts = ("history", "events", "log")
        return {
            "id": self.name,
            "name": self.name,
            "displayName": self.fields.get("displayName"),
            "tags": self.fields.get("tags"),
            "notes": None,
            **{key: json.dumps(value) for key, value in tails.items()},
            **{f"{kind}LineCount": self._count(kind) for kind in counts},
        }

    def shown(self) -> dict[str, Any]:
        """What `wandb.Api` is told."""
        return {
            "id": self.name,
            "projectId": "7",
            "name": self.name,
            "state": self.state,
            "summaryMetrics": json.dumps(self.summary),
            "config": "{}",
            "systemMetrics": "{}",
            "historyKeys": None,
            "user": {"name": "tester", "username": "tester"},
        }

    def _count(self, kind: str) -> int:
        file = {"history": "wandb-history", "events": "wandb-events"}.get(kind)
        return len(self.lines.get(f"{file}.jsonl" if file else "output.log", {}))


class WandbServer:
    """What the server was sent: `runs` by their id.

    Attributes:
        is_key_valid: whether anything is taken and answered.
        is_out: whether it asks clients to try again later, whatever they want.
        inits_refused: ids of runs whose start fails for now.
        questions: how often runs were listed.
        answers_behind: how many more times they are listed as they were while they still ran.
    """

    def __init__(self) -> None:
        self.runs: dict[str, ServedRun] = {}
        self.url = ""
        self.is_key_valid = True
        self.is_out = False
        self.inits_refused: set[str] = set()
        self.questions = 0
        self.answers_behind = 0
        self._deleted: set[str] = set()

    def delete(self, run: str) -> None:
        """As a user does in the browser."""
        del self.runs[run]
        self._deleted.add(run)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and the reply to a POST."""
        if self.is_out:
            return 503, {}
        if not self.is_key_valid:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        if path == "/graphql":
            variables = body.get("variables") or {}
            # `wandb.Api` names its operations in the query alone.
            operation = body["operationName"] or body["query"].split("query", 1)[1].split()[0]
            if operation == "UpsertBucket" and variables["name"] in self._deleted:
                message = "run was previously created and deleted; try a new run id"
                return 409, {"errors": [{"message": message}]}
            if operation == "UpsertBucket" and variables["name"] in self.inits_refused:
                return 403, {"errors": [{"message": "not now"}]}
            return 200, {"data": self._graphql(operation.split("(")[0], variables)}
        *_, run, end = path.split("/")
        if end == "file_stream":
            if run not in self.runs:
                return 404, {"error": "run not found"}
            self._stream(self.runs[run], body)
        return 200, {"limits": {}}

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "e", "name": "tester"}
        project = {"id": "p", "name": variables.get("project"), "entity": entity}
        match operation:
            case "RunResumeStatus":
                run = self.runs.get(variables["name"])
                return {"model": {**project, "bucket": run.bucket() if run else None}}
            case "UpsertBucket":
                name = variables["name"]
                run = self.runs.setdefault(name, ServedRun(name))
                given = {key: value for key, value in variables.items() if value is not None}
                run.config = json.loads(given.pop("config", "null")) or run.config
                run.fields |= given
                bucket = {**run.bucket(), "sweepName": None, "description": None}
                return {
                    "upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": False}
                }
            case "CreateRunFiles":
                files = [
                    {"name": name, "uploadUrl": f"{self.url}/uploads/{name}"}
                    for name in variables["files"]
                ]
                run_files = {"runID": variables["run"], "uploadHeaders": [], "files": files}
                return {"createRunFiles": run_files}
            case "Viewer":
                viewer = {"id": "u", "entity": "tester", "username": "tester", "flags": "{}"}
                return {"viewer": {**viewer, "teams": {"edges": []}}}
            case "GetDefaultEntity":
                return {"viewer": {"id": "u", "entity": "tester"}}
            case "Runs":
                self.questions += 1
                names = json.loads(variables["filters"])["name"]["$in"]
                is_behind = {"state": "running"} if self.answers_behind > 0 else {}
                self.answers_behind -= 1
                found = [
                    {"node": {**r.shown(), **is_behind}, "cursor": n}
                    for n, r in self.runs.items()
                    if n in names
                ]
                page = {"endCursor": None, "hasNextPage": False}
                counts = {"internalId": "7", "runCount": len(found), "readOnly": False}
                return {"project": {**counts, "runs": {"edges": found, "pageInfo": page}}}
            case _:
                return {}

    def _stream(self, run: ServedRun, body: dict[str, Any]) -> None:
        for name, chunk in (body.get("files") or {}).items():
            lines = run.lines.setdefault(name, {})
            for position, line in enumerate(chunk["content"]):
                lines[chunk["offset"] + position] = line
        run.state = "running"
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
            run.state = "failed" if run.exit_code else "finished"


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server on a free loopback port until the block ends."""
    state, lock = WandbServer(), threading.Lock()

    def answer(request: Request) -> Reply:
        if request.method != "POST":
            return json_reply({})
        with lock:
            status, value = state.answer(request.path, json.loads(request.content or "{}"))
        return json_reply(value, status)

    with served(answer) as state.url:
        yield state
