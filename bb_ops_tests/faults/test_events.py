"""What was dropped, truncated and deleted is found in the archived WAL, with the moment to stop before."""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bb_ops.clock import SystemClock
from bb_ops.dsn import parse_dsn
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.programs import Programs
from bb_ops.postgres.wal_dump import dumping
from bb_ops.recovery.events.finder import RECORDS, EventFinder, Kind
from bb_ops.recovery.events.locate import Search, locate_restore_point, locate_transaction
from bb_ops.recovery.events.relation_names import RelationNames, names_of
from bb_ops.recovery.events.search import LOSSES
from bb_ops.recovery.events.wal_path import batches
from bb_ops.repository.repository import KeyFiles, Repository
from bb_ops.repository.windows import read_facts
from bb_ops.storage.local import LocalStore
from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import Cluster, available, connection_to, running_cluster, wait_until
from bb_ops_tests.support.wal import restored, status, wait_until_archived

SEGMENT_BYTES = 16 << 20
ROWS = 1200
SETTINGS = {
    "track_commit_timestamp": "on",
    "max_prepared_transactions": "5",
    "autovacuum": "off",
    "restore_command": "false",
}
TABLES = ("dropped", "truncated", "emptied", "released", "kept", "prepared", "vacuumed", "clustered", "altered", "few")


@dataclass(frozen=True)
class Done:
    """What the server said of a transaction."""

    kind: str
    tables: tuple[str, ...]
    xid: int
    at: str
    before: Lsn
    after: Lsn


