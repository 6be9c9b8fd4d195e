"""What is wrong is said in one line on stderr, with the right exit code, and never with a secret in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import Answer, BbOps, backups_of, bb_ops, objects_below
from bb_ops_tests.support.postgres import (
    Build,
    Cluster,
    connection_to,
    free_port,
    running_cluster,
    stop_server_in,
)
from bb_ops_tests.support.s3 import S3Server, running_s3

USAGE, MISSING = 2, 10
PASSWORD = "kanarienvogel-9Q"
OPERATOR = "bb_operator"


@dataclass(frozen=True)
class World:
    """A server with access rules, and a repository that holds one backup."""

    server: Cluster
    command: BbOps
    room: Path

    def at(self, url: str) -> BbOps:
        """Return the command with another DATABASE_URL and a repository of its own."""
        return self.command.having(DATABASE_URL=url, BB_OPS_REPOSITORY=f"file://{self.room}/untouched")

    def tcp(self, user: str = OPERATOR, password: str = PASSWORD, rest: str = "/postgres") -> str:
        """Return an address over TCP."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.server.port}{rest}"


@pytest.fixture(scope="module")
def world(wheel_18: Build, module_room: Path) -> Iterator[World]:
    """Run a server that asks for passwords over TCP, and take a backup."""
    hba = (
        "local all postgres trust",
        "local replication postgres trust",
        f"host all {OPERATOR},no_replication 127.0.0.1/32 scram-sha-256",
        "host all no_replication_line 127.0.0.1/32 scram-sha-256",
        f"host replication {OPERATOR},no_replication 127.0.0.1/32 scram-sha-256",
    )
    with running_cluster(wheel_18, module_room / "cluster", hba=hba) as server:
        for role in (f"{OPERATOR} REPLICATION", "no_replication", "no_replication_line REPLICATION"):
            server.execute(f"CREATE ROLE {role.split()[0]} LOGIN PASSWORD '{PASSWORD}' {role.partition(' ')[2]}")
        command = bb_ops(module_room, wheel_18, server.url)
        command.ok("backup", "full")
        command.ok("sync", "incremental")
        yield World(server, command, module_room)
        assert not list(module_room.glob("untouched/*/*")), "a refused command wrote something"


@pytest.fixture(scope="module")
def s3(module_room: Path) -> Iterator[S3Server]:
    """Run a real S3 server."""
    with running_s3(module_room) as server:
        yield server


# The server


def test_the_right_password_works_over_tcp(world: World, room: Path) -> None:
    """The counterpart of the refusals below."""
    command = world.at(world.tcp()).having(BB_OPS_REPOSITORY=f"file://{room}/repository")
    assert command.ok("backup", "full", "--dry-run", "--json").document["refusals"] == []


@pytest.mark.parametrize("as_json", [False, True])
def test_an_unreachable_server(world: World, *, as_json: bool) -> None:
    url = f"postgresql://{OPERATOR}:{PASSWORD}@127.0.0.1:{free_port()}/postgres"
    options = ["--json"] if as_json else []
    answer = _refused(world.at(url), "backup", "full", *options)
    assert "Connection refused" in answer.complaint
    assert "127.0.0.1" in answer.complaint
    if as_json:
        assert answer.document["exit_code"] == USAGE
        assert f"bb-ops: {answer.document['error']}" == answer.complaint
    else:
        assert answer.stdout == ""


def test_a_socket_that_does_not_exist(world: World, room: Path) -> None:
    assert str(room) in _refused(world.at(f"postgresql:///postgres?host={room}&user=a"), "backup", "full").complaint


def test_a_host_that_does_not_exist(world: World) -> None:
    answer = _refused(world.at(f"postgresql://a:{PASSWORD}@server.invalid/postgres"), "backup", "full")
    assert "server.invalid" in answer.complaint


def test_a_wrong_password(world: World) -> None:
    answer = _refused(world.at(world.tcp(password="falsch-4711-canary")), "backup", "full")
    assert "password" in answer.complaint
    assert "falsch-4711" not in answer.complaint


def test_no_password(world: World) -> None:
    answer = _refused(world.at(f"postgresql://{OPERATOR}@127.0.0.1:{world.server.port}/postgres"), "backup", "full")
    assert "no password" in answer.complaint


