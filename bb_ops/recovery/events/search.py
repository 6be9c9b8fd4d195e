"""Find the moment: when tables were dropped or truncated, databases dropped, many rows deleted, by the archived WAL."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime

from bb_ops.clock import Stopwatch
from bb_ops.dsn import Dsn
from bb_ops.errors import NotMeasured, RepositoryMissing
from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.programs import find_programs
from bb_ops.postgres.wal_dump import pg_waldump
from bb_ops.progress import Progress
from bb_ops.recovery.events.finder import RECORDS, Change, EventFinder, Kind, Touched
from bb_ops.recovery.events.relation_names import RelationNames, names_of
from bb_ops.recovery.events.wal_path import WalPath, batches, wal_path
from bb_ops.recovery.events.wal_scan import Scanner, SegmentReader
from bb_ops.repository.catalog import Catalog
from bb_ops.repository.repository import Repository
from bb_ops.repository.windows import WalFacts, read_facts

LOSSES = frozenset(Kind) - {Kind.REWRITE}
"""What is listed unless something else is asked for."""
_DEFAULT_SPAN = timedelta(hours=24)
_LOOK_BACK = 16
_STAGE = "search"


@dataclass(frozen=True)
class EventQuery:
    """What is asked for.

    Attributes:
        since: Where it is None, 24 hours before the archive's end, or the archive's beginning.
        until: Where it is None, the archive's end.
        rows: From how many deleted rows of one table on a delete is listed.
        database: Only of this database, and of those whose name is not known.
        limit: The newest of this many; the number of those left out is told.
        server: The running server, which knows the names of tables that exist; None where it is not to be asked.
    """

    since: datetime | None
    until: datetime | None
    kinds: frozenset[Kind]
    rows: int
    database: str | None
    limit: int | None
    server: Dsn | None
    pg_bindirs: tuple[Path, ...] = ()
    scratch: Path | None = None


class EventRelation(Value):
    """What an event is about.

    Attributes:
        file: ``database_oid/relfilenode``, or a dropped database's oid alone; None where a table's name is known, and
            its file is not.
        database: Its name; None where it is not known.
        table: With its schema; None where it is not known.
        rows: Deleted rows.
    """

    file: str | None
    database: str | None
    table: str | None
    rows: int | None = None


class Event(Value):
    """One thing that a committed transaction destroyed.

    Attributes:
        at: When it was committed, by the server's clock.
        lsn: Where the commit record begins.
        end_lsn: Where it ends.
        note: What is not certain.
        just_before: The target of ``recover point-in-time --exclusive`` that stops just before it.
        just_before_lsn: The same as a position.
        command: The whole command; DIR is to be chosen.
    """

    kind: Kind
    at: AwareDatetime
    lsn: Lsn
    end_lsn: Lsn
    timeline: int
    xid: int
    relations: tuple[EventRelation, ...]
    rows: int | None
    note: str | None
    just_before: str
    just_before_lsn: str
    command: str


class EventList(Value):
    """What was found, in the order of commits.

    Attributes:
        since: The beginning that was asked for, or the default.
        from_lsn: Where the first segment that was read begins.
        events: None is missing but those in ``left_out`` and in what was not looked at.
        left_out: How many older ones the limit left out.
        not_looked_at: WAL of that time that is not archived or could not be read; each in one line.
    """

    schema_id: str = "bb-ops/events/1"
    region: str
    system_id: str
    timeline: int
    since: AwareDatetime | None
    until: AwareDatetime | None
    from_lsn: Lsn
    to_lsn: Lsn
    events: tuple[Event, ...]
    left_out: int
    not_looked_at: tuple[str, ...]
    wal_bytes: int
    duration_s: float


def find_events(repository: Repository, catalog: Catalog, query: EventQuery, progress: Progress) -> EventList:
    """Read the archived WAL of a stretch of time and list what was destroyed in it. Changes nothing.

    Raises:
        RepositoryMissing: no WAL is archived.
        NotMeasured: PostgreSQL's programs of the server's major version are missing.
        KeyRejected: our identities do not open the WAL.
    """
    watch = Stopwatch()
    system_id = _system_id(repository, catalog)
    facts = read_facts(repository, system_id)
    whole = wal_path(facts)
    if whole is None:
        raise RepositoryMissing(f"{repository.region} holds no WAL of system {system_id}: see `bb-ops wal status`")
    programs = find_programs(_major(catalog, facts), query.pg_bindirs)
    pg_waldump(programs)  # missing? then say so before anything is read
    reader = SegmentReader(repository, whole)
    end_at = _end(reader, whole)
    since = query.since or (end_at - _DEFAULT_SPAN if end_at is not None else None)
    looking = Scanner(reader, programs, query.scratch, lambda _: None)
    path = looking.between(since, query.until) if since is not None else whole
    names = _names(repository, catalog, path, query.server)
    finder = EventFinder(programs.major, path.segment_bytes, names, query.rows)
    total = len(path.segments) * path.segment_bytes
    scanner = replace(looking, tell=lambda done: progress(_STAGE, done, total))
    changes: list[Change] = []
    for records in scanner.read(batches(path), RECORDS):
        for record in records:
            changes += [one for one in finder.feed(record) if _wanted(one, since, query)]
    events = [_event(one, path, names) for one in changes]  # when all is read, more names are known
    events = [one for one in events if one.relations and _in_database(one, query.database)]
    shown = events if query.limit is None else events[max(0, len(events) - query.limit) :]
    return EventList(
        region=repository.region,
        system_id=system_id,
        timeline=path.history.timeline,
        since=since,
        until=query.until,
        from_lsn=path.segments[0].start,
        to_lsn=_to_lsn(path),
        events=tuple(shown),
        left_out=len(events) - len(shown),
        not_looked_at=tuple(_not_looked_at(reader, path, query, end_at, finder)),
        wal_bytes=total,
        duration_s=watch.elapsed_s,
    )


def _system_id(repository: Repository, catalog: Catalog) -> str:
    systems = [catalog.physical[-1].commit.system_id] if catalog.physical else repository.system_ids()
    if not systems:
        raise RepositoryMissing(f"{repository.region} holds nothing of cluster {repository.cluster}")
    return systems[-1]


def _major(catalog: Catalog, facts: WalFacts) -> int:
    if catalog.physical:
        return catalog.physical[-1].commit.server_major
    for position in facts.positions.values():
        return position.server_major
    raise NotMeasured("neither a backup nor a position says which version of PostgreSQL wrote the archived WAL")


def _names(repository: Repository, catalog: Catalog, path: WalPath, server: Dsn | None) -> RelationNames:
    ours = [one.physical for one in catalog.physical if one.commit.system_id == path.facts.system_id]
    on_path = [one for one in ours if path.timeline_at(one.wal_end_lsn) == one.timeline]
    return RelationNames(repository, on_path, names_of(server, path.facts.system_id))


def _end(reader: SegmentReader, path: WalPath) -> datetime | None:
    """Return when the archive ends, by the last segment that knows."""
    return next((at for one in path.segments[: -_LOOK_BACK - 1 : -1] if (at := reader.ends_at(one)) is not None), None)


def _to_lsn(path: WalPath) -> Lsn:
    last = path.segments[-1]
    return Lsn(last.start + path.segment_bytes) if last.finished else path.facts.positions[last.timeline].lsn


def _wanted(change: Change, since: datetime | None, query: EventQuery) -> bool:
    return (
        change.kind in query.kinds
        and (since is None or change.at >= since)
        and (query.until is None or change.at <= query.until)
    )


def _in_database(event: Event, database: str | None) -> bool:
    return database is None or any(one.database in {database, None} for one in event.relations)


def _relation(touched: Touched, lsn: Lsn, names: RelationNames) -> EventRelation | None:
    """Name what an event is about; None for a TOAST table, which belongs to another."""
    file, named = touched.file, touched.named
    if named is None and file is not None:
        named = names.later(file)
    database = named.database if named is not None else None
    if database is None and file is not None:
        database = names.database(file.database, lsn)
    if named is not None and named.toast:
        return None
    return EventRelation(
        file=str(file) if file is not None else None,
        database=database,
        table=named.table if named is not None else None,
        rows=touched.rows,
    )


def _event(change: Change, path: WalPath, names: RelationNames) -> Event:
    relations = [found for one in change.touched if (found := _relation(one, change.lsn, names)) is not None]
    if change.database is not None:
        name = names.database(change.database, change.lsn)
        relations = [EventRelation(file=str(change.database), database=name, table=None)]
    rows = [one.rows for one in relations if one.rows is not None]
    just_before = f"xid:{change.xid}" if change.before == change.lsn else f"lsn:{change.before}"
    return Event(
        kind=change.kind,
        at=change.at,
        lsn=change.lsn,
        end_lsn=change.end_lsn,
        timeline=path.timeline_at(change.lsn),
        xid=change.xid,
        relations=tuple(relations),
        rows=sum(rows) if rows else None,
        note=change.note,
        just_before=just_before,
        just_before_lsn=f"lsn:{change.before}",
        command=f"bb-ops recover point-in-time '{just_before}' --exclusive --into DIR",
    )


def _not_looked_at(
    reader: SegmentReader, path: WalPath, query: EventQuery, end_at: datetime | None, finder: EventFinder
) -> Iterator[str]:
    """Say what of the time that was asked for the archive does not hold, or what could not be read."""
    yield from map(str, path.facts.damaged)
    first, seen_at = path.segments[0], finder.first_at
    at_the_beginning = first == reader.path.segments[0]
    if query.since is not None and at_the_beginning and (seen_at is None or seen_at > query.since):
        yield f"WAL before {first.start} is not archived, and {query.since:%Y-%m-%d %H:%M:%S} UTC may lie in it"
    for hole in path.holes:
        yield f"WAL from {hole.start} to {hole.end} is not archived"
    for segment, reason in sorted(reader.lost.items()):
        yield f"WAL from {segment.start} to {Lsn(segment.start + path.segment_bytes)} could not be read: {reason}"
    seen = [at for at in (end_at, finder.last_at) if at is not None]
    if query.until is not None and (not seen or max(seen) < query.until):
        reached = f"{max(seen):%Y-%m-%d %H:%M:%S} UTC" if seen else "an instant that is not known"
        yield f"WAL is archived up to {_to_lsn(reader.path)} only, which is {reached}"
