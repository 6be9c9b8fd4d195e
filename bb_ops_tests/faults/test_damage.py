"""One wrong byte anywhere in a backup is found, and the object that holds it is named; a forged backup is refused."""

import base64
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bb_ops_tests.support.commands import Answer, BbOps, backups_of, bb_ops, objects_below
from bb_ops_tests.support.postgres import Build, Cluster, free_port, running_cluster
from bb_ops_tests.support.rooms import hand_over

INTEGRITY = 5
REFUSED = 12


@dataclass(frozen=True)
class Stored:
    """A backup in two regions. Tests damage its objects and put them right again."""

    command: BbOps
    room: Path
    repository: Path
    replica: Path
    id: str
    commit: dict[str, Any]

    def in_replica(self, path: Path) -> Path:
        """Return the copy of an object."""
        return self.replica / path.relative_to(self.repository)

    @property
    def objects(self) -> list[Path]:
        """Every object of the backup."""
        return [path for path in objects_below(self.repository) if path.parent.name == self.id]

    def object(self, name: str) -> Path:
        """Return the first object whose name begins with ``name``."""
        return next(path for path in self.objects if path.name.startswith(name))

    def validate(self, *options: str) -> Answer:
        """Test the bytes of the backup."""
        return self.command.run("validate", self.id, *(options or ("--integrity-only",)))


@pytest.fixture(scope="module")
def stored(wheel_18: Build, module_room: Path) -> Iterator[Stored]:
    """Take one backup in several parts, with a tablespace, and copy it."""
    with running_cluster(wheel_18, module_room / "cluster") as source:
        _fill(source)
        command = bb_ops(module_room, wheel_18, source.url).having(BB_OPS_PART_SIZE_MIB="8")
        document: dict[str, Any] = {}
        for _ in range(10):  # where nobody wrote behind the server's part, a backup needs no WAL of ours: take another
            shutil.rmtree(module_room / "repository", ignore_errors=True)
            with _now_and_then_a_row(source):
                document = command.ok("backup", "full", "--json").document
            if list((module_room / "repository").glob("main/*/base/*/wal.*")):
                break
        command.ok("sync", "incremental")
        repository, replica = module_room / "repository", module_room / "replica"
        (path,) = repository.glob("main/*/base/*/COMMIT.json")
        commit = json.loads(path.read_bytes())
        yield Stored(command, module_room, repository, replica, document["id"], commit)


def test_a_flipped_byte_in_any_object_fails_the_integrity_check_and_names_it(stored: Stored) -> None:
    kinds = {path.name.split(".")[0] for path in stored.objects}
    tablespaces = {str(space["oid"]) for space in stored.commit["body"]["tablespaces"]}
    assert len(tablespaces) == 1
    assert kinds == {"COMMIT", "backup_manifest", "base", "fingerprints", "wal"} | tablespaces
    assert sum(path.name.startswith("base.") for path in stored.objects) > 3
    for path in stored.objects:
        with _flipped(path, random.randrange(path.stat().st_size)) as where:
            _expect_damage(stored.validate(), path, where)
    stored.validate().expect(0)


@pytest.mark.parametrize("kind", ["base.0001", "fingerprints", "backup_manifest", "COMMIT"])
def test_the_first_the_last_and_every_other_byte_count(stored: Stored, kind: str) -> None:
    path = stored.object(kind)
    size_bytes = path.stat().st_size
    for offset in (0, size_bytes - 1, *random.sample(range(1, size_bytes - 1), 2)):
        with _flipped(path, offset) as where:
            _expect_damage(stored.validate(), path, where)


@pytest.mark.parametrize("kind", ["base", "wal", "fingerprints", "backup_manifest", "COMMIT"])
def test_the_whole_restore_test_finds_a_flipped_byte_too(stored: Stored, kind: str) -> None:
    path = stored.object(kind)
    with _flipped(path, random.randrange(path.stat().st_size)) as where:
        _expect_damage(stored.validate("--level", "L6"), path, where)
    assert list((stored.room / "tmp").iterdir()) == []