def test_a_role_that_may_not_replicate(world: World) -> None:
    answer = _refused(world.at(world.tcp("no_replication")), "backup", "full")
    assert "ALTER ROLE no_replication REPLICATION" in answer.complaint


def test_a_role_without_a_replication_line_in_pg_hba(world: World) -> None:
    answer = _refused(world.at(world.tcp("no_replication_line")), "backup", "full")
    assert "pg_hba.conf" in answer.complaint


def test_a_database_and_a_role_that_do_not_exist(world: World) -> None:
    for url in (world.tcp(rest="/no-such-database"), world.server.url_of("postgres", user="nobody-here")):
        answer = _refused(world.at(url), "backup", "full")
        assert "no-such-database" in answer.complaint or "nobody-here" in answer.complaint


def test_wal_level_minimal(wheel_18: Build, room: Path) -> None:
    settings = {"wal_level": "minimal", "max_wal_senders": "0"}
    with running_cluster(wheel_18, room / "cluster", settings=settings) as server:
        answer = _refused(bb_ops(room, wheel_18, server.url), "backup", "full")
    assert "wal_level is minimal: set wal_level = replica" in answer.complaint


def test_too_few_wal_senders(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster", settings={"max_wal_senders": "1"}) as server:
        answer = _refused(bb_ops(room, wheel_18, server.url), "backup", "full")
    assert "max_wal_senders" in answer.complaint


def test_another_system_than_the_repository_holds(world: World, wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as other:
        command = world.command.having(DATABASE_URL=other.url)
        answer = _refused(command, "backup", "full")
        assert "--new-lineage" in answer.complaint
    assert len(backups_of(world.command)) == 1


@pytest.mark.parametrize("parameter", ["sslmode=require", "sslmode=nonsense", "no_such_parameter=1", "sslrootcert=/x"])
def test_a_parameter_that_cannot_be_met(world: World, parameter: str) -> None:
    if parameter.startswith("sslrootcert"):
        parameter = f"sslmode=verify-full&{parameter}"
    answer = _refused(world.at(f"{world.tcp()}?{parameter}"), "backup", "full")
    assert PASSWORD not in answer.complaint


# Settings


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://a:{PASSWORD}@h/d",
        f"a:{PASSWORD}@h/d",
        f"postgresql://a:{PASSWORD}@h:port/d",
        f"password={PASSWORD} host",
        f"postgresql://a:{PASSWORD}@[::1/d",
    ],
)
def test_an_address_that_is_none(world: World, url: str) -> None:
    answer = _refused(world.at(url), "backup", "full")
    assert "DATABASE_URL" in answer.complaint
    assert PASSWORD not in answer.stderr
    assert "kanarien" not in answer.stderr


@pytest.mark.parametrize("name", ["DATABASE_URL", "BB_OPS_REPOSITORY", "BB_OPS_AGE_RECIPIENTS_FILE"])
def test_a_setting_that_is_missing(world: World, name: str) -> None:
    answer = _refused(world.at(world.server.url).having(**{name: None}), "backup", "full")
    assert name in answer.complaint


def test_all_faults_of_the_settings_are_named_at_once_without_values(world: World) -> None:
    command = world.command.having(
        DATABASE_URL=f"oracle://{PASSWORD}",
        BB_OPS_REPOSITORY=f"ftp://{PASSWORD}",
        BB_OPS_COMPRESSION_LEVEL="99",
        BB_OPS_PART_SIZE_MIB="many",
        BB_OPS_CLUSTER="Up/Down",
        BB_OPS_ENCRYPTION="rot13",
        BB_OPS_SIGNING_KEY_FILE="/no/such/file",
    )
    answer = _refused(command, "backup", "list")
    for name in (
        *("DATABASE_URL", "BB_OPS_REPOSITORY", "BB_OPS_COMPRESSION_LEVEL", "BB_OPS_PART_SIZE_MIB"),
        *("BB_OPS_CLUSTER", "BB_OPS_ENCRYPTION", "BB_OPS_SIGNING_KEY_FILE"),
    ):
        assert name in answer.complaint
    for value in (PASSWORD, "rot13", "Up/Down", "/no/such/file"):
        assert value not in answer.complaint


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/.", "{}/x/..", "link"])
def test_one_place_for_both_repositories(world: World, room: Path, form: str) -> None:
    place = room / "place"
    place.mkdir()
    (room / "link").symlink_to(place)
    second = f"{room}/link" if form == "link" else form.format(place)
    command = world.command.having(BB_OPS_REPOSITORY=f"file://{place}", BB_OPS_REPLICA=f"file://{second}")
    for words in (("backup", "full"), ("sync", "incremental"), ("backup", "list")):
        assert "same place" in _refused(command, *words).complaint
    assert list(place.iterdir()) == []


