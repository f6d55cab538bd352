"""W&B's GraphQL service on loopback, as far as views are concerned: checks and keeps what is sent.

Runs that are logged meanwhile go to the server that other tests have for these.

Requests are executed by a real GraphQL engine against a schema of the types that W&B's client asks
for, so an unknown field, a wrong type or a missing variable is an error here as it is there.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from graphql import GraphQLError, build_schema, graphql_sync
from loopback import Reply, Request, json_reply, served
from wandb_server import WandbServer

SCHEMA = build_schema("""
scalar JSONString
scalar DateTime
scalar JSON
enum CreatedUsing { WANDB_SDK WANDB_UI }
type Query {
  viewer: User
  project(name: String, entityName: String): Project
  models(entityName: String, after: String, first: Int): Projects
  view(id: ID!): View
}
type Mutation { upsertView(input: UpsertViewInput!): UpsertViewPayload }
input UpsertViewInput {
  id: ID  entityName: String  projectName: String  type: String  name: String
  displayName: String  description: String  spec: String  createdUsing: CreatedUsing
}
type UpsertViewPayload { view: View  inserted: Boolean }
type PageInfo { endCursor: String  hasNextPage: Boolean! }
type Team { name: String }
type TeamEdge { node: Team }
type Teams { edges: [TeamEdge!]! }
type ApiKey { id: ID  name: String  description: String }
type ApiKeyEdge { node: ApiKey }
type ApiKeys { edges: [ApiKeyEdge!]! }
type User {
  id: ID!  name: String  entity: String  username: String  email: String  flags: JSONString
  photoUrl: String  admin: Boolean  deletedAt: DateTime  apiKeys: ApiKeys  teams: Teams
}
type Project {
  id: ID!  internalId: ID  name: String  entityName: String  createdAt: DateTime
  isBenchmark: Boolean  readOnly: Boolean  user: User
  runCount(filters: JSONString): Int
  runs(filters: JSONString, after: String, first: Int, order: String): Runs
  allViews(viewType: String, viewName: String, userName: String, first: Int, after: String): Views
}
type ProjectEdge { node: Project  cursor: String }
type Projects { edges: [ProjectEdge!]!  pageInfo: PageInfo! }
type Run {
  id: ID!  projectId: ID  tags: [String!]  name: String  displayName: String  sweepName: String
  state: String  group: String  jobType: String  commit: String  readOnly: Boolean
  createdAt: DateTime  heartbeatAt: DateTime  description: String  notes: String
  historyLineCount: Int  user: User
}
type RunEdge { node: Run  cursor: String }
type Runs { edges: [RunEdge!]!  pageInfo: PageInfo! }
type View {
  id: ID!  type: String  name: String  displayName: String  description: String  project: Project
  user: User  spec: String  createdAt: DateTime  updatedAt: DateTime
}
type ViewEdge { node: View  cursor: String }
type Views { edges: [ViewEdge!]!  pageInfo: PageInfo! }
""")
NO_MORE = {"endCursor": None, "hasNextPage": False}
ENTITY = "tester"
_OF_RUNS = ("RunResumeStatus", "UpsertBucket", "CreateRunFiles")


@dataclass
class GraphqlServer:
    """What the server holds.

    Attributes:
        key: the only one that is let in.
        projects: by name; each with the groups of its runs.
        views: views and reports by their id.
        rejected: what was wrong with requests that could not be executed.
        runs: where they are logged.
    """

    key: str
    projects: dict[str, list[str]] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    upserts: list[bool] = field(default_factory=list)
    runs: WandbServer = field(default_factory=WandbServer)
    url: str = ""

    def only(self, kind: str) -> dict[str, Any]:
        """The one view of a type, its spec parsed."""
        [view] = [view for view in self.views.values() if view["type"] == kind]
        return {**view, "spec": json.loads(view["spec"])}

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to a GraphQL request."""
        root = {
            "viewer": {"id": "u", "entity": ENTITY, "username": ENTITY, "flags": "{}",
                       "teams": {"edges": []}},
            "project": lambda info, name, entityName: self._project(name, entityName),
            "models": lambda info, **_: {
                "edges": [{"node": self._project(name, ENTITY)} for name in self.projects],
                "pageInfo": NO_MORE,
            },
            "view": lambda info, id: self.views.get(id),
            "upsertView": lambda info, input: self._upsert(input),
        }  # fmt: skip
        result = graphql_sync(
            SCHEMA,
            request["query"],
            root,
            variable_values=request.get("variables"),
            operation_name=request.get("operationName") or None,
        )
        self.rejected += [str(error) for error in result.errors or []]
        return dict(result.formatted)

    def _project(self, name: str, entity: str) -> dict[str, Any] | None:
        if name not in self.projects or entity != ENTITY:
            return None

        def run_count(info: Any, filters: str) -> int:
            group = json.loads(filters)["group"]
            return self.projects[name].count(group)

        def all_views(info: Any, viewType: str, **wanted: Any) -> dict[str, Any]:
            found = [
                {"node": view, "cursor": view["id"]}
                for view in self.views.values()
                if view["type"] == viewType
                and wanted.get("viewName") in (None, view["name"])
                and view["project"]["name"] == name
            ]
            return {"edges": found, "pageInfo": NO_MORE}

        return {
            "id": "p", "internalId": "77", "name": name, "entityName": entity, "readOnly": False,
            "isBenchmark": False, "createdAt": "2026-01-01T00:00:00",
            "runCount": run_count, "runs": {"edges": [], "pageInfo": NO_MORE},
            "allViews": all_views,
        }  # fmt: skip

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        project = self._project(given["projectName"], given["entityName"])
        if project is None:
            raise GraphQLError("project not found")
        given = {key: value for key, value in given.items() if value is not None}
        number = given.pop("id", None)
        inserted = number is None
        if inserted:
            number = base64.b64encode(f"View:{len(self.views) + 1}".encode()).decode()
        elif number not in self.views:
            raise GraphQLError("view not found")
        json.loads(given["spec"])
        self.views[number] = {**self.views.get(number, {}), **given, "id": number,
                              "project": project, "createdAt": "2026-01-01T00:00:00",
                              "updatedAt": "2026-01-01T00:00:00"}  # fmt: skip
        self.upserts.append(inserted)
        return {"view": self.views[number], "inserted": inserted}


@contextmanager
def graphql_server(key: str) -> Iterator[GraphqlServer]:
    """A server on a free loopback port until the block ends."""
    state, lock = GraphqlServer(key), threading.Lock()
    admitted = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()

    def answer(request: Request) -> Reply:
        if request.method != "POST":
            return json_reply({})
        if request.headers.get("authorization") != admitted:
            return json_reply({"errors": [{"message": "user is not logged in"}]}, 401)
        asked = json.loads(request.content or "{}")
        with lock:
            if request.path == "/graphql" and asked.get("operationName") not in _OF_RUNS:
                return json_reply(state.execute(asked))
            status, value = state.runs.answer(request.path, asked)
        return json_reply(value, status)

    with served(answer) as state.url:
        state.runs.url = state.url
        yield state
