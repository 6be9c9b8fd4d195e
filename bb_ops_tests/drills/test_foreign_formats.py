"""What PostgreSQL's own programs made comes back, whatever its name; what is damaged or hostile changes nothing."""

import gzip
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from bb_ops.errors import BbOpsError
from bb_ops.recovery.extract import CONTROL_FILE
from bb_ops.recovery.foreign.place import Place
from bb_ops.recovery.foreign.recover import recover_foreign
from bb_ops.recovery.full import RecoverOptions
from bb_ops.recovery.target import MARKER
from bb_ops.storage.local import LocalStore
from bb_ops_tests.support.commands import BbOps, bb_ops
from bb_ops_tests.support.postgres import (
    SUPERUSER,
    Build,
    Cluster,
    connection_to,
    free_port,
    running_cluster,
    stop_server_in,
)
from bb_ops_tests.support.rooms import hand_over
from bb_ops_tests.support.s3 import running_s3

ODD = 'shop "1"'
LARGE_OBJECT = bytes(range(256)) * 40
FUNCTION = """
CREATE FUNCTION odd(v text) RETURNS text LANGUAGE plpgsql AS $body$
-- \\! touch {canary}
BEGIN RETURN '\\! ' || v || $x$ $body1$ ; \\copy t from program 'x' $x$; END $body$
"""
STATE = """
SELECT (SELECT count(*)::int FROM t), (SELECT md5(string_agg(t::text, '|' ORDER BY id)) FROM t),
       (SELECT tableowner::text FROM pg_tables WHERE tablename = 't'), (SELECT odd('x')),
       (SELECT count(*)::int FROM child), (SELECT md5(lo_get(4711))),
       (SELECT relacl::text FROM pg_class WHERE relname = 't'),
       (SELECT spcname::text FROM pg_class c JOIN pg_tablespace s ON s.oid = c.reltablespace WHERE relname = 'far')
"""
State = tuple[object, ...]


@dataclass(frozen=True)
class Made:
    """A server, what its programs made of it, and what it held."""

    source: Cluster
    command: BbOps
    folder: Path
    state: State
    canary: Path


def state_of(socket_directory: Path, port: int, dbname: str) -> State:
    with connection_to(socket_directory, port, dbname) as connection:
        row = connection.execute(STATE).fetchone()
        assert row is not None
        return row


def furnish(source: Cluster, canary: Path) -> None:
    (source.spaces / "far").mkdir()
    hand_over(source.spaces)
    source.execute("CREATE ROLE app LOGIN;;CREATE ROLE \"Odd 'role'\"")
    source.execute(f"CREATE TABLESPACE far LOCATION '{source.spaces}/far'")
    quoted = ODD.replace('"', '""')
    source.execute(f'CREATE DATABASE "{quoted}" OWNER app')
    statements = [
        "CREATE TABLE t (id int PRIMARY KEY, m text, b bytea)",
        r"""INSERT INTO t SELECT g, E'\\.\n' || E'a\\b;''"$$' || g, decode(md5(g::text), 'hex')
            FROM generate_series(1, 300) g""",
        "CREATE TABLE child (id int REFERENCES t, n int CHECK (n > 0))",
        "INSERT INTO child SELECT id, id FROM t",
        "CREATE TABLE far (v int) TABLESPACE far",
        "ALTER TABLE t OWNER TO app",
        """GRANT SELECT ON t TO "Odd 'role'" """,
        "COMMENT ON TABLE t IS E'\\\\! touch x\n\\\\! touch y'",
        FUNCTION.format(canary=canary),
    ]
    with source.connect(ODD) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("SELECT lo_from_bytea(4711, %s)", (LARGE_OBJECT,))


