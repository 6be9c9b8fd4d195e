"""Open a proven copy as the new primary where it lies: for a host that is not the old one's, or a new address."""

import hashlib
import json
from pathlib import Path

from pydantic import AwareDatetime

from bb_ops.errors import TargetRefused
from bb_ops.files import fsync_directory, write_atomic
from bb_ops.findings import Value
from bb_ops.postgres.cluster import Newest
from bb_ops.postgres.data_directory import give, owner_of, read_data_directory, server_in, start_as_before, stop_server
from bb_ops.postgres.programs import find_programs
from bb_ops.postgres.scratch import forget_configuration, port_is_free
from bb_ops.recovery.switch.decision import LOWEST_LEVEL
from bb_ops.recovery.switch.exchange import allow_archiving
from bb_ops.recovery.switch.journal import Proven, read_proven
from bb_ops.recovery.target import Target, finish_target
from bb_ops.repository.reports import Level

_START_TIMEOUT_S = 3600.0
_HEAD = "# bb_ops: where a recovered cluster is served.\n"
_NO_NAME = frozenset("'\\\n")


class ServePlan(Value):
    """What serving a copy would do, or why it is refused; nothing has been changed."""

    schema_id: str = "bb-ops/serve-plan/1"
    plan_hash: str
    cluster: str
    data_directory: Path
    port: int
    listen: str
    target: str
    backup_id: str
    level: str
    copy_at: AwareDatetime
    refusals: tuple[str, ...]


def plan_serve(
    copy: Path, port: int, listen: str, bindirs: tuple[Path, ...], newest: Newest | None
) -> tuple[ServePlan, Proven]:
    """Decide whether a copy may be opened as the new primary; changes nothing.

    Raises:
        TargetRefused: there is no proven copy.
    """
    copy = copy.resolve()
    proven = read_proven(copy)
    if proven is None:
        raise TargetRefused(f"{copy} is no copy that is known to be proven: `bb-ops recover point-in-time` makes one")
    found = read_data_directory(copy, bindirs)
    refusals = []
    if Level[proven.level] < LOWEST_LEVEL:
        refusals.append(f"{copy} is proven {proven.level} only")
    if (found.system_id, found.timeline) != (proven.system_id, proven.timeline):
        refusals.append(f"{copy} is no longer the copy that was proven: recover again")
    if not (copy / "postgresql.conf").is_file():
        refusals.append(f"{copy} has no postgresql.conf, as its source kept it elsewhere: put it and pg_hba.conf there")
    if not port_is_free(port) and found.port != port:
        refusals.append(f"port {port} is in use: choose another one with --port")
    if newest is not None and newest.system_id == proven.system_id and newest.port != port:
        refusals.append("DATABASE_URL leads to a running server of this system: stop it first, or the two diverge")
    if _NO_NAME & set(listen):
        refusals.append(f"{listen!r} is no address to listen on")
    decided = json.dumps(["serve", proven.id, proven.plan_hash, str(copy), port, listen])
    plan = ServePlan(
        plan_hash=hashlib.sha256(decided.encode()).hexdigest()[:16],
        cluster=proven.cluster,
        data_directory=copy,
        port=port,
        listen=listen,
        target=proven.target,
        backup_id=proven.backup_id,
        level=proven.level,
        copy_at=proven.recovered_to_at,
        refusals=tuple(refusals),
    )
    return plan, proven


def serve(plan: ServePlan, bindirs: tuple[Path, ...]) -> int:
    """Give the copy its own configuration back, archiving included, and start it there; return its process.

    Safe to kill: called again it goes on. The address is kept in ``postgresql.auto.conf``, so that whatever starts the
    cluster later finds it.

    Raises:
        ProgramFailed: it did not start; the message carries the end of its log.
    """
    copy = plan.data_directory
    major = int((copy / "PG_VERSION").read_text(encoding="ascii").strip())
    if server_in(copy) is None or not _is_set(plan):
        stop_server(copy, major, bindirs)
        forget_configuration(copy)
        allow_archiving(copy)
        _set(plan)
        finish_target(Target(copy, copy, None))
        fsync_directory(copy)
    words = (str(find_programs(major, bindirs).path("postgres")), "-D", str(copy))
    return start_as_before(words, copy, None, _START_TIMEOUT_S)


def _lines(plan: ServePlan) -> str:
    return f"{_HEAD}port = {plan.port}\nlisten_addresses = '{plan.listen}'\n"


def _is_set(plan: ServePlan) -> bool:
    path = plan.data_directory / "postgresql.auto.conf"
    return path.is_file() and path.read_text(encoding="utf-8").endswith(_lines(plan))


def _set(plan: ServePlan) -> None:
    path = plan.data_directory / "postgresql.auto.conf"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text.endswith(_lines(plan)):
        write_atomic(path, (text + _lines(plan)).encode())
        give(path, owner_of(plan.data_directory))
