"""Sealed objects over a directory and over S3: what goes in comes out, and nothing that was touched does."""

import hashlib
import random
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyrage
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bb_ops.errors import AlreadyExists, IntegrityError, KeyRejected, StoreFailed, TargetRefused
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.local import LocalStore
from bb_ops.storage.sealed import (
    Expected,
    Seal,
    SealedObject,
    SealedWriter,
    open_sealed,
    seal_bytes,
    verify_stored,
)
from bb_ops_tests.support.proxy import FaultyProxy
from bb_ops_tests.support.s3 import S3Server
from bb_ops_tests.support.stores import CHECKOUT, MIB

WORKING, OFFLINE, STRANGER = (pyrage.x25519.Identity.generate() for _ in range(3))
ENCRYPTED = Seal((WORKING.to_public(), OFFLINE.to_public()), level=3, threads=2)
PLAIN = Seal((), level=3, threads=0)
SEALS = {"encrypted": ENCRYPTED, "plain": PLAIN}


class Opened:
    """Takes opened bytes, and remembers in what pieces they came."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.largest_piece = 0

    def write(self, data: bytes, /) -> int:
        self.data += data
        self.largest_piece = max(self.largest_piece, len(data))
        return len(data)


@pytest.fixture(params=SEALS)
def seal(request: pytest.FixtureRequest) -> Seal:
    return SEALS[request.param]


def expected(written: SealedObject) -> Expected:
    return Expected(written.key, written.size_bytes, written.raw_size_bytes, written.sha256)


def opened(store: ObjectStore, want: Expected, *identities: pyrage.x25519.Identity) -> bytes:
    sink = Opened()
    size_bytes = open_sealed(store, want, identities or (WORKING,), sink)
    assert size_bytes == len(sink.data)
    return bytes(sink.data)


def sealed_in_pieces(store: ObjectStore, key: str, data: bytes, seal: Seal, piece_bytes: int) -> SealedObject:
    writer = SealedWriter(store, key, seal)
    for start in range(0, len(data), piece_bytes):
        writer.write(data[start : start + piece_bytes])
    return writer.finish()


def mixture(size_bytes: int) -> bytes:
    """Half noise, half repetition: what a database looks like to a compressor."""
    noise = random.Random(size_bytes).randbytes(size_bytes // 2)
    return noise + bytes(size_bytes - len(noise))


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class TestRoundTrip:
    @pytest.mark.parametrize("size_bytes", [0, 1, 65_535, 65_536, 65_537, MIB, 5 * MIB + 3, 17 * MIB, 40 * MIB])
    def test_every_size_comes_back(self, store: ObjectStore, seal: Seal, size_bytes: int) -> None:
        data = mixture(size_bytes)
        written = sealed_in_pieces(store, f"object{seal.suffix}", data, seal, 3 * MIB)
        assert written.raw_size_bytes == size_bytes
        assert opened(store, expected(written)) == data

    def test_what_it_says_of_the_stored_bytes_is_true(self, store: ObjectStore, seal: Seal) -> None:
        written = seal_bytes(store, f"object{seal.suffix}", mixture(300_000), seal)
        stored = store.read(written.key) or b""
        assert written.size_bytes == len(stored)
        assert written.sha256 == hashlib.sha256(stored).hexdigest()

    @pytest.mark.parametrize("identity", [WORKING, OFFLINE], ids=["working", "offline"])
    def test_either_key_opens_it(self, store: ObjectStore, identity: pyrage.x25519.Identity) -> None:
        written = seal_bytes(store, "object.zst.age", b"bytes", ENCRYPTED)
        assert opened(store, expected(written), identity) == b"bytes"
        assert opened(store, expected(written), STRANGER, identity) == b"bytes"

    def test_nothing_of_the_content_can_be_read_without_a_key(self, store: ObjectStore) -> None:
        written = seal_bytes(store, "object.zst.age", b"a name that must not be seen" * 1000, ENCRYPTED)
        stored = store.read(written.key) or b""
        assert stored.startswith(b"age-encryption.org/v1\n")
        assert b"must not be seen" not in stored
        with pytest.raises(zstandard.ZstdError):
            zstandard.ZstdDecompressor().decompress(stored, max_output_size=MIB)

    def test_two_objects_of_equal_content_do_not_look_equal(self, store: ObjectStore) -> None:
        first, second = (seal_bytes(store, f"{name}.zst.age", b"same", ENCRYPTED) for name in "ab")
        assert first.sha256 != second.sha256

    def test_the_key_stays_free_for_one_object(self, store: ObjectStore, seal: Seal) -> None:
        first = seal_bytes(store, f"object{seal.suffix}", b"first", seal)
        with no_thread_left(), pytest.raises(AlreadyExists):
            seal_bytes(store, first.key, b"second", seal)
        assert opened(store, expected(first)) == b"first"

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        pieces=st.lists(st.binary(max_size=5_000) | st.integers(0, 200_000).map(bytes), max_size=8),
        recipients=st.sampled_from([(), ENCRYPTED.recipients]),
        level=st.integers(1, 6),
        threads=st.integers(0, 2),
    )
    def test_any_pieces_come_back_as_they_went(
        self,
        room: Path,
        pieces: list[bytes],
        recipients: tuple[pyrage.x25519.Recipient, ...],
        level: int,
        threads: int,
    ) -> None:
        store = LocalStore(room / secrets.token_hex(8))
        seal = Seal(recipients, level, threads)
        writer = SealedWriter(store, f"object{seal.suffix}", seal)
        for piece in pieces:
            writer.write(piece)
        assert opened(store, expected(writer.finish())) == b"".join(pieces)

    def test_stock_formats_are_used(self, store: ObjectStore) -> None:
        """age and zstd as their own libraries know them: no framing of ours in between."""
        data = mixture(300_000)
        written = seal_bytes(store, "object.zst.age", data, ENCRYPTED)
        compressed = pyrage.decrypt(store.read(written.key) or b"", [OFFLINE])
        assert zstandard.ZstdDecompressor().decompressobj().decompress(compressed) == data


def replaced(store: ObjectStore, key: str, data: bytes) -> None:
    store.delete(key)
    store.create(key, data)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "first byte flipped": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "byte in the header flipped": lambda data: data[:60] + bytes([data[60] ^ 0x80]) + data[61:],
    "byte in the middle flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    ),
    "last byte flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "last byte missing": lambda data: data[:-1],
    "half missing": lambda data: data[: len(data) // 2],
    "all but the first byte missing": lambda data: data[:1],
    "everything missing": lambda _: b"",
    "a byte behind": lambda data: data + b"\0",
    "itself behind itself": lambda data: data + data,
    "a chunk out of order": lambda data: data[:-70_000] + data[-35_000:] + data[-70_000:-35_000],
    "other bytes of the same length": lambda data: bytes(len(data)),
}


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_it_is_found_and_the_object_named(
        self, store: ObjectStore, seal: Seal, damage: Callable[[bytes], bytes]
    ) -> None:
        written = seal_bytes(store, f"main/1/part{seal.suffix}", mixture(400_000), seal)
        replaced(store, written.key, damage(store.read(written.key) or b""))
        for check in (
            lambda: opened(store, expected(written)),
            lambda: opened(store, expected(written), STRANGER),
            lambda: verify_stored(store, expected(written)),
        ):
            with pytest.raises(IntegrityError) as found:
                check()
            assert found.value.exit_code == 5
            assert f"{store.url}/{written.key}" in str(found.value)

    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(seal=st.sampled_from([ENCRYPTED, PLAIN]), position=st.floats(0, 1), bit=st.integers(0, 7))
    def test_one_bit_anywhere_is_enough(self, room: Path, seal: Seal, position: float, bit: int) -> None:
        store = LocalStore(room / secrets.token_hex(8))
        written = seal_bytes(store, f"part{seal.suffix}", b"some content " * 40, seal)
        stored = bytearray(store.read(written.key) or b"")
        stored[int(position * (len(stored) - 1))] ^= 1 << bit
        replaced(store, written.key, bytes(stored))
        with pytest.raises(IntegrityError, match="part"):
            opened(store, expected(written))

    def test_a_missing_object_is_named(self, store: ObjectStore, seal: Seal) -> None:
        written = seal_bytes(store, f"part{seal.suffix}", b"bytes", seal)
        store.delete(written.key)
        for check in (lambda: opened(store, expected(written)), lambda: verify_stored(store, expected(written))):
            with pytest.raises(IntegrityError, match=f"{written.key} is missing"):
                check()

    def test_another_object_encrypted_to_our_key_is_not_taken_for_ours(self, store: ObjectStore) -> None:
        """age says nothing about the author: whoever can write to the bucket can encrypt to a public key."""
        ours = seal_bytes(store, "part.zst.age", b"ours", ENCRYPTED)
        forged = seal_bytes(store, "forged.zst.age", b"forged", ENCRYPTED)
        replaced(store, ours.key, store.read(forged.key) or b"")
        with pytest.raises(IntegrityError, match=ours.key):
            opened(store, expected(ours))

    def test_an_object_that_opens_to_another_size_than_the_commit_says_is_refused(
        self, store: ObjectStore, seal: Seal
    ) -> None:
        written = seal_bytes(store, f"part{seal.suffix}", b"bytes", seal)
        with pytest.raises(IntegrityError, match=f"{written.key}.*opens to 5 bytes"):
            opened(store, replace(expected(written), raw_size_bytes=6))

    @pytest.mark.parametrize("content", [b"", b"no zstd at all", zstandard.compress(b"whole")[:-1]])
    def test_a_right_hash_of_what_is_no_sealed_object_is_refused(self, store: ObjectStore, content: bytes) -> None:
        store.create("part.zst", content)
        want = Expected("part.zst", len(content), 5, hashlib.sha256(content).hexdigest())
        with pytest.raises(IntegrityError, match=want.key):
            opened(store, want)

    def test_whole_objects_pass_and_are_passed_on(self, store: ObjectStore, seal: Seal) -> None:
        written = seal_bytes(store, f"part{seal.suffix}", mixture(3 * MIB), seal)
        copied = bytearray()
        verify_stored(store, expected(written), copied.extend)
        assert bytes(copied) == store.read(written.key)


class TestWrongKey:
    @pytest.mark.parametrize("size_bytes", [0, 10, 3 * MIB])
    def test_it_is_rejected_only_when_the_bytes_are_right(self, store: ObjectStore, size_bytes: int) -> None:
        written = seal_bytes(store, "part.zst.age", mixture(size_bytes), ENCRYPTED)
        for identities in ((STRANGER,), ()):
            with pytest.raises(KeyRejected) as rejected:
                open_sealed(store, expected(written), identities, Opened())
            assert rejected.value.exit_code == 12
            assert written.key in str(rejected.value)
            assert str(STRANGER) not in str(rejected.value)


class Refusing:
    """A sink whose medium is full after some bytes."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def write(self, data: bytes, /) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise TargetRefused("cannot write below /target: No space left on device")
        return len(data)


