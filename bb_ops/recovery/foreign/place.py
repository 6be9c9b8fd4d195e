"""Content that others made, wherever it is: read piece by piece, gzip and zstd taken off by their magic."""

import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from bb_ops.errors import IntegrityError, UsageError
from bb_ops.recovery.foreign.source import HEAD_BYTES, Form, detect, refusal
from bb_ops.storage.base import ObjectReader, ObjectStore

_READ_BYTES = 1 << 20
_ZSTD_BYTES = 1 << 15
"""Given to zstd at once: what comes out is a thousand times as much at worst, and held in memory."""
_MOST_LAYERS = 3
_GZIP = 31
"""zlib's window bits that ask for gzip's header and its CRC-32 (zlib manual, inflateInit2)."""


@dataclass(frozen=True)
class Place:
    """A file or a folder that a SOURCE names.

    Attributes:
        store: The folder, or the one that the file is in.
        name: The file in it; None for the folder.
        path: The folder on this host; None in a bucket.
    """

    store: ObjectStore
    name: str | None
    path: Path | None

    @property
    def url(self) -> str:
        """Where it is."""
        return self.store.url if self.name is None else f"{self.store.url}/{self.name}"


@dataclass(frozen=True)
class Content:
    """One file of a place, without the compression around it.

    Attributes:
        where: Its address.
        head: The first bytes inside.
        layers: The compressions around it, the outermost first.
    """

    store: ObjectStore
    key: str
    where: str
    size_bytes: int
    head: bytes
    layers: tuple[Form, ...]

    @property
    def form(self) -> Form | None:
        """What it is; None where we do not know it."""
        return detect(self.head)

    def pieces(self) -> Iterator[bytes]:
        """Read all of it anew.

        Raises:
            IntegrityError: a compression ends before its end, or its checksum differs.
        """
        pieces = raw_pieces(self.store, self.key)
        for layer in self.layers:
            pieces = _LAYERS[layer](pieces, self.where)
        yield from pieces

    def wrapped(self) -> str:
        """Say what the compression proves, for evidence."""
        said = {Form.GZIP: "gzip's CRC-32 is right", Form.ZSTD: "zstd ends where it should"}
        return "; ".join(said[layer] for layer in self.layers) or "nothing around it bears a checksum"


def open_content(store: ObjectStore, key: str) -> Content | None:
    """Look at a file's first bytes, through its compressions; None where there is no such file.

    Raises:
        IntegrityError: the compression is damaged there.
    """
    found = store.stat(key)
    if found is None:
        return None
    content = Content(store, key, f"{store.url}/{key}", found.size_bytes, b"", ())
    for _ in range(_MOST_LAYERS):
        head = _head(content)
        content = Content(store, key, content.where, found.size_bytes, head, content.layers)
        form = content.form
        if form not in _LAYERS:
            return content
        content = Content(store, key, content.where, found.size_bytes, head, (*content.layers, form))
    raise UsageError(f"{content.where} is compressed more than {_MOST_LAYERS - 1} times over: refused")


def known_content(store: ObjectStore, key: str) -> Content:
    """Look at a file whose content must be known.

    Raises:
        UsageError, IntegrityError: there is none, or it is nothing that can be restored; the message says what it is.
    """
    content = open_content(store, key)
    if content is None:
        raise UsageError(f"{store.url}/{key} is no file")
    if content.form is None or content.form == Form.AGE:
        raise refusal(content.head, content.where)
    return content


def files_of(place: Place) -> list[str]:
    """Return the names of the files directly in a folder."""
    if place.path is not None:
        try:
            with os.scandir(place.path) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except OSError as error:
            raise UsageError(f"{place.path} cannot be read: {error.strerror}") from error
    return [info.key for info in place.store.objects("") if "/" not in info.key]


def refuse_special_files(root: Path, below: str = "", *, tablespaces: bool = False) -> None:
    """Refuse a folder that holds anything but files and folders.

    Args:
        root: The folder.
        below: What part of it to look at.
        tablespaces: Let the links of tablespaces pass.

    Raises:
        IntegrityError: it holds a link, a device or the like; the message names it.
    """
    for directory, folders, names in os.walk(root / below):
        for name in (*folders, *names):
            path = Path(directory, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                continue
            if tablespaces and stat.S_ISLNK(mode) and path.parent == root / "pg_tblspc" and name.isdecimal():
                continue
            raise IntegrityError(f"{path} is neither a file nor a directory: refused")


def _head(content: Content) -> bytes:
    head = b""
    for piece in content.pieces():
        head += piece
        if len(head) >= HEAD_BYTES:
            break
    return head[:HEAD_BYTES]


def raw_pieces(store: ObjectStore, key: str) -> Iterator[bytes]:
    """Read a file as it is stored.

    Raises:
        IntegrityError: it has vanished.
    """
    reader: ObjectReader | None = store.reader(key)
    if reader is None:
        raise IntegrityError(f"{store.url}/{key} has vanished")
    try:
        while data := reader.read(_READ_BYTES):
            yield data
    finally:
        reader.close()


def _gunzip(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Decompress gzip, of several members too (RFC 1952, 2.2); zeros may follow, as on tapes."""
    member = zlib.decompressobj(_GZIP)
    begun = False
    for piece in pieces:
        data = piece
        while data:
            if not begun:
                data = data.lstrip(b"\0") if member.eof else data
                if not data:
                    break
                member, begun = zlib.decompressobj(_GZIP), True
            try:
                out = member.decompress(data, _READ_BYTES)
            except zlib.error as error:
                raise IntegrityError(f"{where} is damaged: gzip says {error}") from error
            if out:
                yield out
            data = member.unused_data if member.eof else member.unconsumed_tail
            begun = not member.eof
    while begun and (out := member.decompress(b"", _READ_BYTES)):
        begun = not member.eof
        yield out
    if begun:
        raise IntegrityError(f"{where} is cut short: gzip ends before its end")


def _unzstd(pieces: Iterator[bytes], where: str) -> Iterator[bytes]:
    """Decompress zstd, of several frames too (RFC 8878, 3)."""
    frame = None
    for piece in pieces:
        data = piece
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                out = frame.decompress(data[:_ZSTD_BYTES])
            except zstandard.ZstdError as error:
                raise IntegrityError(f"{where} is damaged: {error}") from error
            if out:
                yield out
            data = (frame.unused_data if frame.eof else b"") + data[_ZSTD_BYTES:]
            frame = None if frame.eof else frame
    if frame is not None:
        raise IntegrityError(f"{where} is cut short: zstd ends before its end")


_LAYERS = {Form.GZIP: _gunzip, Form.ZSTD: _unzstd}
