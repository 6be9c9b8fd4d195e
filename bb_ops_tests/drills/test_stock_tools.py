"""A backup opens with stock tools alone: age, zstd, tar and PostgreSQL's own. Nothing of bb_ops is imported here.

bb_ops only takes the backup, as a program. The steps are those of docs/repository-format.md.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bb_ops_tests.support import foreign
from bb_ops_tests.support.commands import bb_ops
from bb_ops_tests.support.postgres import Build, Cluster, connection_to, free_port, running_cluster
from bb_ops_tests.support.programs import system_program
from bb_ops_tests.support.rooms import hand_over

pytestmark = pytest.mark.requires("age", "zstd", "tar")


@dataclass(frozen=True)
class Taken:
    """A backup, and what it must show."""

    source: Cluster
    objects: Path
    keys: Path
    rows: foreign.Rows
    dump: str
    tablespace_oid: int


@pytest.fixture(scope="module")
def taken(build: Build, module_room: Path) -> Iterator[Taken]:
    """Take a backup in many parts."""
    room = module_room / build.name
    room.mkdir()
    with running_cluster(build, room / "cluster") as source:
        oid = foreign.furnish(source)
        command = bb_ops(room, build, source.url).having(BB_OPS_PART_SIZE_MIB="4")
        rows = foreign.read_rows(source.connect)
        dump = foreign.dump_digest(source, source.directory, source.port)
        command.ok("backup", "full")
        (commit,) = (room / "repository").glob("main/*/base/*/COMMIT.json")
        yield Taken(source, commit.parent, room / "keys", rows, dump, oid)


@pytest.mark.parametrize("key", ["working.agekey", "offline.agekey"])
def test_stock_tools_restore_everything_with_either_key(taken: Taken, key: str, room: Path) -> None:
    data, spaces = room / "data", room / "spaces"
    data.mkdir(mode=0o700)
    spaces.mkdir()
    identity = room / "key"
    identity.write_bytes((taken.keys / key).read_bytes())
    assert len(list(taken.objects.glob("base.*"))) > 4, "the backup must be in many parts for this to mean something"
    for part in sorted([*taken.objects.glob("base.*.tar.zst.age"), *taken.objects.glob("wal.*.tar.zst.age")]):
        _open(identity, part, data)
    commit = json.loads((taken.objects / "COMMIT.json").read_bytes())["body"]
    oids = [space["oid"] for space in commit["tablespaces"]]
    assert oids == [taken.tablespace_oid]
    for oid in oids:
        (spaces / str(oid)).mkdir(mode=0o700)
        parts = sorted(taken.objects.glob(f"{oid}.*.tar.zst.age"))
        assert parts
        for part in parts:
            _open(identity, part, spaces / str(oid))
        (data / "pg_tblspc" / str(oid)).symlink_to(spaces / str(oid))
    manifest = taken.objects / "backup_manifest.zst.age"
    (data / "backup_manifest").write_bytes(_shell('age -d -i "$1" "$2" | zstd -q -d', identity, manifest))
    hand_over(room)
    taken.source.run("pg_verifybackup", "-q", str(data))
    (data / "tablespace_map").write_text(f"{taken.tablespace_oid} {spaces}/{taken.tablespace_oid}\n", encoding="utf-8")
    port = free_port()
    with _started(taken.source, data, port):
        rows = foreign.read_rows(lambda dbname: connection_to(room, port, dbname))
        large_object = foreign.read_large_object(lambda dbname: connection_to(room, port, dbname))
        dump = foreign.dump_digest(taken.source, room, port)
    assert rows == taken.rows
    assert large_object == foreign.LARGE_OBJECT
    assert dump == taken.dump


def test_the_signed_hashes_are_plain_sha256_of_the_stored_objects(taken: Taken) -> None:
    body = json.loads((taken.objects / "COMMIT.json").read_bytes())["body"]
    lines = "".join(f"{entry['sha256']}  {entry['name']}\n" for entry in body["objects"])
    answer = subprocess.run(
        ["/usr/bin/sha256sum", "--check", "--strict", "--quiet", "-"],
        input=lines.encode(),
        capture_output=True,
        cwd=taken.objects,
        check=False,
    )
    assert (answer.returncode, answer.stderr) == (0, b"")
    stored = {path.name for path in taken.objects.iterdir()}
    assert stored == {entry["name"] for entry in body["objects"]} | {"COMMIT.json", "RECOVERY.md"}


def test_no_object_opens_with_a_key_that_is_no_recipient(taken: Taken, room: Path) -> None:
    stranger = room / "stranger"
    keygen = system_program("age").with_name("age-keygen")
    subprocess.run([keygen, "-o", stranger], check=True, capture_output=True)
    for part in taken.objects.glob("*.age"):
        answer = subprocess.run(
            [system_program("age"), "-d", "-i", stranger, part], capture_output=True, check=False, timeout=60
        )
        assert answer.returncode != 0
        assert answer.stdout == b""
        assert b"no identity matched" in answer.stderr


def _open(identity: Path, part: Path, into: Path) -> None:
    _shell('age -d -i "$1" "$2" | zstd -q -d | tar x -C "$3"', identity, part, into)


def _shell(script: str, *arguments: Path) -> bytes:
    answer = subprocess.run(
        ["/bin/bash", "-c", f"set -euo pipefail; {script}", "bash", *arguments],
        capture_output=True,
        check=False,
        timeout=120,
        env={"PATH": str(system_program("age").parent) + ":/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    assert (answer.returncode, answer.stderr) == (0, b""), (script, arguments)
    return answer.stdout


@contextmanager
def _started(source: Cluster, data: Path, port: int) -> Iterator[None]:
    options = f"-c archive_mode=off -c listen_addresses= -c port={port} -c unix_socket_directories={data.parent}"
    source.run("pg_ctl", "-D", str(data), "-w", "-l", f"{data.parent}/log", "-o", options, "start")
    try:
        yield
    finally:
        source.run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
