"""Dagster on the demo world: its web server and daemon as components, and what its GraphQL interface says of a run."""

import http.client
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import bb_ops
from bb_ops import files
from bb_ops.clock import sleep
from bb_ops.demo import ports, processes
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.model import World
from bb_ops.demo.ports import HOST
from bb_ops.demo.processes import Process
from bb_ops.errors import ProgramFailed, UsageError
from bb_ops.findings import Value
from bb_ops.settings import file_settings

_REQUEST_TIMEOUT_S = 30.0
_POLL_S = 0.5
_LOCATION = "bb_ops.definitions"
_FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}
_LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
_RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    __typename
    ... on Run {
      status
      eventConnection(limit: 1000) {
        events {
          __typename
          ... on MaterializationEvent { assetKey { path } partition }
          ... on AssetCheckEvaluationEvent {
            evaluation { checkName success severity description assetKey { path } }
          }
          ... on RunFailureEvent { message error { message } }
          ... on ExecutionStepFailureEvent { error { message } }
        }
      }
    }
  }
}
"""
_LOCATIONS = """
query {
  workspaceOrError {
    ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename } } }
  }
}
"""


class CheckShown(Value):
    """One asset check as Dagster recorded it."""

    asset: str
    check: str
    passed: bool
    description: str


class RunShown(Value):
    """What Dagster recorded of a run.

    Attributes:
        materialized: Asset and partition of each materialization.
        failure: Why it failed, in one line; empty where it did not.
    """

    run_id: str
    status: str
    materialized: tuple[tuple[str, str], ...]
    checks: tuple[CheckShown, ...]
    failure: str


class WebServer:
    """Dagster's web server, on the loopback address: it has no authentication of its own."""

    name = "dagster-webserver"
    start_timeout_s = 120.0
    stop_timeout_s = 20.0
    ask = signal.SIGINT
    insist = signal.SIGKILL

    def port(self, world: World) -> int:
        """Return the port of the UI."""
        return world.ui_port

    def with_free_ports(self, world: World) -> World:
        """Keep the port where it is free."""
        return world.model_copy(update={"ui_port": ports.keep_or_choose(world.ui_port, avoid=world.ports)})

    def find(self, world: World) -> Process | None:
        """Find the server by its port."""
        return processes.find(self.name, [_program(self.name), "--port", str(world.ui_port)], None)

    def start(self, world: World, known: Credentials) -> Process:
        """Start the server; its settings, secrets among them, go by environment."""
        del known
        options = ["--host", HOST, "--port", str(world.ui_port), "--workspace", str(_checkout() / "workspace.yaml")]
        return _launch(self.name, [_program(self.name), *options], world)

    def answers(self, world: World, known: Credentials) -> bool:
        """Tell whether it answers and our code location is loaded."""
        del known
        try:
            entries = _query(world, _LOCATIONS, {})["workspaceOrError"]["locationEntries"]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        for entry in entries:
            if (entry["locationOrLoadError"] or {}).get("__typename") == "PythonError":
                raise ProgramFailed(f"Dagster cannot load {entry['name']}: see {world.log(self.name)}")
        return bool(entries) and all(entry["loadStatus"] == "LOADED" for entry in entries)


class Daemon:
    """Dagster's daemon: schedules, automation and the run queue."""

    name = "dagster-daemon"
    start_timeout_s = 60.0
    stop_timeout_s = 30.0
    ask = signal.SIGINT
    insist = signal.SIGKILL

    def port(self, world: World) -> int:
        """Return the port of the web server that shows it; the daemon has none."""
        return world.ui_port

    def with_free_ports(self, world: World) -> World:
        """It has none."""
        return world

    def find(self, world: World) -> Process | None:
        """Find the daemon by its workspace file, inside this world's own directory."""
        return processes.find(self.name, [_program(self.name), str(_workspace_of(world))], None)

    def start(self, world: World, known: Credentials) -> Process:
        """Start the daemon."""
        del known
        return _launch(self.name, [_program(self.name), "run", "--workspace", str(_workspace_of(world))], world)

    def answers(self, world: World, known: Credentials) -> bool:
        """Tell whether it reports to be alive."""
        del known
        query = "query { instance { daemonHealth { allDaemonStatuses { healthy required } } } }"
        try:
            statuses = _query(world, query, {})["instance"]["daemonHealth"]["allDaemonStatuses"]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        return all(status["healthy"] for status in statuses if status["required"])