class TestSink:
    @pytest.mark.parametrize("room_for_bytes", [0, 2 * MIB])
    def test_its_own_failure_is_no_damage_of_the_object(
        self, store: ObjectStore, seal: Seal, room_for_bytes: int
    ) -> None:
        written = seal_bytes(store, f"part{seal.suffix}", mixture(5 * MIB), seal)
        with pytest.raises(TargetRefused, match="No space left"):
            open_sealed(store, expected(written), (WORKING,), Refusing(room_for_bytes))

    def test_it_gets_pieces_of_bounded_size_however_well_the_content_compresses(
        self, store: ObjectStore, seal: Seal
    ) -> None:
        written = seal_bytes(store, f"zeros{seal.suffix}", bytes(64 * MIB), seal)
        assert written.size_bytes < 64 * 1024
        sink = Opened()
        open_sealed(store, expected(written), (WORKING,), sink)
        assert sink.largest_piece <= MIB


class TestFailingStore:
    def test_a_full_medium_leaves_nothing(self, room: Path, seal: Seal) -> None:
        store = LocalStore(room / "store")
        script = SEAL_UNTIL_FULL.format(root=str(room / "store"), encrypted=seal is ENCRYPTED)
        answer = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=CHECKOUT
        )
        assert answer.stdout == "StoreFailed True\n"
        assert [path for path in (room / "store").rglob("*") if path.is_file()] == []
        assert list(store.unfinished()) == []

    def test_a_server_that_is_gone_leaves_no_object_and_no_thread(
        self, s3_server: S3Server, shared_bucket: str
    ) -> None:
        prefix = secrets.token_hex(6)
        with no_thread_left(), FaultyProxy(s3_server.port, upload_bytes=18 * MIB) as proxy:
            store = s3_server.store(shared_bucket, prefix, port=proxy.port)
            writer = SealedWriter(store, "part.zst.age", ENCRYPTED)
            with pytest.raises(StoreFailed) as failed:
                finish_with_noise(writer, 60 * MIB)
            with suppress(StoreFailed):  # the upload cannot be aborted either
                writer.abandon()
        assert failed.value.retryable
        assert list(s3_server.store(shared_bucket, prefix).objects("")) == []

    @pytest.mark.parametrize("size_bytes", [40_000, 5 * MIB])
    def test_a_read_that_breaks_off_is_no_damage(
        self, s3_server: S3Server, seal: Seal, shared_bucket: str, size_bytes: int
    ) -> None:
        """Taken for damage it would void a proof, and send somebody to look for a fault in the backup."""
        prefix = secrets.token_hex(6)
        data = random.Random(0).randbytes(size_bytes)
        written = seal_bytes(s3_server.store(shared_bucket, prefix), f"part{seal.suffix}", data, seal)
        for cut_after in (2_000, size_bytes - 5_000):
            with FaultyProxy(s3_server.port, download_bytes=cut_after) as proxy:
                store = s3_server.store(shared_bucket, prefix, port=proxy.port)
                with pytest.raises(StoreFailed, match="broke off"):
                    opened(store, expected(written))
            with FaultyProxy(s3_server.port, download_bytes=cut_after) as proxy:
                store = s3_server.store(shared_bucket, prefix, port=proxy.port)
                with pytest.raises(StoreFailed, match="broke off"):
                    verify_stored(store, expected(written))

    def test_abandoning_in_the_middle_leaves_nothing_and_can_be_repeated(self, store: ObjectStore, seal: Seal) -> None:
        with no_thread_left():
            writer = SealedWriter(store, f"part{seal.suffix}", seal)
            write_noise(writer, 20 * MIB)
            writer.abandon()
            writer.abandon()
        assert (list(store.objects("")), list(store.unfinished())) == ([], [])

    def test_finishing_leaves_no_thread(self, store: ObjectStore, seal: Seal) -> None:
        with no_thread_left():
            seal_bytes(store, f"part{seal.suffix}", mixture(20 * MIB), seal)


