"""Starts and stops the demo booking API from outside."""

import http.client
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import bb_ops
from bb_ops.demo import accounts, ports, postgres, processes
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.model import World
from bb_ops.demo.ports import HOST
from bb_ops.demo.processes import Process
from bb_ops.errors import UsageError
from bb_ops.process import Account, account

_MODULE = "bb_ops.demo.api"
_REQUEST_TIMEOUT_S = 5.0


def choose_account(run_as: Account | None) -> str | None:
    """Return the account that the API becomes, or None when it stays with the current user.

    It is the servers' account where that account can run this interpreter and import the API, which it cannot when
    the environment lies under a private home.
    """
    reachable = run_as is not None and accounts.can_run(
        [sys.executable, "-c", f"import {_MODULE}"], run_as, env=_environment()
    )
    return run_as.name if run_as is not None and reachable else None


class BookingApi:
    """The booking API as a component of the demo world."""

    name = "booking-api"
    start_timeout_s = 60.0
    stop_timeout_s = 15.0
    ask = signal.SIGTERM
    insist = signal.SIGKILL  # what it was writing is one transaction, so nothing is left half done

    def __init__(self, rate_per_s: float) -> None:
        """Keep the customers' rate for the next start."""
        self._rate_per_s = rate_per_s

    def port(self, world: World) -> int:
        """Return the port of its HTTP interface."""
        return world.api_port

    def with_free_ports(self, world: World) -> World:
        """Keep the port where it is free."""
        port = ports.keep_or_choose(world.api_port, avoid=world.ports)
        return world.model_copy(update={"api_port": port})

    def find(self, world: World) -> Process | None:
        """Find the API by its directory."""
        return processes.find(self.name, [_MODULE, str(world.api_directory)], _account(world))

    def start(self, world: World, known: Credentials) -> Process:
        """Start the API with its traffic; its connection string goes by environment."""
        accounts.owned_directory(world.api_directory, _account(world))
        for path in world.api_directory.rglob("*"):  # an earlier run may have been under another account
            accounts.hand_over(path, _account(world))
        options = [f"--port={world.api_port}", f"--rate={self._rate_per_s:g}", "--directory", str(world.api_directory)]
        return processes.launch(
            self.name,
            [sys.executable, "-m", _MODULE, *options],
            log=world.log(self.name),
            cwd=world.api_directory,
            env={**_environment(), "DATABASE_URL": postgres.url(world, postgres.APP, known.app)},
            run_as=_account(world),
        )

    def answers(self, world: World, known: Credentials) -> bool:  # noqa: ARG002 - its health needs no credentials
        """Tell whether it answers its health question."""
        try:
            with closing(http.client.HTTPConnection(HOST, world.api_port, timeout=_REQUEST_TIMEOUT_S)) as connection:
                connection.request("GET", "/health")
                return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def _environment() -> dict[str, str]:
    package = bb_ops.__file__
    if package is None:
        raise UsageError("bb_ops is not installed as a regular package: install it again")
    return {"PYTHONPATH": str(Path(package).parent.parent), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def _account(world: World) -> Account | None:
    return None if world.api_account is None or os.geteuid() != 0 else account(world.api_account)