def test_one_bucket_for_both_repositories(world: World) -> None:
    command = world.command.having(BB_OPS_REPOSITORY="s3://one-bucket/p", BB_OPS_REPLICA="s3://one-bucket/p/")
    assert "same place" in _refused(command, "backup", "list").complaint


@pytest.mark.parametrize(
    "url", ["relative/dir", "file://relative", "file:///", "s3://", "s3://B", "https://h/b", "/abs"]
)
def test_a_repository_address_that_is_none(world: World, url: str) -> None:
    answer = _refused(world.command.having(BB_OPS_REPOSITORY=url), "backup", "list")
    assert "BB_OPS_REPOSITORY" in answer.complaint


def test_a_region_that_is_none(world: World) -> None:
    assert "primary, replica" in _refused(world.command, "validate", "latest", "--region", "moon").complaint


def test_recipients_that_are_too_few_or_none(world: World, room: Path) -> None:
    lines = (world.room / "keys" / "recipients.txt").read_text(encoding="utf-8").splitlines()
    one = next(line for line in lines if line.startswith("age1"))
    for content in (one, f"{one}\n{one}\n", "", "age1nonsense\n", "\0\0"):
        file = room / "recipients.txt"
        file.write_text(content, encoding="utf-8")
        command = world.at(world.server.url).having(BB_OPS_AGE_RECIPIENTS_FILE=file)
        assert str(file) in _refused(command, "backup", "full").complaint


def test_a_signing_key_that_is_none(world: World, room: Path) -> None:
    file = room / "signing.key"
    file.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", encoding="utf-8")
    command = world.at(world.server.url).having(BB_OPS_SIGNING_KEY_FILE=file)
    assert "BB_OPS_SIGNING_KEY_FILE" in _refused(command, "backup", "full").complaint


def test_an_identity_that_is_none(world: World, room: Path) -> None:
    file = room / "identity"
    file.write_text("AGE-SECRET-KEY-1NONSENSE\n", encoding="utf-8")
    answer = (
        world.command.having(BB_OPS_AGE_IDENTITY_FILE=file).run("validate", "latest", "--integrity-only").expect(12)
    )
    assert str(file) in answer.complaint
    assert "NONSENSE" not in answer.complaint


def test_keys_are_never_overwritten(world: World) -> None:
    before = (world.room / "keys" / "working.agekey").read_bytes()
    assert "never overwritten" in _refused(world.command, "keys", "init", world.room / "keys").complaint
    assert (world.room / "keys" / "working.agekey").read_bytes() == before


# What does not exist


def test_a_bucket_that_does_not_exist(world: World, s3: S3Server) -> None:
    command = _on_s3(world, s3, "no-such-bucket-here")
    for words in (("backup", "full"), ("backup", "list"), ("validate", "latest"), ("sync", "incremental")):
        answer = command.run(*words).expect(MISSING)
        assert "no-such-bucket-here" in answer.complaint
        assert s3.secret_access_key not in answer.stdout + answer.stderr
    assert [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]] == []


def test_s3_credentials_that_are_refused(world: World, s3: S3Server) -> None:
    wrong = "geheimnis-KANARI-0123456789abcdef"
    command = _on_s3(world, s3, "some-bucket").having(BB_OPS_S3_SECRET_ACCESS_KEY=wrong)
    answer = _refused(command, "backup", "list")
    assert "credentials" in answer.complaint
    assert wrong not in answer.stdout + answer.stderr