class CodeServer:
    """What Dagster's servers start, and what runs in it: it ends by itself after them, once its last run has ended."""

    name = "dagster-code-server"
    start_timeout_s = 60.0
    stop_timeout_s = 40.0
    ask = signal.SIGCONT  # nothing is asked of it
    insist = signal.SIGKILL

    def port(self, world: World) -> int:
        """Return the port of the web server that it works for; it has none."""
        return world.ui_port

    def with_free_ports(self, world: World) -> World:
        """It has none."""
        return world

    def find(self, world: World) -> Process | None:
        """Find one by the world's directory, which is in what it is told of the instance."""
        return processes.find(self.name, ["api", "grpc"], None, containing=str(_home(world)))

    def start(self, world: World, known: Credentials) -> Process:
        """Not ours to start."""
        raise NotImplementedError

    def answers(self, world: World, known: Credentials) -> bool:
        """It answers Dagster alone."""
        raise NotImplementedError


def prepare_home(world: World) -> None:
    """Give Dagster its home inside the world's directory, with the project's own ``dagster.yaml``."""
    files.make_directory(_home(world))
    files.write_atomic(_home(world) / "dagster.yaml", (_checkout() / "dagster.yaml").read_bytes())
    workspace = (_checkout() / "workspace.yaml").read_text(encoding="utf-8")
    text = workspace.replace("working_directory: .", f"working_directory: {json.dumps(str(_checkout()))}")
    files.write_atomic(_workspace_of(world), text.encode())


def launch(world: World, job: str, partition: str) -> str:
    """Launch a partition of a job through the run queue, as the UI does; return the run's id.

    Raises:
        ProgramFailed: Dagster refused it.
    """
    parameters = {
        "selector": {"repositoryLocationName": _LOCATION, "repositoryName": "__repository__", "jobName": job},
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
    }
    answer = _query(world, _LAUNCH, {"params": parameters})["launchRun"]
    if answer["__typename"] != "LaunchRunSuccess":
        raise ProgramFailed(f"Dagster did not launch {job}: {answer.get('message') or answer.get('errors') or answer}")
    return str(answer["run"]["runId"])


def wait_for_run(world: World, run_id: str, timeout_s: float, tick: Callable[[str], None]) -> RunShown:
    """Wait until a run has finished and return what Dagster recorded of it.

    Raises:
        ProgramFailed: it did not finish within ``timeout_s``.
    """
    waited_s = 0.0
    while waited_s < timeout_s:
        shown = _show(run_id, _query(world, _RUN, {"id": run_id})["runOrError"])
        tick(shown.status)
        if shown.status in _FINISHED:
            return shown
        sleep(_POLL_S)
        waited_s += _POLL_S
    raise ProgramFailed(f"run {run_id} did not finish within {timeout_s:g} s: see the UI")


def _show(run_id: str, answer: Mapping[str, Any]) -> RunShown:
    events = answer["eventConnection"]["events"]
    made = [event for event in events if event["__typename"] == "MaterializationEvent"]
    checked = [event["evaluation"] for event in events if event["__typename"] == "AssetCheckEvaluationEvent"]
    errors = [event["error"]["message"] for event in events if event.get("error")]
    return RunShown(
        run_id=run_id,
        status=answer["status"],
        materialized=tuple((event["assetKey"]["path"][-1], event["partition"] or "") for event in made),
        checks=tuple(
            CheckShown(
                asset=check["assetKey"]["path"][-1],
                check=check["checkName"],
                passed=check["success"],
                description=check["description"] or "",
            )
            for check in checked
        ),
        failure=" ".join(errors[0].split()) if errors else "",
    )


def _query(world: World, query: str, variables: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
    body = json.dumps({"query": query, "variables": variables})
    with closing(http.client.HTTPConnection(HOST, world.ui_port, timeout=_REQUEST_TIMEOUT_S)) as connection:
        connection.request("POST", "/graphql", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    if answer.get("errors"):
        raise ProgramFailed(f"Dagster's GraphQL interface: {answer['errors'][0]['message']}")
    return answer["data"]


def _launch(name: str, argv: list[str], world: World) -> Process:
    values = file_settings(world.env_file)
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment = {**values, "DAGSTER_HOME": str(_home(world)), "PATH": path, "HOME": str(_home(world))}
    return processes.launch(name, argv, log=world.log(name), cwd=_checkout(), env=environment)


def _home(world: World) -> Path:
    return world.directory / "dagster"


def _workspace_of(world: World) -> Path:
    return _home(world) / "workspace.yaml"


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _checkout() -> Path:
    package = bb_ops.__file__
    checkout = Path(package or os.curdir).resolve().parent.parent
    if not (checkout / "workspace.yaml").is_file():
        raise UsageError("the demo needs a checkout of the project: clone it and run make demo there")
    return checkout