def test_a_missing_a_cut_and_an_emptied_part_are_named(stored: Stored) -> None:
    part = stored.object("base.0002")
    content = part.read_bytes()
    for damaged in (None, content[:-1], content[: len(content) // 2], b"", content + b"\0"):
        with _replaced(part, damaged):
            for options in (("--integrity-only",), ("--level", "L6")):
                _expect_damage(stored.validate(*options), part, "cut or missing")
            assert str(part.relative_to(stored.repository)) in stored.command.run("backup", "list").expect(5).stdout


def test_exchanged_parts_are_named(stored: Stored) -> None:
    first, second = stored.object("base.0000"), stored.object("base.0001")
    ours, theirs = first.read_bytes(), second.read_bytes()
    with _replaced(first, theirs), _replaced(second, ours):
        answer = stored.validate().expect(INTEGRITY)
        assert first.name in answer.complaint or second.name in answer.complaint


def test_a_damaged_backup_is_not_restored(stored: Stored, room: Path) -> None:
    part = stored.object("base.0001")
    target = room / "back"
    with _flipped(part, part.stat().st_size // 2):
        answer = stored.command.run(
            "recover", "full", "latest", "--into", target, "--start", "--port", str(free_port())
        ).expect(INTEGRITY)
        assert part.name in answer.complaint
    assert not (target / "global" / "pg_control").exists()
    recovered = stored.command.ok("recover", "full", "latest", "--region", "replica", "--into", target, "--json")
    assert recovered.document["proof"] == "L3"


def test_a_flipped_byte_in_the_replica_is_found_there_and_only_there(stored: Stored) -> None:
    for kind in ("base.0001", "COMMIT", "fingerprints"):
        path = stored.in_replica(stored.object(kind))
        with _flipped(path, random.randrange(path.stat().st_size)) as where:
            answer = stored.command.run("sync", "full").expect(INTEGRITY)
            assert f"{path.parent.name}/{path.name}" in answer.stderr, (where, answer.stderr)
            _expect_damage(stored.validate("--integrity-only", "--region", "replica"), path, where)
            stored.validate().expect(0)
    stored.command.ok("sync", "full")


def test_a_damaged_source_is_not_copied(stored: Stored, room: Path) -> None:
    elsewhere = stored.command.having(BB_OPS_REPLICA=f"file://{room}/other")
    part = stored.object("base.0002")
    with _flipped(part, 17):
        answer = elsewhere.run("sync", "incremental").expect(INTEGRITY)
        assert part.name in answer.stderr
    assert not list((room / "other").rglob("COMMIT.json"))
    elsewhere.ok("sync", "incremental")


def test_the_newest_backup_is_not_passed_over_when_its_commit_is_damaged(stored: Stored, room: Path) -> None:
    command = _moved(stored, room)
    newer = command.ok("backup", "full", "--json").document["id"]
    (path,) = (room / "repository").glob(f"main/*/base/{newer}/COMMIT.json")
    with _flipped(path, 100):
        for words in (
            ("validate", "latest", "--integrity-only"),
            ("recover", "full", "latest", "--into", room / "back"),
        ):
            answer = command.run(*words).expect(INTEGRITY)
            assert newer in answer.complaint
        command.ok("validate", stored.id, "--integrity-only")


def test_a_damaged_proof_is_named(stored: Stored, room: Path) -> None:
    command = _moved(stored, room)
    command.ok("validate", "latest", "--integrity-only")
    proof = max((room / "repository").glob("main/*/evidence/*/*.json"))
    with _flipped(proof, random.randrange(proof.stat().st_size)):
        answer = command.run("backup", "list", "--json").expect(5)
        assert any(proof.name in line for line in answer.document["damaged"])


def test_a_commit_under_another_backups_name_is_refused(stored: Stored, room: Path) -> None:
    command = _moved(stored, room)
    (commit,) = (room / "repository").glob(f"main/*/base/{stored.id}/COMMIT.json")
    other = stored.id[:-1] + ("0" if stored.id[-1] != "0" else "1")
    shutil.copytree(commit.parent, commit.parent.with_name(other))
    answer = command.run("validate", other, "--integrity-only").expect(INTEGRITY)
    assert other in answer.complaint


def test_a_backup_without_its_commit_does_not_exist(stored: Stored, room: Path) -> None:
    command = _moved(stored, room)
    (commit,) = (room / "repository").glob("main/*/base/*/COMMIT.json")
    commit.unlink()
    assert backups_of(command.having(BB_OPS_REPLICA=None)) == []
    assert stored.id in command.run("validate", stored.id).expect(10).complaint


def test_the_wrong_identity_opens_nothing(stored: Stored, room: Path) -> None:
    stored.command.ok("keys", "init", room / "others")
    stranger = stored.command.having(BB_OPS_AGE_IDENTITY_FILE=room / "others" / "working.agekey")
    for words in (
        ("validate", "latest", "--integrity-only"),
        ("validate", "latest"),
        ("recover", "full", "latest", "--into", room / "back"),
    ):
        answer = stranger.run(*words).expect(REFUSED)
        assert "BB_OPS_AGE_IDENTITY_FILE" in answer.stderr.splitlines()[-1]
    assert not (room / "back" / "global" / "pg_control").exists()
    stranger.ok("backup", "list")  # signatures need no identity


def test_the_offline_identity_opens_everything(stored: Stored) -> None:
    offline = stored.command.having(BB_OPS_AGE_IDENTITY_FILE=stored.room / "keys" / "offline.agekey")
    assert offline.ok("validate", "latest", "--json").document["level"] == "L6"


def test_a_commit_that_another_key_signed_is_refused(stored: Stored, room: Path) -> None:
    command = _moved(stored, room)
    path = _commit_in(room)
    path.write_bytes(_signed(stored.commit["body"], Ed25519PrivateKey.generate()))
    _expect_refused(command, stored.id, room)


def test_a_commit_with_our_key_id_and_a_garbled_signature_is_refused(stored: Stored, room: Path) -> None:
    command = _moved(stored, room)
    body = {**stored.commit["body"], "slot": "2020-01-01"}
    document = {
        "body": body,
        "key_id": stored.commit["key_id"],
        "signature": base64.b64encode(random.randbytes(64)).decode(),
    }
    _commit_in(room).write_bytes(_with_hash(document))
    _expect_refused(command, stored.id, room)


@pytest.mark.parametrize("signature", ["", "=", "AAAA", "nicht base64 ä", "A" * 88])
def test_a_commit_with_a_malformed_signature_is_refused(stored: Stored, room: Path, signature: str) -> None:
    command = _moved(stored, room)
    document = {"body": stored.commit["body"], "key_id": stored.commit["key_id"], "signature": signature}
    _commit_in(room).write_bytes(_with_hash(document))
    command.run("validate", stored.id, "--integrity-only").expect(REFUSED)


def test_an_altered_commit_with_its_old_signature_is_refused(stored: Stored, room: Path) -> None:
    command = _moved(stored, room)
    objects = [dict(entry) for entry in stored.commit["body"]["objects"]]
    objects[0]["sha256"] = "0" * 64
    document = {
        "body": {**stored.commit["body"], "objects": objects},
        "key_id": stored.commit["key_id"],
        "signature": stored.commit["signature"],
    }
    _commit_in(room).write_bytes(_with_hash(document))
    _expect_refused(command, stored.id, room)


def test_our_own_signature_made_by_hand_is_accepted(stored: Stored, room: Path) -> None:
    """The counterpart of the forgeries: what these tests write differs from a right commit in the key alone."""
    command = _moved(stored, room)
    key = serialization.load_pem_private_key((stored.room / "keys" / "signing.key").read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    assert _signed(stored.commit["body"], key) == _commit_in(room).read_bytes()
    _commit_in(room).write_bytes(_signed({**stored.commit["body"], "slot": "2020-01-01"}, key))
    assert backups_of(command.having(BB_OPS_REPLICA=None))[0]["slot"] == "2020-01-01"


def _fill(source: Cluster) -> None:
    location = source.spaces / "beside"
    location.mkdir()
    hand_over(location)
    source.execute(f"CREATE TABLESPACE beside LOCATION '{location}'")
    source.execute("CREATE TABLE a TABLESPACE beside AS SELECT g, md5(g::text) FROM generate_series(1, 5000) g")


@contextmanager
def _now_and_then_a_row(source: Cluster) -> Iterator[None]:
    """Write during a block, seldom enough that quiet moments exist: then a backup has WAL behind the server's part."""
    ended = Event()

    def write() -> None:
        with source.connect() as connection:
            while not ended.wait(0.05):
                connection.execute("INSERT INTO a VALUES (-1, clock_timestamp()::text)")

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            yield
        finally:
            ended.set()
        writing.result()


def _moved(stored: Stored, room: Path) -> BbOps:
    """Return the command with a copy of the repository that may be spoilt."""
    shutil.copytree(stored.repository, room / "repository")
    return stored.command.having(BB_OPS_REPOSITORY=f"file://{room}/repository", BB_OPS_REPLICA=f"file://{room}/replica")


def _commit_in(room: Path) -> Path:
    (path,) = (room / "repository").glob("main/*/base/*/COMMIT.json")
    return path


def _expect_damage(answer: Answer, path: Path, where: object) -> None:
    assert answer.returncode == INTEGRITY, (path.name, where, answer.stdout, answer.stderr)
    assert f"{path.parent.name}/{path.name}" in answer.complaint, (path.name, where, answer.stderr)


def _expect_refused(command: BbOps, backup_id: str, room: Path) -> None:
    for words in (
        ("validate", backup_id, "--integrity-only"),
        ("validate", "latest"),
        ("recover", "full", "latest", "--into", room / "back"),
        ("backup", "show", backup_id),
    ):
        answer = command.run(*words).expect(REFUSED)
        assert f"{backup_id}/COMMIT.json" in answer.complaint
    assert not (room / "back").exists()
    assert f"{backup_id}/COMMIT.json" in command.run("sync", "incremental").expect(REFUSED).stderr
    assert not list((room / "replica").rglob("*.age"))
    listing = command.run("backup", "list", "--json")
    assert listing.returncode in {INTEGRITY, REFUSED}
    assert listing.document["backups"] == []


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _with_hash(document: dict[str, Any]) -> bytes:
    return _canonical({**document, "sha256": hashlib.sha256(_canonical(document)).hexdigest()}) + b"\n"


def _signed(body: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return _with_hash(
        {
            "body": body,
            "key_id": hashlib.sha256(raw).hexdigest()[:16],
            "signature": base64.b64encode(key.sign(_canonical(body))).decode(),
        }
    )


@contextmanager
def _flipped(path: Path, offset: int) -> Iterator[str]:
    """Flip one random bit of one byte during a block."""
    content = bytearray(path.read_bytes())
    bit = random.randrange(8)
    content[offset] ^= 1 << bit
    with _replaced(path, bytes(content)):
        yield f"bit {bit} of byte {offset} of {len(content)}"


@contextmanager
def _replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """Give an object other content during a block, or take it away."""
    before = path.read_bytes()
    try:
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)