def test_an_s3_server_that_does_not_answer(world: World, s3: S3Server) -> None:
    command = _on_s3(world, s3, "some-bucket").having(BB_OPS_S3_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    answer = command.run("backup", "list")
    assert answer.returncode in {1, USAGE, MISSING}
    assert "some-bucket" in answer.complaint


def test_a_repository_that_does_not_exist(world: World, room: Path) -> None:
    command = world.command.having(BB_OPS_REPOSITORY=f"file://{room}/nowhere", BB_OPS_REPLICA=f"file://{room}/never")
    into = ("--into", room / "back")
    for words in (
        ("backup", "list"),
        ("backup", "show", "latest"),
        ("validate", "latest"),
        ("sync", "incremental"),
        ("sync", "full"),
        ("recover", "full", "latest", *into),
    ):
        assert str(room) in command.run(*words).expect(MISSING).complaint
    assert list(room.iterdir()) == []


def test_a_backup_that_does_not_exist(world: World, room: Path) -> None:
    unknown = "20200101T020000Z-full-00000000"
    for words in (
        ("validate", unknown),
        ("backup", "show", unknown),
        ("recover", "full", unknown, "--into", room / "b"),
    ):
        assert unknown in world.command.run(*words).expect(MISSING).complaint
    assert not (room / "b").exists()


@pytest.mark.parametrize("name", ["", "newest", "../../etc", "20200101T020000Z-full-0000000g", "%s"])
def test_a_name_that_is_no_backup(world: World, name: str) -> None:
    _refused(world.command, "validate", name)


# The target of a restore


def test_a_target_that_is_not_empty_is_left_as_it_was(world: World, room: Path) -> None:
    target = room / "data"
    target.mkdir()
    (target / "precious").write_text("do not touch", encoding="utf-8")
    answer = _refused(world.command, "recover", "full", "latest", "--into", target)
    assert "not empty" in answer.complaint
    assert [path.name for path in target.iterdir()] == ["precious"]


def test_a_target_that_is_a_file_or_a_dangling_link(world: World, room: Path) -> None:
    (room / "file").write_text("x", encoding="utf-8")
    (room / "link").symlink_to(room / "nowhere")
    for name in ("file", "link"):
        _refused(world.command, "recover", "full", "latest", "--into", room / name)
    assert (room / "file").read_text(encoding="utf-8") == "x"
    assert not (room / "nowhere").exists()


def test_a_target_in_which_a_server_runs(world: World) -> None:
    answer = _refused(world.command, "recover", "full", "latest", "--into", world.server.data)
    assert "server is running" in answer.complaint
    assert world.server.value("SELECT 1") == 1


def test_a_restored_server_is_never_restored_over(world: World, room: Path) -> None:
    port = str(free_port())
    recover = ("recover", "full", "latest", "--into", room / "back", "--start", "--port", port)
    try:
        world.command.ok(*recover)
        assert "server is running" in _refused(world.command, *recover[:5]).complaint
        with connection_to(room / "back", int(port), "postgres") as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        stop_server_in(room / "back")
    assert "not empty" in _refused(world.command, *recover[:5]).complaint


def test_a_port_that_is_taken(world: World, room: Path) -> None:
    port = str(world.server.port)
    answer = _refused(world.command, "recover", "full", "latest", "--into", room / "b", "--start", "--port", port)
    assert port in answer.complaint
    assert not (room / "b").exists()


# The words


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"],
        ["backup", "sideways"],
        ["backup", "full", "--no-such-option"],
        ["backup", "full", "superfluous"],
        ["validate"],
        ["validate", "latest", "--level", "L9"],
        ["validate", "latest", "--integrity-only", "--level", "L2"],
        ["recover", "full", "latest"],
        ["recover", "full", "latest", "--into", "x", "--port", "99999"],
        ["backup", "full", "--slot", "2020-01-01"],
    ],
)
def test_words_that_are_not_understood(world: World, words: list[str]) -> None:
    _refused(world.command, *words)


def _refused(command: BbOps, *words: str | Path) -> Answer:
    """Run something that must be refused as wrong usage: exit 2, one line on stderr, no traceback."""
    answer = command.run(*words).expect(USAGE)
    assert answer.complaint.startswith("bb-ops: ")
    assert "Traceback" not in answer.stderr
    return answer


def _on_s3(world: World, s3: S3Server, bucket: str) -> BbOps:
    return world.command.having(
        BB_OPS_REPOSITORY=f"s3://{bucket}/prefix",
        BB_OPS_S3_ENDPOINT_URL=s3.endpoint_url,
        BB_OPS_S3_ACCESS_KEY_ID=s3.access_key_id,
        BB_OPS_S3_SECRET_ACCESS_KEY=s3.secret_access_key,
    )


def test_the_refusals_wrote_nothing(world: World) -> None:
    assert len(backups_of(world.command)) == 1
    assert all(
        path.parent.name == backups_of(world.command)[0]["id"] for path in objects_below(world.room / "repository")
    )
