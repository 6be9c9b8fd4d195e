"""Extraction writes below its root and nowhere else, whatever an archive says."""

import io
import tarfile
from pathlib import Path

import pytest

from bb_ops.errors import IntegrityError, TargetRefused
from bb_ops.recovery.extract import CONTROL_FILE, CONTROL_PARTIAL, Extractor, safe_name
from bb_ops.recovery.target import Target

CONTENT = b"content"


def info_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    if kind == tarfile.REGTYPE:
        info.size = len(CONTENT)
    return info


def archive(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for member in members:
            out.addfile(member, io.BytesIO(CONTENT) if member.size else None)
    return buffer.getvalue()


def extract(root: Path, data: bytes) -> None:
    target = Target(root, root.with_name("tablespaces"), None)
    root.mkdir(exist_ok=True)
    with Extractor(target, root) as extractor:
        for start in range(0, len(data), 700):
            extractor.write(data[start : start + 700])


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tree(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def test_files_and_folders_arrive_private(tmp_path: Path) -> None:
    wide = info_of("base/1/1259")
    wide.mode = 0o777
    extract(tmp_path / "data", archive(info_of("base", tarfile.DIRTYPE), wide, info_of("PG_VERSION")))
    assert tree(tmp_path / "data") == ["PG_VERSION", "base", "base/1", "base/1/1259"]
    assert (tmp_path / "data/base/1/1259").read_bytes() == CONTENT
    assert (tmp_path / "data/base/1/1259").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data/base/1").stat().st_mode & 0o777 == 0o700


def test_the_control_file_waits_under_another_name(tmp_path: Path) -> None:
    extract(tmp_path / "data", archive(info_of(CONTROL_FILE)))
    assert tree(tmp_path / "data") == ["global", CONTROL_PARTIAL]


OUTSIDE = {
    "parent": [info_of("../x")],
    "parent in the middle": [info_of("base/../../x")],
    "parent at the end": [info_of("base/..")],
    "absolute": [info_of("/etc/x")],
    "absolute, doubled": [info_of("//etc/x")],
    "parent folder": [info_of("../x", tarfile.DIRTYPE)],
    "absolute folder": [info_of("/etc/x", tarfile.DIRTYPE)],
    "symbolic link": [info_of("link", tarfile.SYMTYPE, "/etc/passwd")],
    "symbolic link inside": [info_of("link", tarfile.SYMTYPE, "PG_VERSION")],
    "symbolic link, then a file through it": [info_of("link", tarfile.SYMTYPE, ".."), info_of("link/x")],
    "hard link": [info_of("link", tarfile.LNKTYPE, "/etc/passwd")],
    "character device": [info_of("device", tarfile.CHRTYPE)],
    "block device": [info_of("device", tarfile.BLKTYPE)],
    "fifo": [info_of("fifo", tarfile.FIFOTYPE)],
    "sparse file": [info_of("sparse", tarfile.GNUTYPE_SPARSE)],
    "extended header": [info_of("pax", tarfile.XHDTYPE)],
    "long name": [info_of("long", tarfile.GNUTYPE_LONGNAME)],
    "same file twice": [info_of("base/x"), info_of("base/x")],
    "same file, written differently": [info_of("base/x"), info_of("./base//x")],
    "control file twice": [info_of(CONTROL_FILE), info_of(CONTROL_FILE)],
    "control file under its other name": [info_of(CONTROL_FILE), info_of(CONTROL_PARTIAL)],
    "path through a file": [info_of("base"), info_of("base/x")],
    "path through a file, deeper": [info_of("base"), info_of("base/x/y/z")],
    "folder in a file's place": [info_of("base"), info_of("base", tarfile.DIRTYPE)],
    "file in a folder's place": [info_of("base", tarfile.DIRTYPE), info_of("base")],
    "the root itself": [info_of(".")],
}


@pytest.mark.parametrize("members", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_what_leads_elsewhere_or_contradicts_itself_is_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    (tmp_path / "neighbour").write_bytes(b"untouched")
    with pytest.raises(IntegrityError) as refused:
        extract(tmp_path / "data", archive(info_of("PG_VERSION"), *members))
    assert refused.value.exit_code == 5
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "neighbour"]
    assert (tmp_path / "neighbour").read_bytes() == b"untouched"
    assert not any(path.is_symlink() for path in (tmp_path / "data").rglob("*"))
    assert (tmp_path / "data/PG_VERSION").read_bytes() == CONTENT


def test_a_link_that_lies_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "outside").write_bytes(b"untouched")
    (tmp_path / "data/x").symlink_to(tmp_path / "outside")
    with pytest.raises(IntegrityError):
        extract(tmp_path / "data", archive(info_of("x")))
    assert (tmp_path / "outside").read_bytes() == b"untouched"


def test_an_archive_that_ends_inside_a_member_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="inside a member"):
        extract(tmp_path / "data", archive(info_of("x"))[:514])


def test_a_target_that_cannot_be_written_is_no_damage_of_the_archive(tmp_path: Path) -> None:
    """A name that the file system refuses is the nearest thing to a full one that needs no preparation."""
    long = archive(info_of("x" * 90 + "/" + "y" * 60))
    (tmp_path / "data").mkdir()
    target = Target(tmp_path / "data", tmp_path / "spaces", None)
    with pytest.raises(TargetRefused, match="cannot write below"), Extractor(target, tmp_path / "none" / "root") as it:
        it.write(long)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(IntegrityError):
        extract(tmp_path / "data", archive(info_of("a"), info_of("../b")))
    extract(tmp_path / "more", archive(*(info_of(f"file-{number}") for number in range(50))))
    assert open_descriptors() == before


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "..", "a\0b"])
def test_unsafe_names(name: str) -> None:
    with pytest.raises(IntegrityError, match="leads out of the target"):
        safe_name(name)


@pytest.mark.parametrize("name", ["x", "base/1/1259", "..x", "x..", "a/..b/c", "pg_wal/00000001"])
def test_safe_names(name: str) -> None:
    assert str(safe_name(name)) == name
