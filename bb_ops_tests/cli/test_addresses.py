"""DATABASE_URL in every form that people write it reaches the server it means."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from psycopg import sql

from bb_ops_tests.support.commands import Answer, BbOps, bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, running_cluster

PASSWORD = "p@ss:w/rd% ü€/@:%25?&=+'\"\\ end"
RAW = "p@ss:w/r%d-ü€@:/x"
EVERYTHING = "büro"
ROLES = {EVERYTHING: PASSWORD, "raw": RAW, "plain": "plain"}


@dataclass(frozen=True)
class World:
    """A server whose roles have awkward passwords, over TCP and through its socket."""

    server: Cluster
    command: BbOps

    def dry_run(self, url: str) -> Answer:
        """Connect both ways, ordinary and for replication, and write nothing."""
        return self.command.having(DATABASE_URL=url).run("backup", "full", "--dry-run", "--json")


@pytest.fixture(scope="module")
def world(wheel_18: Build, module_room: Path) -> Iterator[World]:
    """Run a server that asks everybody but its superuser for a password, on every way in."""
    ways = ("local", "host", "hostssl")
    hba = ["local all postgres trust", "local replication postgres trust"]
    hba += [f"{way} {what} all{_address(way)} scram-sha-256" for way in ways[:2] for what in ("all", "replication")]
    with running_cluster(wheel_18, module_room / "cluster", hba=hba) as server:
        with server.connect() as connection:
            for role, password in ROLES.items():
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN REPLICATION PASSWORD {}").format(sql.Identifier(role), password)
                )
                connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*[sql.Identifier(role)] * 2))
        yield World(server, bb_ops(module_room, wheel_18, server.url))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg2"])
def test_schemes(world: World, scheme: str) -> None:
    _reaches(world, f"{scheme}://plain:plain@127.0.0.1:{world.server.port}/postgres")


def test_a_percent_encoded_password_and_user(world: World) -> None:
    userinfo = f"{quote(EVERYTHING)}:{quote(PASSWORD, safe='')}"
    _reaches(world, f"postgres://{userinfo}@127.0.0.1:{world.server.port}/postgres", EVERYTHING)


def test_a_raw_password(world: World) -> None:
    _reaches(world, f"postgres://raw:{RAW}@127.0.0.1:{world.server.port}/postgres", "raw")


def test_a_raw_password_and_a_query(world: World) -> None:
    _reaches(world, f"postgres://raw:{RAW}@127.0.0.1:{world.server.port}/postgres?sslmode=prefer", "raw")


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_sslmode(world: World, mode: str) -> None:
    _reaches(world, f"postgresql://plain:plain@127.0.0.1:{world.server.port}/postgres?sslmode={mode}&connect_timeout=5")


def test_a_socket_by_host_parameter(world: World) -> None:
    where = f"host={world.server.directory}&port={world.server.port}"
    _reaches(world, f"postgresql://raw:{RAW}@/postgres?{where}", "raw")
    _reaches(world, f"postgresql:///postgres?{where}&user=raw&password={quote(RAW, safe='')}", "raw")


def test_a_socket_by_percent_encoded_host(world: World) -> None:
    folder = quote(str(world.server.directory), safe="")
    _reaches(world, f"postgresql://plain:plain@{folder}:{world.server.port}/postgres")


def test_keywords(world: World) -> None:
    escaped = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    server = f"host=127.0.0.1 port={world.server.port} dbname=postgres"
    _reaches(world, f"{server} user={EVERYTHING} password='{escaped}'", EVERYTHING)


def test_white_space_around_it(world: World) -> None:
    _reaches(world, f"  postgresql://plain:plain@127.0.0.1:{world.server.port}/postgres\n")


def test_without_a_database_it_is_the_role_s_own_as_everywhere_in_postgresql(world: World) -> None:
    _reaches(world, f"postgresql://plain:plain@127.0.0.1:{world.server.port}", database="plain")
    _reaches(world, f"postgresql://plain:plain@127.0.0.1:{world.server.port}/", database="plain")


def test_a_second_host_after_one_that_does_not_answer(world: World) -> None:
    _reaches(world, f"postgresql://plain:plain@127.0.0.1:1,127.0.0.1:{world.server.port}/postgres")


def test_a_file_that_holds_the_address(world: World, room: Path) -> None:
    file = room / "url"
    file.write_text(f"postgresql://raw:{RAW}@127.0.0.1:{world.server.port}/postgres\n", encoding="utf-8")
    command = world.command.having(DATABASE_URL=None, DATABASE_URL_FILE=file)
    command.ok("backup", "full", "--dry-run")


def test_an_env_file_in_the_working_directory(world: World) -> None:
    file = world.command.directory / ".env"
    file.write_text(f"DATABASE_URL='postgresql://raw:{RAW}@127.0.0.1:{world.server.port}/postgres'\n", encoding="utf-8")
    try:
        world.command.having(DATABASE_URL=None).ok("backup", "full", "--dry-run")
        wrong = world.command.having(DATABASE_URL="postgresql://plain:no@127.0.0.1:1/postgres")
        wrong.run("backup", "full", "--dry-run").expect(2)  # the process environment wins
    finally:
        file.unlink()


def test_without_a_port_it_is_postgresql_s_own(wheel_18: Build, room: Path) -> None:
    server = Cluster(wheel_18, room / "cluster", port=5432, settings={"listen_addresses": ""})
    server.create().start()
    try:
        command = bb_ops(room, wheel_18, f"postgres://postgres@/postgres?host={server.directory}")
        command.ok("backup", "full")
        command.having(DATABASE_URL=f"postgres://postgres@{quote(str(server.directory), safe='')}/postgres").ok(
            "backup", "full", "--dry-run"
        )
    finally:
        server.stop()


def test_a_whole_backup_is_taken_with_the_most_awkward_password(world: World, room: Path) -> None:
    userinfo = f"{quote(EVERYTHING)}:{quote(PASSWORD, safe='')}"
    command = world.command.having(
        DATABASE_URL=f"postgres://{userinfo}@127.0.0.1:{world.server.port}/postgres?sslmode=disable",
        BB_OPS_REPOSITORY=f"file://{room}/repository",
    )
    command.ok("backup", "full")
    command.ok("validate", "latest", "--level", "L4")


def _address(way: str) -> str:
    return "" if way == "local" else " 127.0.0.1/32"


def _reaches(world: World, url: str, role: str = "plain", database: str = "postgres") -> None:
    answer = world.dry_run(url).expect(0)
    server = str(answer.document["server"])
    assert server.startswith(f"{role}@")
    assert server.endswith(f"/{database}") or database != "postgres"
    assert answer.document["refusals"] == []
    assert answer.stderr == ""
    for password in ROLES.values():
        if password != "plain":
            assert password not in answer.stdout
