"""Positions in the write-ahead log and the names of its files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from bb_ops.postgres.lsn import Lsn, segment_name

MIB = 1 << 20
SEGMENT_SIZES = [1 << exponent for exponent in range(20, 31)]
positions = st.integers(0, 2**64 - 1).map(Lsn)

# position, segment size, timeline, name: worked out by hand from the manual's rule, two of them seen in the wild
SEGMENTS = [
    ("0/0", 16 * MIB, 1, "000000010000000000000000"),
    ("0/FFFFFF", 16 * MIB, 1, "000000010000000000000000"),
    ("0/1000000", 16 * MIB, 1, "000000010000000000000001"),
    ("0/FF000000", 16 * MIB, 1, "0000000100000000000000FF"),
    ("1/0", 16 * MIB, 1, "000000010000000100000000"),
    ("16/B374D848", 16 * MIB, 1, "0000000100000016000000B3"),
    ("FFFFFFFF/FFFFFFFF", 16 * MIB, 1, "00000001FFFFFFFF000000FF"),
    ("0/0", MIB, 1, "000000010000000000000000"),
    ("0/100000", MIB, 1, "000000010000000000000001"),
    ("0/FFF00000", MIB, 1, "000000010000000000000FFF"),
    ("1/0", MIB, 1, "000000010000000100000000"),
    ("2/12345678", MIB, 1, "000000010000000200000123"),
    ("0/4000000", 64 * MIB, 1, "000000010000000000000001"),
    ("3/FC000000", 64 * MIB, 1, "00000001000000030000003F"),
    ("0/3FFFFFFF", 1024 * MIB, 1, "000000010000000000000000"),
    ("0/40000000", 1024 * MIB, 1, "000000010000000000000001"),
    ("0/C0000000", 1024 * MIB, 1, "000000010000000000000003"),
    ("1/40000000", 1024 * MIB, 1, "000000010000000100000001"),
    ("0/1000000", 16 * MIB, 9, "000000090000000000000001"),
    ("0/1000000", 16 * MIB, 10, "0000000A0000000000000001"),
    ("0/1000000", 16 * MIB, 16, "000000100000000000000001"),
    ("0/1000000", 16 * MIB, 0xABCDEF, "00ABCDEF0000000000000001"),
    ("0/1000000", 16 * MIB, 0xFFFFFFFF, "FFFFFFFF0000000000000001"),
]


@pytest.mark.parametrize(("position", "segment_bytes", "timeline", "name"), SEGMENTS)
def test_segment_names(position: str, segment_bytes: int, timeline: int, name: str) -> None:
    assert segment_name(timeline, Lsn.parse(position), segment_bytes) == name


@given(positions)
def test_printing_and_reading_agree(position: Lsn) -> None:
    assert Lsn.parse(str(position)) == position
    assert isinstance(Lsn.parse(str(position)), Lsn)


@given(positions, positions)
def test_order_is_that_of_the_bytes(first: Lsn, second: Lsn) -> None:
    assert (first < second) == (int(first) < int(second))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0/0", 0),
        ("0/1", 1),
        ("1/0", 2**32),
        ("16/B374D848", 0x16B374D848),
        ("a/ff", 0xA000000FF),
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1),
    ],
)
def test_known_positions(text: str, value: int) -> None:
    assert Lsn.parse(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "0",
        "0/",
        "/0",
        "0/0/0",
        "g/0",
        "0/g",
        "123456789/0",
        "0/123456789",
        "-1/0",
        "0/-1",
        "+1/0",
        "1_0/0",
        " 1/0",
        "1/0\n",
        "0x1/0",
        "\u0661/0",
    ],
)
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="not a WAL position"):
        Lsn.parse(text)


@given(positions, st.sampled_from(SEGMENT_SIZES))
def test_a_segment_holds_its_position(position: Lsn, segment_bytes: int) -> None:
    start = position.segment_start(segment_bytes)
    assert start <= position < start + segment_bytes
    assert start % segment_bytes == 0
    assert segment_name(1, position, segment_bytes) == segment_name(1, start, segment_bytes)


@given(st.integers(0, 2**64 - 2**31).map(Lsn), st.sampled_from(SEGMENT_SIZES), st.integers(1, 2**32 - 1))
def test_names_follow_each_other_as_positions_do(position: Lsn, segment_bytes: int, timeline: int) -> None:
    here = segment_name(timeline, position, segment_bytes)
    following = segment_name(timeline, Lsn(position + segment_bytes), segment_bytes)
    assert here < following
    assert len(here) == len(following) == 24
    assert int(here[:8], 16) == timeline


@pytest.mark.parametrize(
    ("position", "end"),
    [
        ("0/3000028", "0/3000000"),  # a segment's first page has a long header of 40 bytes
        ("0/3002018", "0/3002000"),  # every other page a short one of 24
        ("0/3000018", "0/3000018"),
        ("0/3002028", "0/3002028"),
        ("0/3000000", "0/3000000"),
        ("0/3001FF8", "0/3001FF8"),
    ],
)
def test_a_page_header_that_is_not_written_yet_does_not_count(position: str, end: str) -> None:
    assert Lsn.parse(position).without_page_header(16 * MIB) == Lsn.parse(end)


@given(positions)
def test_it_crosses_the_process_boundary_as_text(position: Lsn) -> None:
    adapter = TypeAdapter(Lsn)
    assert adapter.dump_json(position) == f'"{position}"'.encode()
    read = adapter.validate_json(adapter.dump_json(position))
    assert (read, type(read)) == (position, Lsn)
