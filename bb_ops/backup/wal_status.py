"""How far WAL is archived, and what the server keeps for us: one look at each side."""

from pydantic import AwareDatetime

from bb_ops.backup.wal_observer import Observation, measure_lag, observe_once
from bb_ops.backup.wal_options import WalOptions, slot_name
from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError
from bb_ops.findings import Value
from bb_ops.repository import wal_reader
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Position


class WalStatus(Value):
    """What is known; None is "not measured", never zero.

    Attributes:
        lag_s: Everything committed longer ago than this is archived.
        lag_bytes: WAL that the server has and the archive has not.
        archived_to_lsn: Everything before it is durable in the repository.
        archived_to_at: Everything committed before this instant is archived, by the server's clock.
        slot_active: Whether somebody streams from the slot; False also where there is no slot.
        retained_bytes: WAL that the slot makes the server keep.
    """

    schema_id: str = "bb-ops/wal-status/1"
    slot: str
    timeline: int | None
    archived_to_lsn: str | None
    archived_to_at: AwareDatetime | None
    lag_bytes: int | None
    lag_s: float | None
    slot_active: bool | None
    wal_status: str | None
    retained_bytes: int | None
    problems: tuple[str, ...]


def wal_status(dsn: Dsn, repository: Repository, options: WalOptions) -> WalStatus:
    """Look at the server and at the repository; a side that does not answer is not measured."""
    problems: list[str] = []
    slot = slot_name(repository.cluster)
    server: Observation | None = None
    position: Position | None = None
    try:
        server = observe_once(dsn, slot)
    except BbOpsError as error:
        problems.append(str(error))
    try:
        position = _position(repository)
    except BbOpsError as error:
        problems.append(str(error))
    status = combine(slot, server, position)
    return status.model_copy(update={"problems": (*problems, *_judge(status, server, options))})


def combine(slot: str, server: Observation | None, position: Position | None) -> WalStatus:
    """Put both sides together. Pure."""
    lag_bytes = lag_s = None
    if server is not None and position is not None and server.timeline in {None, position.timeline}:
        lag_bytes, lag_s = measure_lag(server, position.lsn, position.at)
    return WalStatus(
        slot=slot,
        timeline=position.timeline if position else None,
        archived_to_lsn=str(position.lsn) if position else None,
        archived_to_at=position.at if position else None,
        lag_bytes=lag_bytes,
        lag_s=lag_s,
        slot_active=None if server is None else bool(server.slot_active),
        wal_status=server.wal_status if server else None,
        retained_bytes=server.retained_bytes if server else None,
        problems=(),
    )


def _judge(status: WalStatus, server: Observation | None, options: WalOptions) -> list[str]:
    found = []
    timeline = server.timeline if server is not None else None
    if timeline is not None and status.timeline is not None and timeline != status.timeline:
        found.append(
            f"the server is on timeline {timeline}, the newest archived one is {status.timeline}: lag not measured"
        )
    if server is not None and not status.slot_active:
        found.append("nobody streams WAL: start `bb-ops wal stream`")
    if status.retained_bytes is not None and status.retained_bytes > options.retained_limit_bytes:
        found.append(f"the slot makes the server keep {status.retained_bytes >> 20} MiB of WAL: its disk may fill up")
    if status.wal_status in {"unreserved", "lost"}:
        found.append(f"the slot's WAL is {status.wal_status}: WAL is being lost, take a new full backup")
    return found


def _position(repository: Repository) -> Position | None:
    repository.open()
    positions = [wal_reader.newest_position(repository, system) for system in repository.system_ids()]
    found = [entry for entry in positions if entry is not None]
    return max(found, key=lambda entry: entry.written_ms, default=None)
