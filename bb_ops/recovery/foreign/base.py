"""Restore a base backup that others made: tars or a folder of pg_basebackup, surveyed whole before a byte is written.

Tablespaces go beside the target, as those of our own backups do; a link inside the archive is always refused.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bb_ops.engines.tar import BLOCK_BYTES, END_OF_ARCHIVE, file_header
from bb_ops.errors import IntegrityError, NotMeasured, UsageError
from bb_ops.findings import Outcome
from bb_ops.postgres import inspect
from bb_ops.postgres.backup_manifest import read_backup_manifest
from bb_ops.postgres.programs import Programs, find_programs
from bb_ops.process import Account
from bb_ops.progress import Progress
from bb_ops.recovery.extract import CONTROL_FILE, CONTROL_PARTIAL, Extractor, safe_name
from bb_ops.recovery.foreign.place import Content, Place, refuse_special_files
from bb_ops.recovery.foreign.tar_survey import KEPT, Survey, without_remarks
from bb_ops.recovery.restore import Restored, complete_target, make_tablespace
from bb_ops.recovery.target import MARKER, Target, prepare_target
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.local import LocalStore

MANIFEST = "backup_manifest"
_LABEL = "backup_label"
_MAP = "tablespace_map"
_WAL = "pg_wal"
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_WAL_FILE = re.compile(r"(?:archive_status/.*|summaries/.*|[0-9A-F]{24}(?:\.partial)?|[0-9A-F]{8}\.history)")
_SPACE_FOLDER = re.compile(r"PG_\d+_\d+(?:/.*)?")
_START = re.compile(rb"START WAL LOCATION: \S+ \(file ([0-9A-F]{24})\)")
_MAP_LINE = re.compile(rb"(?m)^(\d+) ")
_NOT_THEIRS = ("standby.signal", "recovery.signal", "postmaster.pid", "postmaster.opts")
"""Files that make a server follow or wait for another one, or that only a running one has."""
_FOLDERS = (
    *("pg_commit_ts", "pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat", "pg_stat_tmp"),
    *("pg_subtrans", "pg_tblspc", "pg_twophase", "pg_wal", "pg_wal/archive_status"),
    *("pg_logical", "pg_logical/snapshots", "pg_logical/mappings"),
)
"""Folders that a server wants and that a bucket, which has no empty ones, does not bring."""


@dataclass(frozen=True)
class Part:
    """One archive of a base backup.

    Attributes:
        role: ``base``, ``wal``, or a tablespace's oid.
        pieces: Reads it anew, as a tar.
    """

    where: str
    role: str
    survey: Survey
    pieces: Callable[[], Iterator[bytes]]
    wrapped: str


@dataclass(frozen=True)
class ForeignBase:
    """A base backup that was surveyed whole.

    Attributes:
        manifest: PostgreSQL's own manifest, where one lies beside; one that is inside wins.
    """

    where: str
    form: str
    parts: tuple[Part, ...]
    manifest: bytes | None
    programs: Programs

    @property
    def base(self) -> Part:
        """The archive of the data directory."""
        return next(part for part in self.parts if part.role == "base")

    @property
    def oids(self) -> tuple[int, ...]:
        """Its tablespaces."""
        return tuple(sorted(int(part.role) for part in self.parts if part.role.isdecimal()))

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(part.survey.size_bytes for part in self.parts)

    @property
    def needed_bytes(self) -> int:
        """Room that it takes: its files."""
        return self.size_bytes

    def unhashed(self) -> str:
        """Say why the first level does not apply."""
        return f"a foreign base backup bears no hashes of ours and no signature; {self.base.wrapped}"

    def extract(self, target: Target, progress: Progress, *, durable: bool) -> Restored:
        """Extract everything into a checked target, the control file last. Safe to kill: a server refuses the rest.

        Raises:
            IntegrityError: an archive has changed since it was surveyed.
        """
        prepare_target(target, self.where)
        for oid in self.oids:
            make_tablespace(target, oid)
        done = 0
        for part in self.parts:
            root = {"base": target.directory, "wal": target.directory / _WAL}.get(part.role)
            with Extractor(target, root or target.tablespaces / part.role) as extractor:
                for piece in part.pieces():
                    extractor.write(piece)
                    done += len(piece)
                    progress("restore", done, None)
        for name in _FOLDERS:
            folder = target.directory / name
            if not folder.exists():
                folder.mkdir(mode=0o700)
                target.chown(folder)
        if self.manifest is not None and not (target.directory / MANIFEST).exists():
            (target.directory / MANIFEST).write_bytes(self.manifest)
            target.chown(target.directory / MANIFEST)
        complete_target(target, durable=durable)
        return Restored(target, self.size_bytes, None, 0.0, ())

    def check_files(self, target: Target) -> tuple[Outcome, str]:
        """L2: PostgreSQL's own manifest names every file, its size and checksum.

        Raises:
            IntegrityError: the files differ from it.
            NotMeasured: there is none.
        """
        if not (target.directory / MANIFEST).is_file():
            raise NotMeasured("the backup came without backup_manifest: nothing says what its files must be")
        ignore = (MARKER, *_NOT_THEIRS)
        complaints = inspect.check_manifest(self.programs, target.directory, target.owner, ignore)
        if complaints:
            raise IntegrityError(f"the files of {self.where} differ from its backup_manifest: {'; '.join(complaints)}")
        return Outcome.PASS, "pg_verifybackup: every file of backup_manifest is there and right"

    def check_wal(self, target: Target, owner: Account | None) -> tuple[Outcome, str]:
        """L3: every WAL record of the backup can be read.

        Raises:
            IntegrityError: there is a hole.
            NotMeasured: nothing says where the WAL must end.
        """
        path = target.directory / MANIFEST
        if not path.is_file():
            raise NotMeasured("without backup_manifest nothing says where the WAL must end; a start will show it")
        facts = read_backup_manifest(path.read_bytes())
        start, end = facts.start_lsn, facts.end_lsn
        complaints = inspect.check_wal(self.programs, target.directory, facts.timeline, start, end, owner)
        if complaints:
            raise IntegrityError(f"the WAL from {start} to {end} has a hole: {'; '.join(complaints)}")
        return Outcome.PASS, f"pg_waldump: WAL is continuous from {start} to {end} on timeline {facts.timeline}"

    def settle(self, target: Target) -> None:
        """Make a checked copy a server of its own: it follows nobody, and its tablespaces are where they are now."""
        for name in _NOT_THEIRS:
            (target.directory / name).unlink(missing_ok=True)
        if self.oids:
            lines = [f"{oid} {_escape(str(target.tablespaces / str(oid)))}\n" for oid in self.oids]
            (target.directory / _MAP).write_text("".join(lines), encoding="utf-8")
            target.chown(target.directory / _MAP)


def spoil(target: Target) -> None:
    """Keep a copy that turned out to be damaged from being started by anybody."""
    control = target.directory / CONTROL_FILE
    if control.exists():
        control.rename(target.directory / CONTROL_PARTIAL)


def role_of(survey: Survey, name: str) -> str | None:
    """Say what an archive is: ``base``, ``wal``, ``dump``, a tablespace's oid, or None for neither. Pure.

    A tablespace's archive does not say whose it is, except by its name: PostgreSQL names it after the oid.
    """
    if "toc.dat" in survey.files:
        return "dump"
    if CONTROL_FILE in survey.files or "PG_VERSION" in survey.files:
        return "base"
    if survey.files and all(_WAL_FILE.fullmatch(one) for one in survey.files):
        return "wal"
    stem = name.rpartition("/")[2].partition(".")[0]
    if stem.isdecimal() and survey.folders and all(_SPACE_FOLDER.fullmatch(one) for one in survey.folders):
        return stem
    return None


def part_of_tar(content: Content, survey: Survey, role: str) -> Part:
    """Return an archive that was surveyed."""
    return Part(content.where, role, survey, lambda: without_remarks(content.pieces()), content.wrapped())


def parts_of_folder(place: Place) -> list[Part]:
    """Return a plain folder of pg_basebackup, with its tablespaces, as archives.

    Raises:
        IntegrityError: it holds a link or a device.
    """
    parts = [_folder_part(place.store, place.url, "base")]
    if place.path is not None:
        refuse_special_files(place.path, tablespaces=True)
        links = place.path / "pg_tblspc"
        for link in sorted(links.iterdir()) if links.is_dir() else ():
            if link.is_symlink():
                space = link.resolve()
                refuse_special_files(space)
                part = _folder_part(LocalStore(space), str(link), link.name)
                if not all(_SPACE_FOLDER.fullmatch(one) for one in part.survey.folders):
                    raise IntegrityError(f"{link} leads to {space}, which is no tablespace: refused")
                parts.append(part)
    return parts


def judge_base(
    where: str, form: str, parts: list[Part], manifest: bytes | None, bindirs: tuple[Path, ...]
) -> ForeignBase:
    """Decide whether archives are a base backup that can be started; changes nothing.

    Raises:
        IntegrityError: a file that recovery needs is missing.
        UsageError: it is no base backup, or no PostgreSQL of its version is installed here.
    """
    bases = [part for part in parts if part.role == "base"]
    if len(bases) != 1:
        raise UsageError(f"{where} holds {len(bases)} archives of a data directory, expected one")
    survey = bases[0].survey
    for name in ("PG_VERSION", CONTROL_FILE):
        if name not in survey.files:
            raise IntegrityError(f"{bases[0].where} holds no {name}: it is no whole base backup")
    version = survey.kept["PG_VERSION"].strip().decode("ascii", "replace")
    if not version.isdecimal():
        raise IntegrityError(f"{bases[0].where}: its PG_VERSION is {version[:20]!r}, which is no version that we know")
    label = _START.match(survey.kept.get(_LABEL, b""))
    if label is None:
        raise UsageError(f"{where} holds no backup_label: it is a copy of a data directory and no base backup")
    _require_wal(where, parts, label[1].decode())
    mapped = {int(oid) for oid in _MAP_LINE.findall(survey.kept.get(_MAP, b""))}
    held = {int(part.role) for part in parts if part.role.isdecimal()}
    if mapped - held:
        missing = ", ".join(str(oid) for oid in sorted(mapped - held))
        raise IntegrityError(f"{where} lacks the archive of tablespace {missing}")
    try:
        programs = find_programs(int(version), bindirs)
    except NotMeasured as error:
        raise UsageError(f"{where} is a base backup of PostgreSQL {version}: {error}") from error
    return ForeignBase(where, form, tuple(parts), manifest, programs)


def _require_wal(where: str, parts: list[Part], first: str) -> None:
    inside = {PurePosixPath(name).name for name in segments_of(parts)}
    if not inside:
        raise UsageError(f"{where} holds no write-ahead log: give the folder that holds pg_wal.tar beside it")
    if first not in inside:
        raise IntegrityError(f"{where} lacks the WAL segment {first}, with which its recovery begins")


def segments_of(parts: list[Part]) -> list[str]:
    """Return the names of the WAL segments in all archives. Pure."""
    found = []
    for part in parts:
        folder = {"base": f"{_WAL}/", "wal": ""}.get(part.role)
        if folder is not None:
            names = (name.removeprefix(folder) for name in part.survey.files if name.startswith(folder))
            found += [name for name in names if _SEGMENT.fullmatch(name)]
    return found


def _folder_part(store: ObjectStore, where: str, role: str) -> Part:
    survey = Survey()
    for info in store.objects(""):
        survey.add(safe_name(info.key), info.size_bytes)
        if info.key in KEPT:
            survey.kept[info.key] = store.read(info.key) or b""
    return Part(where, role, survey, lambda: _as_tar(store, where, survey), "nothing around it bears a checksum")


def _as_tar(store: ObjectStore, where: str, survey: Survey) -> Iterator[bytes]:
    """Read a folder as if it were an archive."""
    for name, size_bytes in survey.files.items():
        try:
            yield file_header(name, size_bytes, 0)
        except ValueError as error:
            raise IntegrityError(f"{where}/{name} has a name that no data directory has: refused") from error
        reader, left = store.reader(name), size_bytes
        if reader is None:
            raise IntegrityError(f"{where}/{name} has vanished")
        try:
            while left and (piece := reader.read(min(left, 1 << 20))):
                left -= len(piece)
                yield piece
        finally:
            reader.close()
        if left:
            raise IntegrityError(f"{where}/{name} became shorter while it was read")
        yield bytes(-size_bytes % BLOCK_BYTES)
    yield END_OF_ARCHIVE


def _escape(path: str) -> str:
    """Escape a location as tablespace_map does; see ``restore``."""
    return path.replace("\\", "\\\\").replace("\n", "\\\n")