class Story:
    """Does one thing after another and asks the server about each."""

    def __init__(self, cluster: Cluster, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.cluster = cluster
        self.connection = connection
        self.done: list[Done] = []

    def does(self, kind: str, tables: tuple[str, ...], *statements: str, end: str = "COMMIT") -> None:
        """Run statements in one transaction; an empty kind is no event."""
        for statement in ("BEGIN", *statements):
            self.connection.execute(statement)
        xid = self._one("SELECT pg_current_xact_id()::text")
        before = self._insert_lsn()
        self.connection.execute(end)
        if end.startswith("PREPARE"):
            before = self._insert_lsn()
            self.connection.execute("COMMIT PREPARED 'p'")
        after = self._insert_lsn()
        at = self._one(
            f"SELECT to_char(pg_xact_commit_timestamp('{xid}') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        )
        if kind:
            self.done.append(Done(kind, tables, int(xid), at, before, after))

    def also(self, *statements: str) -> None:
        """Run statements, each by itself."""
        for statement in statements:
            self.connection.execute(statement)

    def _insert_lsn(self) -> Lsn:
        return Lsn.parse(self._one("SELECT pg_current_wal_insert_lsn()::text"))

    def _one(self, query: str) -> Any:  # noqa: ANN401 - whatever the query gives
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row[0]


@dataclass(frozen=True)
class World:
    """An archive, and what really happened."""

    cluster: Cluster
    command: BbOps
    room: Path
    story: Story

    def search(self) -> Search:
        """Return where the library looks for records."""
        keys = self.room / "keys"
        files = KeyFiles("age", None, keys / "working.agekey", None, keys / "signing.pub")
        repository = Repository(LocalStore(self.room / "repository"), "primary", "main", files, SystemClock())
        facts = read_facts(repository, repository.system_ids()[0])
        build = self.cluster.build
        return Search(repository, facts, Programs(build.bindir, build.major), self.room / "tmp", lambda *_: None)

    def found(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Return what the command finds."""
        return self.command.run("recover", "events", "--json", *arguments).expect(code).document


@pytest.fixture(scope="module")
def world(session_room: Path, module_room: Path) -> Iterator[World]:
    """A server, its archive, and everything that destroys tables or only looks so."""
    build = available("packaged", session_room)
    cluster = Cluster(build, module_room / "cluster", settings=SETTINGS).create("--wal-segsize=1").start()
    try:
        command = bb_ops(module_room, build, cluster.url)
        _make_tables(cluster)
        command.ok("backup", "full")
        with command.start("wal", "stream") as running:
            wait_until(lambda: status(command)["slot_active"], "the streamer did not begin")
            with cluster.connect() as connection:
                story = Story(cluster, connection)
                _destroy(story)
                story.also("SELECT pg_switch_wal()")
            _branch_off(story)
            wait_until_archived(command)
            os.kill(running.pid, signal.SIGTERM)
            running.finish().expect(0)
        yield World(cluster, command, module_room, story)
    finally:
        cluster.stop()


def _make_tables(cluster: Cluster) -> None:
    with cluster.connect() as connection:
        for name in TABLES:
            connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
            connection.execute(f"INSERT INTO {name} SELECT g, 'v' FROM generate_series(1, {ROWS}) g")
        connection.execute("CREATE DATABASE other")
        connection.execute("CREATE TABLE away AS SELECT 1 AS a")
    cluster.execute("CREATE TABLE there AS SELECT 42 AS a", "other")


def _destroy(story: Story) -> None:
    story.also("SELECT pg_create_restore_point('before all')")
    story.does("drop", ("postgres/public.dropped",), "DROP TABLE dropped")
    story.does("truncate", ("postgres/public.truncated",), "TRUNCATE truncated")
    story.does("", (), "INSERT INTO truncated VALUES (1, 'again')")
    story.does("truncate", ("postgres/public.truncated",), "TRUNCATE truncated")  # a file that the backup never saw
    story.does("delete", ("postgres/public.emptied",), "DELETE FROM emptied")
    story.does("", (), "DELETE FROM few WHERE id <= 999")
    story.does("", (), "DROP TABLE kept", end="ROLLBACK")
    story.does(
        "delete",
        ("postgres/public.released",),
        *("SAVEPOINT a", "DELETE FROM released", "RELEASE a"),
        *("SAVEPOINT b", "DROP TABLE kept", "TRUNCATE few", "ROLLBACK TO b"),
    )
    story.does(
        "truncate", ("postgres/public.prepared",), "SAVEPOINT a", "TRUNCATE prepared", end="PREPARE TRANSACTION 'p'"
    )
    story.also("VACUUM FULL vacuumed", "CLUSTER clustered USING clustered_pkey", "REINDEX TABLE vacuumed")
    story.also("REINDEX TABLE CONCURRENTLY clustered", "CREATE INDEX i ON few (v)", "DROP INDEX i")
    story.does("", (), "ALTER TABLE altered ALTER id TYPE bigint")
    story.does("", (), "CREATE TEMP TABLE mine (a text PRIMARY KEY)", "DROP TABLE mine")
    story.also("CREATE TEMP TABLE mine (a text PRIMARY KEY)", "DROP TABLE mine")
    story.does("", (), "CREATE TABLE born (a int)", "TRUNCATE born", "DROP TABLE born")
    story.does("", (), "CREATE SEQUENCE s")
    story.does("", (), "DROP SEQUENCE s")
    story.does("", (), "CREATE TABLE young (a text PRIMARY KEY)")
    story.does("drop", ("not known",), "DROP TABLE young")
    story.does("drop", ("postgres/public.vacuumed",), "DROP TABLE vacuumed")
    story.does("drop", ("postgres/public.altered", "postgres/public.away"), "DROP TABLE away, altered")
    story.also("DROP DATABASE other")
    story.also("SELECT pg_create_restore_point('after all')", "SELECT pg_create_restore_point('after all')")


def _branch_off(story: Story) -> None:
    """Restart the server as a recovery to the end of its WAL would: on a timeline of its own."""
    cluster = story.cluster
    cluster.stop()
    cluster.write(cluster.data / "recovery.signal", "")
    cluster.start()
    wait_until(lambda: not cluster.value("SELECT pg_is_in_recovery()"), "the server does not leave its recovery")
    with cluster.connect() as connection:
        story.connection = connection
        story.does("drop", ("postgres/public.kept",), "DROP TABLE kept")


def _said(event: dict[str, Any]) -> tuple[str, set[str]]:
    return event["kind"], {
        f"{one['database']}/{one['table']}" if one["table"] else "not known" for one in event["relations"]
    }


def _is_the_record(event: dict[str, Any], done: Done) -> bool:
    """Compare with what the server said; something else may have been written beside it."""
    lsn, end = Lsn.parse(event["lsn"]), Lsn.parse(event["end_lsn"])
    return (event["xid"], event["at"]) == (done.xid, done.at) and done.before <= lsn < end <= done.after


@pytest.mark.requires("postgresql")
def test_everything_that_was_destroyed_is_found_with_the_servers_own_words_and_nothing_else(world: World) -> None:
    found = world.found()
    (database,) = [one for one in found["events"] if one["kind"] == "drop-database"]
    events = [one for one in found["events"] if one is not database]
    assert [_said(one) for one in events] == [(one.kind, set(one.tables)) for one in world.story.done]
    assert all(_is_the_record(one, done) for one, done in zip(events, world.story.done, strict=True))
    assert any(Lsn.parse(one["lsn"]) == done.before for one, done in zip(events, world.story.done, strict=True))
    assert {one["rows"] for one in events if one["kind"] == "delete"} == {ROWS}
    assert [(one["just_before"], one["just_before_lsn"]) for one in events] == [
        (f"xid:{one['xid']}", f"lsn:{one['lsn']}") for one in events
    ]
    assert events[0]["command"] == f"bb-ops recover point-in-time 'xid:{events[0]['xid']}' --exclusive --into DIR"
    assert (database["kind"], database["relations"][0]["database"]) == ("drop-database", "other")
    assert [one["timeline"] for one in found["events"]] == [1] * (len(found["events"]) - 1) + [2]
    assert (found["timeline"], found["not_looked_at"], found["left_out"]) == (2, [], 0)


@pytest.mark.requires("postgresql")
def test_what_is_shown_can_be_narrowed_and_says_what_it_leaves_out(world: World) -> None:
    every = world.found("--kind", "rewrite", "--kind", "delete", "--rows", "900")["events"]
    assert [_said(one) for one in every if one["kind"] == "rewrite"] == [
        ("rewrite", {f"postgres/public.{name}"}) for name in ("vacuumed", "clustered", "altered")
    ]
    assert {one["relations"][0]["rows"] for one in every if "few" in str(one)} == {999}
    first, second = world.story.done[0], world.story.done[1]
    narrow = world.found("--since", first.at, "--until", second.at, "--limit", "1")
    assert [one["xid"] for one in narrow["events"]] == [second.xid]
    assert narrow["left_out"] == 1
    assert "no zone" in world.command.run("recover", "events", "--since", "2026-11-24 10:00").expect(2).complaint
    text = world.command.ok("recover", "events", "--database", "other").stdout
    assert "drop-database  database other\n" in text
    assert "--exclusive --into DIR\n1 events since" in text


@pytest.mark.requires("postgresql")
def test_time_that_the_archive_does_not_hold_is_said(world: World, room: Path) -> None:
    found = world.found("--since", "2001-01-01T00:00:00Z", "--until", "2101-01-01T00:00:00Z", code=13)
    assert "is not archived, and 2001-01-01" in found["not_looked_at"][0]
    assert "only, which is" in found["not_looked_at"][1]
    assert len(found["events"]) == len(world.story.done) + 1
    shutil.copytree(world.room / "repository", room / "repository")
    path = world.search().path
    assert path is not None
    assert [one.finished for one in path.segments[:4]] == [True, True, True, False]
    _, missing, damaged = (
        next((room / "repository").glob(f"*/*/wal/*/*/{path.name(one)}.zst.age")) for one in path.segments[:3]
    )
    missing.unlink()
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    command = world.command.having(BB_OPS_REPOSITORY=f"file://{room}/repository", DATABASE_URL=None)
    shown = command.run("recover", "events", "--since", "2001-01-01 00:00:00 UTC").expect(13).stdout
    assert shown.count("NOT LOOKED AT WAL from") == 2
    assert "is not archived\n" in shown
    assert "could not be read" in shown


@pytest.mark.requires("postgresql")
def test_transactions_and_restore_points_are_located(world: World) -> None:
    search = world.search()
    for done in world.story.done:
        found = locate_transaction(search, done.xid + (1 << 32))  # with an epoch, as the server says it
        assert found is not None
        assert found.committed
        assert f"{found.at:%Y-%m-%dT%H:%M:%S.%f}Z" == done.at
        assert found.timeline == (2 if done is world.story.done[-1] else 1)
        assert (found.xid, done.before <= found.lsn < found.end_lsn <= done.after) == (done.xid, True)
        assert locate_transaction(replace(search, batch_bytes=1), done.xid) == found
    assert locate_transaction(replace(search, batch_bytes=1), 4_000_000) is None
    assert locate_transaction(search, 4_000_000) is None
    (first,) = locate_restore_point(search, "before all")
    two = locate_restore_point(search, "after all")
    assert [one.name for one in two] == ["after all"] * 2
    assert first.end_lsn < world.story.done[0].before < world.story.done[-2].after < two[0].lsn < two[1].lsn
    assert locate_restore_point(search, "never made") == []


@pytest.mark.requires("postgresql")
@pytest.mark.parametrize(
    ("number", "query", "dbname"),
    [(0, "SELECT count(*) FROM dropped", "postgres"), (-2, "SELECT a FROM there", "other")],
)
def test_the_target_just_before_an_event_brings_back_what_it_destroyed(
    world: World, room: Path, number: int, query: str, dbname: str
) -> None:
    kind, _, value = world.found()["events"][number]["just_before"].partition(":")
    settings = (
        f"recovery_target_{kind} = '{value}'\nrecovery_target_inclusive = off\nrecovery_target_action = promote\n"
    )
    with restored(
        world.command, world.cluster.build, room, settings=settings + "max_prepared_transactions = 5\n"
    ) as socket:
        port = int((socket / "port").read_text(encoding="utf-8"))
        with connection_to(socket, port, dbname) as connection:
            assert connection.execute(query).fetchone() == (ROWS if number == 0 else 42,)


@pytest.mark.requires("postgresql")
def test_what_lies_across_the_borders_of_batches_is_read_once(world: World) -> None:
    search = world.search()
    path = search.path
    assert path is not None
    each = [[list(part) for part in search.scanner(path).read(batches(path, size), {})] for size in (1, 64 << 20)]
    assert [len(one) for one in each] == [len(path.segments), 1]
    small, large = ([record for part in parts for record in part] for parts in each)
    assert small == large


@pytest.mark.parametrize("name", ["wheel_17", "wheel_18"])
def test_the_wal_of_other_versions_tells_the_same(session_room: Path, room: Path, name: str) -> None:
    build = available(name, session_room)
    with running_cluster(build, room / "cluster", settings=SETTINGS) as cluster:
        _make_tables(cluster)
        system_id = cluster.value("SELECT system_identifier::text FROM pg_control_system()")
        known = names_of(parse_dsn(cluster.url), system_id)
        cluster.execute("SELECT pg_switch_wal()")
        start = Lsn.parse(cluster.value("SELECT pg_current_wal_insert_lsn()::text")).segment_start(SEGMENT_BYTES)
        with cluster.connect() as connection:
            story = Story(cluster, connection)
            _destroy(story)
        files = KeyFiles("none", None, None, None, None)
        repository = Repository(LocalStore(room / "none"), "primary", "main", files, SystemClock())
        names = RelationNames(repository, (), known)
        finder = EventFinder(build.major, SEGMENT_BYTES, names, 1000)
        programs = Programs(build.bindir, build.major)
        end = Lsn(start + SEGMENT_BYTES)
        with dumping(programs, cluster.data / "pg_wal", 1, start, end, RECORDS) as dump:
            changes = [change for record in dump for change in finder.feed(record) if change.kind in LOSSES]
    *found, database = changes
    assert [
        (one.kind.value, {f"{of.named.database}/{of.named.table}" if of.named else "not known" for of in one.touched})
        for one in found
    ] == [(one.kind, set(one.tables)) for one in story.done]
    assert [(one.xid, f"{one.at:%Y-%m-%dT%H:%M:%S.%f}Z") for one in found] == [(one.xid, one.at) for one in story.done]
    assert all(done.before <= one.lsn < one.end_lsn <= done.after for one, done in zip(found, story.done, strict=True))
    assert (database.kind, database.before < database.lsn) == (Kind.DROP_DATABASE, True)
    assert known == {} or names.database(database.database or 0, end) == "other"
