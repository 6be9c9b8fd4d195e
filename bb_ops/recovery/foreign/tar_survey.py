"""What an archive or a folder holds, read before anything of it is written: names that stay inside, files and folders.

Nothing of an archive that would be refused in its middle has then been written anywhere.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from bb_ops.engines.tar import BLOCK_BYTES, END_OF_ARCHIVE, Member, TarWalker
from bb_ops.errors import IntegrityError
from bb_ops.recovery.extract import safe_name
from bb_ops.recovery.foreign.source import HEAD_BYTES

_FILE_KINDS = {b"0", b"\0"}
_DIRECTORY_KIND = b"5"
_PAX_KINDS = {b"x", b"g"}
_PAX_NAMES = re.compile(rb"\d+ (?:path|linkpath|size|GNU\.sparse[^=]*)=")
_KEPT_BYTES = 64 << 10
KEPT = ("PG_VERSION", "backup_label", "tablespace_map", "toc.dat")
"""Small files whose content says what the whole is."""


@dataclass
class Survey:
    """What is inside.

    Attributes:
        files: Sizes of the files, by name.
        kept: The beginnings of the small files that say what the whole is.
        read_bytes: Bytes of the archive itself.
    """

    files: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    kept: dict[str, bytes] = field(default_factory=dict)
    read_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def add(self, name: PurePosixPath, size_bytes: int | None) -> None:
        """Note a file, or a folder where it has no size.

        Raises:
            IntegrityError: the name was there before, as something that it would be written over.
        """
        text = str(name)
        above = {str(parent) for parent in name.parents} - {"."}
        if size_bytes is None:
            above.add(text)
        elif text in self.files or text in self.folders or text == ".":
            raise IntegrityError(f"the archive holds {text!r} twice, or as file and directory: refused")
        else:
            self.files[text] = size_bytes
        new = above - self.folders
        if not new.isdisjoint(self.files):
            raise IntegrityError(f"the archive holds {text!r} below a file: refused")
        self.folders |= new


def survey_tar(pieces: Iterable[bytes], where: str) -> Survey:
    """Read an archive whole and note what is in it.

    Raises:
        IntegrityError: it is damaged or cut short, or holds what is refused: a name that leads out, a link, a device.
    """
    surveyor = _Surveyor()
    last = b""
    try:
        for piece in pieces:
            surveyor.walker.feed(memoryview(piece))
            surveyor.survey.read_bytes += len(piece)
            last = (last + piece)[-BLOCK_BYTES:]
        surveyor.walker.finish()
    except IntegrityError as error:
        raise error if where in str(error) else IntegrityError(f"{where}: {error}") from error
    if last.strip(b"\0") or len(last) < BLOCK_BYTES:
        raise IntegrityError(f"{where} is cut short: the end of a tar is missing")
    return surveyor.survey


def without_remarks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Take out of a tar that was surveyed what says more of its members than a data directory needs (pax headers).

    Args:
        pieces: The tar, in blocks of any size.
    """
    waiting: list[bytes] = []
    remark = False

    def begin(member: Member, header: bytes) -> None:
        nonlocal remark
        remark = member.kind in _PAX_KINDS
        content(memoryview(header))

    def content(piece: memoryview) -> None:
        if not remark:
            waiting.append(bytes(piece))

    walker = TarWalker(begin, content)
    for piece in pieces:
        walker.feed(memoryview(piece))
        yield b"".join(waiting)
        waiting.clear()
    walker.finish()
    yield END_OF_ARCHIVE


class _Surveyor:
    def __init__(self) -> None:
        self.survey = Survey()
        self.walker = TarWalker(self._begin, self._content)
        self._keeping: str | None = None
        self._left = 0
        self._remark: bytearray | None = None

    def _begin(self, member: Member, header: bytes) -> None:
        del header
        self._keeping = None
        self._end_remark()
        if member.kind in _PAX_KINDS:
            self._remark = bytearray()
            return
        name = safe_name(member.name)
        if member.kind == _DIRECTORY_KIND:
            self.survey.add(name, None)
        elif member.kind in _FILE_KINDS:
            self.survey.add(name, member.size_bytes)
            if str(name) in KEPT:
                self._keeping = str(name)
                self.survey.kept[self._keeping] = b""
                self._left = member.size_bytes
        else:
            raise IntegrityError(f"the archive holds {member.name!r}, which is neither a file nor a directory: refused")

    def _end_remark(self) -> None:
        """Refuse a pax header that gives a member another name or size: what would be written is not what is seen."""
        if self._remark is not None and _PAX_NAMES.search(self._remark):
            raise IntegrityError("the archive renames members in pax headers, which no data directory needs: refused")
        self._remark = None

    def _content(self, piece: memoryview) -> None:
        if self._remark is not None:
            self._remark += piece
            return
        if self._keeping is not None:
            wanted = bytes(piece[: self._left])
            self._left -= len(wanted)
            kept = self.survey.kept[self._keeping] + wanted
            self.survey.kept[self._keeping] = kept[: HEAD_BYTES if self._keeping == "toc.dat" else _KEPT_BYTES]