def write_noise(writer: SealedWriter, size_bytes: int) -> None:
    noise = random.Random(size_bytes)
    for _ in range(size_bytes // MIB):
        writer.write(noise.randbytes(MIB))


def finish_with_noise(writer: SealedWriter, size_bytes: int) -> None:
    write_noise(writer, size_bytes)
    writer.finish()


SEAL_UNTIL_FULL = """
import random, resource, threading
from pathlib import Path
import pyrage
from bb_ops.errors import BbOpsError
from bb_ops.storage.local import LocalStore
from bb_ops.storage.sealed import Seal, SealedWriter
keys = tuple(pyrage.x25519.Identity.generate().to_public() for _ in range(2)) if {encrypted} else ()
before = set(threading.enumerate())
writer = SealedWriter(LocalStore(Path({root!r})), "part", Seal(keys, 1, 2))
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
try:
    for _ in range(60):
        writer.write(random.randbytes(1 << 20))
    writer.finish()
except BbOpsError as error:
    writer.abandon()
    print(type(error).__name__, set(threading.enumerate()) <= before)
"""

SEAL_AND_MEASURE = """
import random, re
from pathlib import Path
import pyrage
from bb_ops.storage.local import LocalStore
from bb_ops.storage.sealed import Expected, Seal, SealedWriter, open_sealed
def peak_bytes():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
store = LocalStore(Path({root!r}))
identity = pyrage.x25519.Identity.generate()
writer = SealedWriter(store, "part.zst.age", Seal((identity.to_public(),) * 2, 1, 2))
noise = random.Random(1).randbytes(256 << 10)
for number in range(1024):
    writer.write(noise + {filler})
written = writer.finish()
print(written.raw_size_bytes, peak_bytes())
class Sink:
    def write(self, data):
        return len(data)
want = Expected(written.key, written.size_bytes, written.raw_size_bytes, written.sha256)
print(open_sealed(store, want, (identity,), Sink()), peak_bytes())
"""


class TestMemory:
    @pytest.mark.parametrize(
        "filler", ["random.randbytes(768 << 10)", "bytes(768 << 10)"], ids=["little compressible", "mostly zeros"]
    )
    def test_a_gigabyte_is_sealed_and_opened_within_300_megabytes(self, room: Path, filler: str) -> None:
        script = SEAL_AND_MEASURE.format(root=str(room / "store"), filler=filler)
        answer = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=CHECKOUT
        )
        (sealed_bytes, sealing_peak), (opened_bytes, opening_peak) = (
            map(int, line.split()) for line in answer.stdout.splitlines()
        )
        assert sealed_bytes == opened_bytes == 1 << 30
        assert sealing_peak < 300_000_000
        assert opening_peak < 300_000_000


@pytest.fixture(scope="module", autouse=True)
def _nothing_remains() -> Iterator[None]:
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "age"] == []