def dump(source: Cluster, program: str, *arguments: str) -> bytes:
    answer = subprocess.run(
        [source.build.program(program), "-h", source.directory, "-p", str(source.port), "-U", SUPERUSER, *arguments],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return answer.stdout


@pytest.fixture(scope="module")
def made(wheel_18: Build, module_room: Path) -> Iterator[Made]:
    """Dump and back up one small server in every format, under names that say something else."""
    canary, folder = module_room / "canary", module_room / "made"
    folder.mkdir()
    with running_cluster(wheel_18, module_room / "cluster") as source:
        furnish(source, canary)
        custom = dump(source, "pg_dump", "-Fc", ODD)
        plain = dump(source, "pg_dump", ODD)
        (folder / "custom.sql.gz").write_bytes(gzip.compress(custom))
        (folder / "plain.dump").write_bytes(plain)
        (folder / "clean.custom").write_bytes(zstandard.compress(dump(source, "pg_dump", "--clean", ODD)))
        (folder / "tar.sql").write_bytes(gzip.compress(dump(source, "pg_dump", "-Ft", ODD)))
        (folder / "all.tar").write_bytes(dump(source, "pg_dumpall"))
        dump(source, "pg_dump", "-Fd", "-f", str(folder / "directory.gz"), ODD)
        dump(source, "pg_basebackup", "-c", "fast", "-Ft", "-z", "-R", "-D", str(folder / "base"))
        (folder / "base" / "base.tar.gz").rename(folder / "base" / "base.bin")
        command = bb_ops(module_room, wheel_18, source.url)
        yield Made(source, command, folder, state_of(source.directory, source.port, ODD), canary)


def recovered(made: Made, source: str | Path, target: Path, dbname: str, *options: str) -> State:
    """Restore into a running server and say what it holds."""
    port = free_port()
    answer = made.command.ok(
        *("recover", "full", source, "--into", target, "--start", "--port", str(port), "--json", *options)
    ).document
    try:
        assert (answer["outcome"], answer["proof"], answer["port"]) == ("pass", "L4", port)
        assert (answer["backup_id"], answer["recovered_to_at"]) == (None, None)
        assert {step["outcome"] for step in answer["steps"] if step["level"] == "L1"} == {"not_applicable"}
        return state_of(target, port, dbname)
    finally:
        stop_server_in(target)


@pytest.mark.parametrize(
    ("name", "dbname", "options"),
    [
        ("custom.sql.gz", ODD, ()),
        ("plain.dump", "postgres", ()),
        ("clean.custom", "elsewhere", ("--database", "elsewhere")),
        ("directory.gz", ODD, ()),
        ("all.tar", ODD, ()),
    ],
)
def test_a_dump_of_any_format_comes_back_under_any_name(
    made: Made, room: Path, name: str, dbname: str, options: tuple[str, ...]
) -> None:
    assert recovered(made, made.folder / name, room / "back", dbname, *options) == made.state
    assert not made.canary.exists()


def test_a_base_backup_with_its_tablespace_comes_back_as_a_primary(made: Made, room: Path) -> None:
    assert recovered(made, made.folder / "base", room / "back", ODD) == made.state
    assert list((room / "back.tablespaces").iterdir())
    assert not (room / "back" / "standby.signal").exists()


def test_a_foreign_dump_is_proven_as_far_as_can_be_and_nothing_is_recorded(made: Made) -> None:
    before = sorted(made.folder.rglob("*"))
    proof = made.command.ok("validate", made.folder / "tar.sql", "--json").document
    steps = {step["level"]: step["outcome"] for step in proof["steps"]}
    assert (proof["level"], proof["outcome"]) == ("L5", "pass")
    assert steps == {
        **dict.fromkeys(("L0", "L2", "L4", "L5"), "pass"),
        **dict.fromkeys(("L1", "L3", "L6"), "not_applicable"),
    }
    assert sorted(made.folder.rglob("*")) == before


def test_a_base_backup_that_differs_from_its_manifest_cannot_be_started(made: Made, room: Path) -> None:
    shutil.copytree(made.folder / "base", room / "base")
    archive = bytearray(base_tar(made))
    archive[len(archive) // 2] ^= 0xFF
    (room / "base" / "base.bin").write_bytes(zstandard.compress(archive))
    answer = made.command.run("recover", "full", room / "base", "--into", room / "back", "--start").expect(5)
    assert "differ from its backup_manifest" in answer.stderr
    assert not (room / "back" / CONTROL_FILE).exists()


def base_tar(made: Made) -> bytes:
    return gzip.decompress((made.folder / "base" / "base.bin").read_bytes())


def with_member(archive: bytes, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    end = io.BytesIO()
    with tarfile.open(fileobj=end, mode="w", format=tarfile.USTAR_FORMAT) as out:
        out.addfile(info)
    return archive.rstrip(b"\0") + bytes(-len(archive.rstrip(b"\0")) % 512) + end.getvalue()


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "up": lambda archive: with_member(archive, "../x"),
    "absolute": lambda archive: with_member(archive, "/tmp/bb_ops-x"),
    "link out": lambda archive: with_member(archive, "pg_tblspc/99999", tarfile.SYMTYPE, "/etc"),
    "hard link out": lambda archive: with_member(archive, "x", tarfile.LNKTYPE, "/etc/passwd"),
    "device": lambda archive: with_member(archive, "x", tarfile.CHRTYPE),
    "twice": lambda archive: with_member(archive, "PG_VERSION"),
    "cut short": lambda archive: archive[: len(archive) // 2],
}


def test_a_hostile_or_cut_tar_changes_nothing(made: Made, room: Path) -> None:
    archive, target = base_tar(made), room / "back"
    for name, spoil in HOSTILE.items():
        (room / "spoilt").write_bytes(spoil(archive))
        before = sorted(room.rglob("*"))
        assert f"{room}/spoilt" in str(refused(made, room / "spoilt", target, 5)), name
        assert sorted(room.rglob("*")) == before, name


def refused(made: Made, source: Path, target: Path, exit_code: int) -> BbOpsError:
    """Offer something to a restore that must refuse it."""
    place = Place(LocalStore(source.parent), source.name, source.parent)
    options = RecoverOptions(
        into=target, start=False, port=5433, pg_bindirs=(made.source.build.bindir,), server_user=None
    )
    with pytest.raises(BbOpsError) as caught:
        recover_foreign(place, options, None, lambda *_: None)
    assert caught.value.exit_code == exit_code, str(caught.value)
    return caught.value


def spoilt_dumps(made: Made) -> dict[str, tuple[bytes, int, str]]:
    plain = (made.folder / "plain.dump").read_bytes()
    zipped = (made.folder / "custom.sql.gz").read_bytes()
    custom = gzip.decompress(zipped)
    rows = plain.index(b"COPY public.t ")

    def put(words: bytes) -> bytes:
        return plain[:rows] + words + plain[rows:]

    middle = len(custom) // 2
    return {
        "no last line": (plain[: plain.rindex(b"-- PostgreSQL database dump complete")], 5, "cut short"),
        "cut in the rows": (plain[: rows + 400], 5, "cut short"),
        "gzip cut": (zipped[:-20], 5, "cut short"),
        "gzip changed": (zipped[:-8] + bytes(4) + zipped[-4:], 5, "damaged"),
        "custom cut": (custom[:middle], 5, "cannot be read"),
        "a program": (put(b"\\! touch %s\n" % bytes(made.canary)), 5, "psql's command"),
        "a program at the end": (put(b"SELECT 1 \\g |touch %s\n" % bytes(made.canary)), 5, "psql's command"),
        "another server": (put(b'\\connect "host=production"\n'), 5, "psql's command"),
        "rows of a program": (put(b"COPY t FROM /* */ PROGRAM 'x';\n"), 5, "runs a program"),
        "a newer one": (plain.replace(b"Dumped by pg_dump version 18", b"Dumped by pg_dump version 98"), 2, "98"),
        "an image": (b"\x89PNG\r\n\x1a\n" + bytes(600), 2, "starts with 89 50 4e 47"),
        "age": (b"age-encryption.org/v1\n-> X25519 x\n", 2, "encrypted by age"),
        "nothing": (b"", 5, "is empty"),
    }


def test_a_damaged_or_hostile_dump_changes_nothing(made: Made, room: Path) -> None:
    for name, (content, code, words) in spoilt_dumps(made).items():
        (room / "spoilt").write_bytes(content)
        assert words in str(refused(made, room / "spoilt", room / "back", code)), name
        assert sorted(room.iterdir()) == [room / "spoilt"], name
        assert not made.canary.exists(), name


def test_an_error_while_loading_leaves_nothing_that_starts(made: Made, room: Path) -> None:
    plain = (made.folder / "plain.dump").read_bytes()
    (room / "wrong").write_bytes(plain.replace(b"COPY public.t ", b"SELECT 1 / 0;\nCOPY public.t ", 1))
    answer = made.command.run("recover", "full", room / "wrong", "--into", room / "back").expect(1)
    assert "division by zero" in answer.complaint
    assert not (room / "back" / "postgresql.conf").exists()
    assert (room / "back" / MARKER).exists()


def test_a_target_in_use_is_refused_before_anything_is_read(made: Made, room: Path) -> None:
    (room / "full").mkdir()
    (room / "full" / "theirs").touch()
    answer = made.command.run("recover", "full", made.folder / "plain.dump", "--into", room / "full").expect(2)
    assert "is not empty" in answer.complaint
    answer = made.command.run("recover", "full", made.folder / "plain.dump", "--into", made.source.data).expect(2)
    assert "server is running" in answer.complaint


def test_our_own_backup_is_known_by_its_path_and_recorded_only_where_it_belongs(made: Made, room: Path) -> None:
    command, repository = made.command, made.folder.parent / "repository"
    backup = command.ok("backup", "full", "--json").document["id"]
    shutil.copytree(repository, room / "copy")
    place = next((room / "copy").glob(f"*/*/base/{backup}"))
    for source in (f"{place}/", f"{place}/COMMIT.json", room / "copy", f"file://{repository}/"):
        plan = command.ok("recover", "full", source, "--into", room / "back", "--dry-run", "--json").document
        assert plan["backup_id"] == backup
    done = command.ok("recover", "full", place, "--into", room / "back", "--json").document
    assert (done["backup_id"], done["proof"]) == (backup, "L3")
    command.ok("validate", room / "copy", "--level", "L1")
    assert not list((room / "copy").glob("*/*/evidence/*/*"))
    command.ok("validate", repository, "--level", "L1")
    assert len(list(repository.glob("*/*/evidence/*/*"))) == 1


def test_a_bucket_brings_the_same(made: Made, room: Path) -> None:
    with running_s3(room) as server:
        bucket = server.make_bucket()
        for path in sorted(made.folder.rglob("*")):
            if path.is_file():
                server.client.put_object(
                    Bucket=bucket, Key=f"some/{path.relative_to(made.folder)}", Body=path.read_bytes()
                )
        command = made.command.having(
            BB_OPS_S3_ENDPOINT_URL=server.endpoint_url,
            BB_OPS_S3_ACCESS_KEY_ID=server.access_key_id,
            BB_OPS_S3_SECRET_ACCESS_KEY=server.secret_access_key,
        )
        reading = Made(made.source, command, made.folder, made.state, made.canary)
        url = f"s3://{bucket}/some"
        assert recovered(reading, f"{url}/directory.gz", room / "one", ODD) == made.state
        for name in ("custom.sql.gz", "base/"):
            plan = command.ok("recover", "full", f"{url}/{name}", "--into", room / "x", "--dry-run", "--json").document
            assert plan["source"] == f"{url}/{name}".rstrip("/")
        assert "there is nothing" in command.run("validate", f"{url}/absent").expect(2).complaint
