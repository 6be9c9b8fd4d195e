"""A full and 24 increments under changing data come back equal: every sort of change, both versions that have them.

On the older version the chain is half as long; BB_OPS_TEST_LONG=1 makes it whole.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bb_ops_tests.support import foreign
from bb_ops_tests.support.commands import Answer, BbOps, bb_ops
from bb_ops_tests.support.page import follow
from bb_ops_tests.support.postgres import (
    Cluster,
    available,
    connection_to,
    free_port,
    running_cluster,
    stop_server_in,
)
from bb_ops_tests.support.rooms import hand_over

LONG = os.environ.get("BB_OPS_TEST_LONG") == "1"
HALF = 11
pytestmark = pytest.mark.timeout(600)
Connect = Callable[[str], AbstractContextManager[psycopg.Connection[tuple[Any, ...]]]]

_CHANGES: tuple[str, ...] = (
    "INSERT INTO grows SELECT g, md5(g::text) FROM generate_series(20001, 24000) g",
    "CREATE TABLE born AS SELECT g AS id, repeat('b', 200) AS b FROM generate_series(1, 3000) g",
    "UPDATE grows SET m = 'changed' WHERE id % 50 = 0",
    "DROP TABLE doomed",
    "TRUNCATE emptied",
    "DELETE FROM shrinks WHERE id > 500;;VACUUM (TRUNCATE) shrinks",
    "VACUUM FULL grows",
    "CREATE TABLE elsewhere TABLESPACE fast AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, 4000) g",
    "INSERT INTO emptied SELECT g, 'again' FROM generate_series(1, 2500) g",
    "ALTER TABLE born ADD COLUMN c int DEFAULT 7;;CREATE INDEX ON born (c, id)",
    "SELECT 1",  # nothing at all
    "UPDATE elsewhere SET m = 'x' WHERE id < 100;;ALTER TABLE born SET TABLESPACE fast",
    "CREATE DATABASE second",
    "CREATE TABLE kept AS SELECT 1 AS one;;CREATE SEQUENCE s START 5;;SELECT nextval('s') FROM generate_series(1, 90)",
    "CREATE DATABASE third STRATEGY file_copy TEMPLATE second",
    "SELECT lo_from_bytea(77, decode(repeat('ab', 9000), 'hex'))",
    "DROP DATABASE second",
    "REINDEX TABLE born;;CLUSTER born USING born_c_id_idx",
    "UPDATE grows SET m = md5(m)",
    "DROP TABLE emptied;;CREATE TABLE emptied (id int, m text)",
    """CREATE TABLE toasted AS SELECT g AS id, string_agg(md5((g * n)::text), '') AS t
       FROM generate_series(1, 30) g, generate_series(1, 900) n GROUP BY g""",
    "UPDATE toasted SET t = reverse(t) WHERE id % 3 = 0",
    "ALTER TABLE elsewhere SET TABLESPACE pg_default;;TRUNCATE shrinks",
    "INSERT INTO shrinks SELECT g, 'late' FROM generate_series(1, 50) g",
)


@dataclass(frozen=True)
class Chain:
    """A chain on its server."""

    source: Cluster
    command: BbOps
    room: Path
    backups: list[Answer]
    rows: list[foreign.Rows]

    @property
    def increments(self) -> int:
        """How many increments it has."""
        return len(self.backups) - 1

    def ids(self) -> list[str]:
        """Return the backups' names, the full first."""
        return [answer.document["id"] for answer in self.backups]


@pytest.fixture(scope="module", params=["wheel_17", "wheel_18"])
def chain(request: pytest.FixtureRequest, session_room: Path, module_room: Path) -> Iterator[Chain]:
    """Take a full, and an increment after each change."""
    build = available(request.param, session_room)
    room = module_room / build.name
    room.mkdir()
    changes = _CHANGES if LONG or build.major > 17 else _CHANGES[:HALF]
    with running_cluster(build, room / "cluster", settings={"summarize_wal": "on"}) as source:
        _fill(source)
        command = bb_ops(room, build, source.url)
        backups, rows = [command.ok("backup", "full", "--json")], [foreign.read_rows(source.connect)]
        for change in changes:
            source.execute(change)
            rows.append(foreign.read_rows(source.connect))
            backups.append(command.ok("backup", "incremental", "--blocks-only", "--json"))
        yield Chain(source, command, room, backups, rows)


def test_every_backup_is_an_increment_on_the_one_before(chain: Chain) -> None:
    documents = [answer.document for answer in chain.backups]
    assert [document["kind"] for document in documents] == ["full", *["incremental"] * chain.increments]
    assert [document["parent_id"] for document in documents[1:]] == chain.ids()[:-1]
    assert [document["depth"] for document in documents] == list(range(chain.increments + 1))
    assert all(answer.stderr == "" for answer in chain.backups)
    assert all(answer.peak_memory_bytes < 300_000_000 for answer in chain.backups)


def test_an_increment_without_changes_is_small(chain: Chain) -> None:
    full, idle = chain.backups[0].document, chain.backups[1 + _CHANGES.index("SELECT 1")].document
    assert idle["stored_bytes"] < full["stored_bytes"] * 0.2


