"""Planted secrets are looked for everywhere that others can read: outputs, logs, arguments, the repository."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from bb_ops_tests.support.commands import BbOps, bb_ops, command_line, descendants, environment_of
from bb_ops_tests.support.postgres import Build, Cluster, free_port, running_cluster, stop_server_in

PASSWORD = "KanariW0rt@/x:ü-7731"
ROLE = "bb_operator"


@dataclass(frozen=True)
class World:
    """A server, a command that knows its password, and every form in which a secret could show."""

    server: Cluster
    command: BbOps
    room: Path
    secrets: tuple[str, ...]

    def found_in(self, *texts: str | bytes) -> set[str]:
        """Return the secrets that texts hold."""
        whole = b"\n".join(text.encode() if isinstance(text, str) else text for text in texts)
        return {secret for secret in self.secrets if secret.encode() in whole}


@dataclass
class Seen:
    """What everybody on the host could see of a command and all its children while it ran."""

    arguments: dict[int, bytes] = field(default_factory=dict)
    environments: dict[int, bytes] = field(default_factory=dict)


@pytest.fixture(scope="module")
def world(wheel_18: Build, module_room: Path) -> Iterator[World]:
    """Plant the secrets."""
    hba = (
        "local all postgres trust",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host replication all 127.0.0.1/32 scram-sha-256",
    )
    with running_cluster(wheel_18, module_room / "cluster", hba=hba) as server:
        server.execute(f"CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD '{PASSWORD}'")
        server.execute(
            f"GRANT pg_read_all_data, pg_read_all_stats TO {ROLE};;GRANT CREATE ON DATABASE postgres TO {ROLE}"
        )
        server.execute("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 50000) g")
        url = f"postgresql://{ROLE}:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/postgres"
        command = bb_ops(module_room, wheel_18, url)
        yield World(server, command, module_room, (*_forms(PASSWORD), *_key_material(module_room / "keys")))


def test_the_look_out_sees_a_secret_that_is_there(world: World) -> None:
    assert world.found_in(world.command.environment["DATABASE_URL"]) == {quote(PASSWORD, safe="")}
    assert world.found_in((world.room / "keys" / "working.agekey").read_bytes())
    assert world.found_in((world.room / "keys" / "signing.key").read_bytes())
    assert len(world.secrets) >= 6


def test_no_secret_shows_while_everything_is_done(world: World) -> None:
    target, port = world.room / "back", free_port()
    slow = world.command.having(BB_OPS_COMPRESSION_LEVEL="9")
    try:
        for words in (
            ("backup", "full", "--json"),
            ("sync", "incremental", "--json"),
            ("validate", "latest", "--json"),
            ("validate", "latest", "--region", "replica", "--level", "L5"),
            ("backup", "list"),
            ("backup", "show", "latest"),
            ("backup", "status", "--json"),
            ("doctor", "--json"),
            ("doctor",),
            ("recover", "plan", "latest", "--json"),
            ("recover", "point-in-time", "immediate", "--into", world.room / "then", "--json"),
            ("recover", "readiness", "--json"),
            (
                "recover",
                "table",
                "t",
                "--at",
                "immediate",
                "--into-schema",
                "rescue",
                "--database",
                "postgres",
                "--json",
            ),
            ("drill", "--offline-key", world.room / "keys" / "offline.agekey", "--json"),
            ("recover", "full", "latest", "--into", target, "--start", "--port", str(port), "--json"),
        ):
            seen = Seen()
            with slow.start("-v", *words) as running:
                while running.alive:
                    _look(running.pid, seen)
                answer = running.finish()
            assert answer.returncode in ({0, 4} if "readiness" in words else {0}), (words, answer.stderr)
            assert world.found_in(answer.stdout, answer.stderr) == set(), words
            assert b"bb-ops" in b"".join(seen.arguments.values())
            assert world.found_in(*seen.arguments.values()) == set(), words
            children = [text for pid, text in seen.environments.items() if pid != running.pid]
            assert world.found_in(*children) == set(), words
            alone = {"plan", "readiness"} & set(words) or words[0] not in {"validate", "recover", "drill"}
            assert children or alone, "the look-out saw no child"
            assert '"logger"' in answer.stderr or words[0] not in {"sync", "validate"}, "with -v it says what it does"
        for log in target.glob("*.log"):
            assert world.found_in(log.read_bytes()) == set()
    finally:
        stop_server_in(target)


def test_no_secret_lies_in_the_repository(world: World, room: Path) -> None:
    command = world.command.having(BB_OPS_REPOSITORY=f"file://{room}/a", BB_OPS_REPLICA=f"file://{room}/b")
    command.ok("backup", "full")
    command.ok("sync", "incremental")
    command.ok("validate", "latest", "--integrity-only")
    files = [path for path in room.rglob("*") if path.is_file()]
    assert {"COMMIT.json", "bb-ops-repository.json"} <= {path.name for path in files}
    for path in files:
        assert world.found_in(path.read_bytes()) == set(), path
        assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://{role}:{password}@127.0.0.1:{port}/no_such_database",
        "postgresql://{role}:{password}@127.0.0.1:{port}/postgres?sslmode=verify-full",
        "postgresql://{role}:{password}@127.0.0.1:{port}/postgres?nonsense={password}",
        "postgresql://{role}:{password}@127.0.0.1:1/postgres",
        "postgresql://{role}:{password}x@127.0.0.1:{port}/postgres",
        "postgresql://{role}:{password}@no.such.host.invalid/postgres",
        "postgresql://{role}:{password}@127.0.0.1:{port}/{role}?options=-c%20nonsense%3D1",
        "postgresql://{role}:{password}@127.0.0.1:port/postgres",
        "postgresql://{role}:{password}@127.0.0.1:{port}/postgres?sslmode={password}",
        "postgresql://{role}:{password}@127.0.0.1:{port}/postgres?connect_timeout={password}",
        "host=127.0.0.1 port={port} user={role} password={password} nonsense",
        "http://{role}:{password}@127.0.0.1:{port}/postgres",
    ],
)
@pytest.mark.parametrize("encoded", [False, True])
def test_no_refusal_repeats_the_password(world: World, url: str, *, encoded: bool) -> None:
    password = quote(PASSWORD, safe="") if encoded else PASSWORD
    command = world.command.having(
        DATABASE_URL=url.format(role=ROLE, password=password, port=world.server.port),
        BB_OPS_REPOSITORY=f"file://{world.room}/never",
    )
    for words in (("-v", "backup", "full"), ("doctor", "--json")):
        answer = command.run(*words)
        assert answer.returncode in {2, 4}
        assert world.found_in(answer.stdout, answer.stderr) == set(), (words, answer.stdout, answer.stderr)
        for piece in ("Kanari", "W0rt", "7731"):
            assert piece not in answer.stdout + answer.stderr, (words, answer.stdout, answer.stderr)


def test_key_files_are_private_and_only_public_facts_are_printed(world: World, room: Path) -> None:
    answer = world.command.ok("keys", "init", room / "fresh", "--json")
    secrets = _key_material(room / "fresh")
    assert not any(secret in answer.stdout + answer.stderr for secret in secrets)
    assert (room / "fresh").stat().st_mode & 0o777 == 0o700
    for path in (room / "fresh").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    checked = world.command.ok("keys", "check", room / "fresh")
    assert not any(secret in checked.stdout + checked.stderr for secret in secrets)


def _forms(password: str) -> tuple[str, ...]:
    return (
        password,
        quote(password, safe=""),
        repr(password)[1:-1],
        password.encode("ascii", "backslashreplace").decode(),
    )


def _key_material(folder: Path) -> tuple[str, ...]:
    """Return the lines of the secret key files that must never show."""
    found = []
    for name in ("working.agekey", "offline.agekey", "signing.key"):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        found += [line for line in lines if line and not line.startswith(("#", "-----"))]
    return tuple(found)


def _look(pid: int, seen: Seen) -> None:
    ours = command_line(pid)
    for process in (pid, *descendants(pid)):
        arguments = command_line(process)
        if arguments and (process == pid or arguments != ours):  # a child that has not become its program yet is us
            seen.arguments[process] = arguments
            seen.environments[process] = environment_of(process)
