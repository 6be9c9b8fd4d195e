"""The walker's view of an archive is that of Python's tarfile, however the bytes arrive."""

import io
import tarfile
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bb_ops.engines.tar import END_OF_ARCHIVE, Member, TarWalker, file_header, parse_header
from bb_ops.errors import IntegrityError

NAMES = st.text("abcÄ_.0123456789", min_size=1, max_size=20).filter(lambda name: name.strip(".") != "")


@dataclass(frozen=True)
class Entry:
    name: str
    kind: bytes
    mode: int
    data: bytes


entries = st.builds(
    Entry,
    name=st.lists(NAMES, min_size=1, max_size=3).map("/".join),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE]),
    mode=st.sampled_from([0o600, 0o700, 0o640]),
    data=st.binary(max_size=1_500) | st.integers(0, 3).map(lambda blocks: bytes(512 * blocks)),
)


def archive(members: list[Entry]) -> bytes:
    """Write an archive as PostgreSQL does: plain ustar headers, two empty blocks at the end."""
    out = bytearray()
    for member in members:
        info = tarfile.TarInfo(member.name)
        info.type, info.mode = member.kind, member.mode
        info.size = len(member.data) if member.kind == tarfile.REGTYPE else 0
        out += info.tobuf(tarfile.USTAR_FORMAT)
        if member.kind == tarfile.REGTYPE:
            out += member.data + bytes(-len(member.data) % 512)
    return bytes(out) + END_OF_ARCHIVE


class Seen:
    """Collects what a walker tells."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.headers: list[bytes] = []
        self.contents: list[bytearray] = []
        self.walker = TarWalker(self._member, self._content)

    def _member(self, member: Member, header: bytes) -> None:
        self.members.append(member)
        self.headers.append(header)
        self.contents.append(bytearray())

    def _content(self, piece: memoryview) -> None:
        assert len(piece) > 0
        self.contents[-1] += piece

    def walk(self, data: bytes, chunk_bytes: list[int]) -> "Seen":
        view, turn = memoryview(data), 0
        while view:
            size = chunk_bytes[turn % len(chunk_bytes)]
            self.walker.feed(view[:size])
            view, turn = view[size:], turn + 1
        self.walker.finish()
        return self


@given(st.lists(entries, max_size=8), st.lists(st.integers(1, 3_000), min_size=1, max_size=5))
def test_it_sees_what_tarfile_sees(members: list[Entry], chunk_bytes: list[int]) -> None:
    data = archive(members)
    seen = Seen().walk(data, chunk_bytes)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as known:
        found = [
            (info.name, info.type, info.mode, info.size, (known.extractfile(info) or io.BytesIO()).read())
            for info in known
        ]
    assert [
        (member.name.rstrip("/"), member.kind, member.mode, member.size_bytes, bytes(content[: member.size_bytes]))
        for member, content in zip(seen.members, seen.contents, strict=True)
    ] == found


@given(st.lists(entries, max_size=5), st.lists(st.integers(1, 3_000), min_size=1, max_size=3))
def test_headers_and_contents_together_are_the_archive(members: list[Entry], chunk_bytes: list[int]) -> None:
    data = archive(members)
    seen = Seen().walk(data, chunk_bytes)
    together = b"".join(header + bytes(content) for header, content in zip(seen.headers, seen.contents, strict=True))
    assert together + END_OF_ARCHIVE == data


@given(st.lists(entries, min_size=1, max_size=4), st.data())
def test_an_archive_that_ends_inside_a_member_is_damaged(members: list[Entry], data: st.DataObject) -> None:
    whole = archive(members)[: -len(END_OF_ARCHIVE)]
    at = data.draw(st.integers(1, len(whole) - 1))
    boundaries = {0, len(whole)}
    position = 0
    for member in members:
        position += 512
        if member.kind == tarfile.REGTYPE:
            position += -(-len(member.data) // 512) * 512
        boundaries.add(position)
    if at in boundaries:
        Seen().walk(whole[:at], [700])
        return
    with pytest.raises(IntegrityError, match="inside a member"):
        Seen().walk(whole[:at], [700])


@given(st.lists(entries, min_size=1, max_size=3), st.integers(0, 511), st.integers(0, 7))
def test_a_changed_bit_in_a_header_is_damage_or_changes_what_tarfile_sees_too(
    members: list[Entry], at: int, bit: int
) -> None:
    header = bytearray(archive(members)[:512])
    header[at] ^= 1 << bit
    try:
        known = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        with pytest.raises(IntegrityError, match="damaged"):
            parse_header(bytes(header))
    else:
        member = parse_header(bytes(header))
        assert (member.name, member.kind, member.size_bytes) == (known.name, known.type, known.size)


@settings(max_examples=300)
@given(st.binary(min_size=512, max_size=512))
def test_whatever_a_header_holds_it_is_a_member_or_damage(block: bytes) -> None:
    summed = bytearray(block)
    summed[148:156] = b" " * 8
    summed[148:156] = b"%06o\0 " % sum(summed)
    seen = Seen()
    try:
        seen.walker.feed(memoryview(bytes(summed)))
    except IntegrityError:
        assert seen.members == []
    else:
        assert [member.size_bytes >= 0 for member in seen.members] == [True]


def test_a_negative_size_is_damage() -> None:
    """Base 256 can say it, and a walker that believed it would turn in circles."""
    header = bytearray(file_header("evil", 0, 0))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(IntegrityError, match="damaged"):
        Seen().walk(bytes(header) + bytes(1024), [512])


def test_sizes_beyond_eight_gigabytes_are_read() -> None:
    """PostgreSQL writes them in base 256 where eleven octal digits do not suffice."""
    info = tarfile.TarInfo("large")
    info.size = 20 << 30
    member = parse_header(info.tobuf(tarfile.GNU_FORMAT))
    assert (member.size_bytes, member.padded_bytes) == (20 << 30, 20 << 30)


def test_our_own_header_is_that_of_a_private_file() -> None:
    header = file_header("pg_wal/000000010000000000000001", 16 << 20, 1_800_000_000)
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    assert (info.name, info.size, info.mode, info.mtime) == (
        "pg_wal/000000010000000000000001",
        16 << 20,
        0o600,
        1_800_000_000,
    )
    assert len(header) == 512
    assert info.isreg()


def test_a_chunk_of_nothing_changes_nothing() -> None:
    seen = Seen()
    seen.walker.feed(memoryview(b""))
    seen.walker.finish()
    assert seen.members == []