def test_the_last_of_all_increments_is_proven_equal_to_the_source(chain: Chain) -> None:
    proof = chain.command.ok("validate", "latest", "--json").document
    assert (proof["level"], proof["outcome"], proof["backup_id"]) == ("L6", "pass", chain.ids()[-1])
    contents = next(step["evidence"] for step in proof["steps"] if step["level"] == "L2")
    assert f"chain of {chain.ids()[0]} and {chain.increments} increments up to {chain.ids()[-1]}" in contents
    assert list((chain.room / "tmp").iterdir()) == []


@pytest.mark.parametrize("part", [0.55, 1.0])
def test_any_backup_of_the_chain_is_restored_to_its_own_rows(chain: Chain, room: Path, part: float) -> None:
    target, port, depth = room / "back=\\ here", free_port(), int(part * chain.increments)
    try:
        recovered = chain.command.ok(
            "recover", "full", chain.ids()[depth], "--into", target, "--start", "--port", str(port), "--json"
        ).document
        assert (recovered["proof"], recovered["outcome"]) == ("L4", "pass")
        assert foreign.read_rows(partial(connection_to, target, port)) == chain.rows[depth]
        assert not list(target.glob(".bb_ops*")), "nothing of the chain may stay in the restored directory"
    finally:
        stop_server_in(target)


@pytest.mark.requires("age", "zstd", "tar")
def test_the_page_of_an_increment_brings_its_chain_back_with_stock_tools(chain: Chain, room: Path) -> None:
    depth = 1 + next(number for number, change in enumerate(_CHANGES) if "TABLESPACE fast" in change)
    target, port = room / "b", free_port()
    (page,) = (chain.room / "repository").glob(f"main/*/base/{chain.ids()[depth]}/RECOVERY.md")
    (room / "key").write_bytes((chain.room / "keys" / "offline.agekey").read_bytes())
    hand_over(chain.room / "repository")
    names = {"REPO": room / "copy", "KEY": room / "key", "DIR": target, "BIN": chain.source.build.bindir}
    try:
        answer = follow(page.read_text(encoding="utf-8"), room, **names, PORT=str(port))
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
        assert foreign.read_rows(partial(connection_to, target, port)) == chain.rows[depth]
        (space,) = (room / "b.tablespaces").iterdir()
        assert list(space.rglob("*")), "the tablespace is in its new place"
    finally:
        stop_server_in(target)


def test_a_chain_is_copied_whole(chain: Chain) -> None:
    report = chain.command.ok("sync", "incremental", "--json").document
    assert [entry["id"] for entry in report["copied"]] == chain.ids()
    proof = chain.command.ok("validate", "latest", "--region", "replica", "--integrity-only", "--json").document
    assert (proof["level"], proof["backup_id"]) == ("L1", chain.ids()[-1])


def test_a_chain_becomes_a_full_without_the_server(chain: Chain, room: Path) -> None:
    shutil.copytree(chain.room / "repository", room / "repository")
    alone = chain.command.having(BB_OPS_REPOSITORY=f"file://{room}/repository", BB_OPS_REPLICA=None)
    plan = alone.ok("backup", "combine", "latest", "--dry-run", "--json").document
    assert plan["chain"] == chain.ids()
    combined = alone.having(DATABASE_URL=None).ok("backup", "combine", "latest", "--json").document
    assert (combined["kind"], combined["depth"], combined["combined_from"]) == ("full", 0, chain.ids())
    last = chain.backups[-1].document
    assert {combined[name] == last[name] for name in ("as_of", "slot", "system_id")} == {True}
    for path in (room / "repository").glob(f"*/*/base/{chain.ids()[7]}/*"):
        path.unlink()  # whatever happens to the chain
    proof = alone.ok("validate", "latest", "--json").document
    assert (proof["backup_id"], proof["level"], proof["tables_compared"] > 3) == (combined["id"], "L6", True)
    assert "nothing to combine" in alone.run("backup", "combine", "latest").expect(2).complaint
    following = alone.ok("backup", "incremental", "--blocks-only", "--json").document
    assert (following["kind"], following["parent_id"]) == ("incremental", combined["id"])
    assert alone.ok("validate", "latest", "--json").document["level"] == "L6"


def _fill(source: Cluster) -> None:
    location = source.spaces / "fast space"
    location.mkdir()
    hand_over(location)
    source.execute(
        f"CREATE TABLESPACE fast LOCATION '{location}';;"
        "CREATE TABLE grows AS SELECT g AS id, md5(g::text) AS m FROM generate_series(1, 20000) g;;"
        "CREATE INDEX ON grows (m);;"
        "CREATE TABLE shrinks AS SELECT g AS id, repeat('s', 300) AS m FROM generate_series(1, 5000) g;;"
        "CREATE TABLE doomed AS SELECT g AS id FROM generate_series(1, 9000) g;;"
        "CREATE TABLE emptied AS SELECT g AS id, 'e' AS m FROM generate_series(1, 9000) g"
    )
