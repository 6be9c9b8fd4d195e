"""``bb-ops wal``: the write-ahead log, streamed into the repository."""

import re
import signal
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import click

from bb_ops.backup.wal import LOCK_NAME, WalStreamer
from bb_ops.backup.wal_push import Pusher, prepare_spool
from bb_ops.backup.wal_status import wal_status
from bb_ops.bootstrap import operations
from bb_ops.cli.output import emit, fail, human_bytes, json_option
from bb_ops.errors import BbOpsError, RepositoryMissing, UsageError
from bb_ops.recovery.wal import fetch_all, fetch_file
from bb_ops.recovery.wal_ahead import Fetcher
from bb_ops.repository.repository import Repository

_FINDINGS = 4
_ABSENT = 1
_POLL_S = 0.02
_ABORT_RECOVERY = 126
"""PostgreSQL takes an exit code above 125 as a reason to abort recovery, and any other as "there is no such file"."""
_FILE_NAME = re.compile(r"[0-9A-F]{24}|[0-9A-F]{8}\.history")


@click.group("wal")
def command() -> None:
    """Stream the write-ahead log into the repository, so that any second can be restored."""


@command.command("stream")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Tell Prometheus the lag on this port of the loopback address.",
)
def stream(*, metrics_port: int | None) -> int:
    """Stream WAL until told to end (SIGTERM or ^C): what the server may forget is durable in the repository first.

    Long-running; resumes by itself after restarts of the server, cuts of the network and outages of the store.
    Safe to kill at any moment.
    """
    ops = operations()
    repository = ops.repository
    streamer = WalStreamer(ops.database, repository, ops.wal_options, ops.clock)
    stop = _stop_event()
    with ExitStack() as held:
        if metrics_port is not None:
            from bb_ops.metrics.wal import serving_wal_metrics  # noqa: PLC0415 - only who asks pays for it

            held.enter_context(
                serving_wal_metrics(metrics_port, streamer.progress, repository.cluster, repository.region)
            )
        streamer.run(stop)
    return 0


@command.command("serve")
@click.argument("spool", type=click.Path(path_type=Path))
@click.option("--region", help="Fetch from this region's repository.")
@click.option("--fetch-only", is_flag=True, help="Only answer restore_command: take no lock and store nothing.")
def serve(*, spool: Path, region: str | None, fetch_only: bool) -> int:
    """Serve archive_command and restore_command through the folder SPOOL, until told to end.

    Their shell clients are deploy/wal/bb-ops-wal-push and bb-ops-wal-fetch; no interpreter starts per segment.
    """
    ops = operations()
    stop = _stop_event()
    spool = spool.absolute()
    prepare_spool(spool)
    repository = ops.region(region)
    with ExitStack() as held:
        pusher = fetcher = None
        if not fetch_only:
            for each in filter(None, (repository, ops.wal_options.second)):
                each.initialise()
            held.enter_context(repository.lock(LOCK_NAME, "wal serve"))
            pusher = Pusher(spool, repository, ops.wal_options, ops.clock)
            held.callback(pusher.close)
        if ops.settings.identity_file is not None and repository.system_ids():
            fetcher = Fetcher(spool, repository, _system(repository, None))
            held.callback(fetcher.close)
        while not stop.is_set():
            on_way = pusher.step() if pusher is not None else 0  # waits a moment for what is on its way
            if fetcher is not None:
                fetcher.step()
            stop.wait(0 if on_way else _POLL_S)
    return 0


@command.command("status")
@json_option
def status(*, as_json: bool) -> int:
    """Say in one line how far WAL is archived and what the server keeps for us; exit 4 where that is too much."""
    ops = operations()
    found = wal_status(ops.database, ops.repository, ops.wal_options)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        lag = "not measured" if found.lag_s is None else f"{found.lag_s:.1f} s"
        behind = "not measured" if found.lag_bytes is None else human_bytes(found.lag_bytes)
        kept = "not measured" if found.retained_bytes is None else human_bytes(found.retained_bytes)
        active = {None: "not measured", True: "active", False: "NOT ACTIVE"}[found.slot_active]
        click.echo(
            f"archived to {found.archived_to_lsn or 'nowhere'} on timeline {found.timeline or '-'}; lag {lag}, "
            f"{behind}; slot {found.slot} {active}, keeps {kept}"
        )
        for problem in found.problems:
            click.echo(f"PROBLEM {problem}")
    return _FINDINGS if found.problems else 0


@command.command("fetch")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--region", help="Take it from this region's repository.")
@click.option("--system-id", help="Of this system, where the cluster has had several.")
def fetch(*, name: str, path: Path, region: str | None, system_id: str | None) -> int:
    """Write one archived file to PATH, as restore_command asks for it (NAME is %f, PATH is %p).

    Exit 1 where it is really absent, 126 (which aborts the recovery) where it could not be read.
    """
    if _FILE_NAME.fullmatch(name) is None:
        return _ABSENT  # a .backup or .partial file: we keep none
    try:
        repository = operations().region(region)
        return 0 if fetch_file(repository, _system(repository, system_id), name, path) else _ABSENT
    except BbOpsError as error:
        return fail(str(error), _ABORT_RECOVERY, as_json=False)


@command.command("fetch-all")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--region", help="Take it from this region's repository.")
@click.option("--system-id", help="Of this system, where the cluster has had several.")
@json_option
def fetch_all_(*, directory: Path, region: str | None, system_id: str | None, as_json: bool) -> int:
    """Write all archived WAL into DIRECTORY, for restore_command = 'cp DIRECTORY/%f %p'."""
    repository = operations().region(region)
    done = fetch_all(repository, _system(repository, system_id), directory.absolute())
    if as_json:
        emit(done.model_dump(mode="json"))
    else:
        click.echo(f"{len(done.files)} files in {done.directory}, up to {done.to_lsn} on timeline {done.timeline}")
    return 0


def _stop_event() -> Event:
    """Return what SIGTERM and ^C set from now on."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _system(repository: Repository, wanted: str | None) -> str:
    repository.open()
    systems = repository.system_ids()
    if wanted is not None or len(systems) == 1:
        return wanted or systems[0]
    if not systems:
        raise RepositoryMissing(f"{repository.region} holds nothing of cluster {repository.cluster}")
    raise UsageError(f"cluster {repository.cluster} has had several systems ({', '.join(systems)}): say --system-id")
