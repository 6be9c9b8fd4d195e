"""Restore what others made: recognised by its content, read and judged whole, and only then written, beside.

What it does not say is left open: it bears no signature and no hashes of ours, and its instant is not known.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bb_ops.clock import Stopwatch
from bb_ops.errors import BbOpsError, IntegrityError, NotMeasured, UsageError
from bb_ops.findings import Outcome
from bb_ops.postgres.authid import bootstrap_superuser
from bb_ops.postgres.connection import connect
from bb_ops.postgres.scratch import port_is_free, start_server
from bb_ops.progress import Progress
from bb_ops.recovery.foreign.base import (
    MANIFEST,
    ForeignBase,
    Part,
    judge_base,
    part_of_tar,
    parts_of_folder,
    role_of,
    segments_of,
    spoil,
)
from bb_ops.recovery.foreign.dump import SUPERUSER, ForeignDump, Script, judge_dump
from bb_ops.recovery.foreign.place import Place, files_of, known_content, open_content, raw_pieces, refuse_special_files
from bb_ops.recovery.foreign.source import ACCEPTED, Form
from bb_ops.recovery.foreign.tar_survey import survey_tar
from bb_ops.recovery.full import RecoverOptions, RecoverPlan, Recovery
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.load import make_durable, publish
from bb_ops.recovery.restore import keep_from_archiving
from bb_ops.recovery.scratch_copy import scratch_directory
from bb_ops.recovery.target import Target, check_target, finish_target, prepare_target, server_account
from bb_ops.repository.reports import Level
from bb_ops.storage.local import LocalStore

Foreign = ForeignDump | ForeignBase
_START_TIMEOUT_S = 24 * 3600.0
NO_WAL = "a dump has no write-ahead log: it shows one instant and cannot be carried forward"


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        bindirs: Where PostgreSQL's programs are looked for first.
        database: Where a dump of one database goes; None where it says itself.
        scratch: Where a dump that must lie on this host is brought to; the temporary directory when None.
        progress: Told about bytes read.
    """

    bindirs: tuple[Path, ...]
    database: str | None
    scratch: Path | None
    progress: Progress


@contextmanager
def judged(place: Place, reading: Reading) -> Iterator[Foreign]:
    """Recognise what is at a place, read it whole and decide whether it can be restored; keep it readable meanwhile.

    Raises:
        IntegrityError: it is damaged, cut short, or would write or run what it must not.
        UsageError: it is nothing that can be restored here.
    """
    if place.name is None and place.path is None and place.store.stat("toc.dat") is not None:
        with scratch_directory(reading.scratch, None) as folder:  # pg_restore reads this format from a disk alone
            _fetch(place, folder, reading.progress)
            yield _directory_dump(folder, place.url, reading)
        return
    found = _of_folder(place, reading) if place.name is None else _of_file(place, reading)
    if reading.database is not None and isinstance(found, ForeignBase):
        raise UsageError(f"{found.where} is a base backup, which holds all its databases: leave --database out")
    yield found


def plan_foreign(place: Place, options: RecoverOptions, scratch: Path | None, progress: Progress) -> RecoverPlan:
    """Decide whether and what to restore; changes nothing. All of the source is read.

    Raises:
        TargetRefused: the directory is not empty, in use, unreachable or too small.
        UsageError, IntegrityError: see ``judged``.
    """
    with _planned(place, options, scratch, progress) as (found, target):
        return RecoverPlan(
            backup_id=None,
            chain=(),
            region=None,
            source=found.where,
            form=found.form,
            into=target.directory,
            restore_bytes=found.needed_bytes,
            recovered_to_at=None,
            recovered_to_lsn=None,
        )


def recover_foreign(
    place: Place, options: RecoverOptions, scratch: Path | None, progress: Progress
) -> tuple[Recovery, BbOpsError | None]:
    """Restore what others made beside everything that exists. Safe to kill: the same call then begins anew.

    Returns:
        What was done, and the error of the first check that failed, for the exit code.

    Raises:
        TargetRefused: the directory is not empty, in use, unreachable or too small; nothing was changed.
        UsageError, IntegrityError: the source cannot be restored, nothing was changed; or it changed since it was read,
            and the directory cannot be started.
        NotMeasured: an extension or a locale is missing here.
        ProgramFailed: something could not be loaded; the directory cannot be started.
    """
    watch = Stopwatch()
    with _planned(place, options, scratch, progress) as (found, target):
        if isinstance(found, ForeignDump):
            climb, server, spaces, done = _load(found, target, options, progress)
        else:
            climb, server, spaces, done = _extract(found, target, options, progress)
    return Recovery(
        backup_id=None,
        region=None,
        source=found.where,
        form=found.form,
        data_directory=target.directory,
        tablespaces=spaces,
        port=options.port if server else None,
        connection_string=server,
        recovered_to_at=None,
        recovered_to_lsn=None,
        restored_bytes=done,
        duration_s=watch.elapsed_s,
        proof=climb.reached.name if climb.reached is not None else None,
        outcome=climb.outcome,
        steps=climb.close(),
    ), climb.error


@contextmanager
def _planned(
    place: Place, options: RecoverOptions, scratch: Path | None, progress: Progress
) -> Iterator[tuple[Foreign, Target]]:
    owner = server_account(options.server_user)
    if options.start and not port_is_free(options.port):
        raise UsageError(f"port {options.port} is in use: choose another one with --port")
    check_target(options.into, owner, 0, ())  # before hours of reading
    with judged(place, Reading(options.pg_bindirs, options.database, scratch, progress)) as found:
        yield found, check_target(options.into, owner, found.needed_bytes, found.oids)


_Done = tuple[Climb, str | None, dict[int, Path], int]


def _load(found: ForeignDump, target: Target, options: RecoverOptions, progress: Progress) -> _Done:
    climb, addresses, spaces, done = Climb(Level.L4), list[str](), dict[int, Path](), list[int]()

    def load() -> tuple[Outcome, str]:
        prepare_target(target, found.where)
        with found.loaded(target, progress) as loaded:
            spaces.update(loaded.tablespaces)
            done.append(loaded.restored_bytes)
        publish(target)
        make_durable(found.programs, target)
        finish_target(target)
        said = found.said(loaded)
        if options.start:
            address = _start(found, target, SUPERUSER, options)
            addresses.append(address)
            said += "; the server answers"
        return Outcome.PASS, said

    climb_dump(climb, found)
    if not climb.measure(Level.L4, load):
        lacking = climb.steps[Level.L4].evidence
        if "locale" in lacking and found.script.form != "plain" and options.database is None:
            lacking += ": install it, or name a database of the locale C.UTF-8 with --database"
        raise climb.error or NotMeasured(lacking)
    return climb, next(iter(addresses), None), spaces, done[0]


def climb_dump(climb: Climb, found: ForeignDump) -> None:
    """Record what reading a dump has shown, L0 to L3."""
    climb.measure(Level.L0, lambda: (Outcome.PASS, f"{found.where} is there"))
    climb.step_over(Level.L1, found.unhashed())
    climb.measure(Level.L2, found.whole)
    climb.step_over(Level.L3, NO_WAL)


def climb_base(climb: Climb, found: ForeignBase, target: Target) -> bool:
    """Check an extracted base backup, L0 to L3; say whether nothing is wrong. What fails cannot be started any more."""
    files = sum(len(part.survey.files) for part in found.parts)
    climb.measure(Level.L0, lambda: (Outcome.PASS, f"{len(found.parts)} archives are there with {files} files"))
    climb.step_over(Level.L1, found.unhashed())
    climb.measure(Level.L2, lambda: found.check_files(target))
    if climb.error is None:
        climb.measure(Level.L3, lambda: found.check_wal(target, target.owner))
    if climb.error is not None:
        spoil(target)
    return climb.error is None


def _extract(found: ForeignBase, target: Target, options: RecoverOptions, progress: Progress) -> _Done:
    climb, addresses = Climb(Level.L4 if options.start else Level.L3), list[str]()
    restored = found.extract(target, progress, durable=True)

    def boot() -> tuple[Outcome, str]:
        superuser = bootstrap_superuser(target.directory) or SUPERUSER
        addresses.append(_start(found, target, superuser, options))
        return Outcome.PASS, "the server answers; recovery reached the end of the backup"

    if climb_base(climb, found, target):
        found.settle(target)
        keep_from_archiving(restored)
        if not options.start or climb.measure(Level.L4, boot):
            finish_target(target)
        else:
            spoil(target)
    spaces = {oid: target.tablespaces / str(oid) for oid in found.oids}
    return climb, next(iter(addresses), None), spaces, restored.restored_bytes


def _start(found: Foreign, target: Target, superuser: str, options: RecoverOptions) -> str:
    server = start_server(found.programs, target.directory, superuser, target.owner, options.port, _START_TIMEOUT_S)
    with connect(server.dsn) as connection:
        connection.execute("SELECT pg_is_in_recovery()")
    return server.url


def _of_file(place: Place, reading: Reading) -> Foreign:
    content = known_content(place.store, place.name or "")
    forms = {Form.SCRIPT: "plain", Form.CUSTOM: "custom"}
    role, survey = "dump", None
    if content.form == Form.TAR:
        survey = survey_tar(content.pieces(), content.where)
        role = role_of(survey, content.key) or "unknown"
    if role == "dump":
        form = forms.get(content.form or Form.TAR, "tar")
        header = survey.kept["toc.dat"] if survey else content.head
        script = Script(form, content, None, content.where, reading.database, header)
        return judge_dump(script, reading.bindirs, reading.progress)
    if role != "base" or survey is None:
        raise UsageError(f"{content.where} is a tar of neither a dump nor a data directory: {ACCEPTED}")
    part = part_of_tar(content, survey, role)
    if not segments_of([part]) and "pg_wal.tar" in {name.rpartition(".tar")[0] + ".tar" for name in files_of(place)}:
        return _of_folder(Place(place.store, None, place.path), reading)
    return judge_base(content.where, "base backup (tar)", [part], place.store.read(MANIFEST), reading.bindirs)


def _of_folder(place: Place, reading: Reading) -> Foreign:
    if place.path is not None and place.store.stat("toc.dat") is not None:
        return _directory_dump(place.path, place.url, reading)
    if place.store.stat("PG_VERSION") is not None:
        return judge_base(place.url, "base backup (folder)", parts_of_folder(place), None, reading.bindirs)
    parts = list[Part]()
    for name in files_of(place):
        content = open_content(place.store, name)
        if content is not None and content.form == Form.TAR:
            survey = survey_tar(content.pieces(), content.where)
            role = role_of(survey, name)
            if role is None or role == "dump":
                raise UsageError(f"{content.where} belongs to no base backup: give one dump, or one backup's folder")
            parts.append(part_of_tar(content, survey, role))
    if not parts:
        raise UsageError(f"{place.url} is a folder without a backup in it: {ACCEPTED}")
    return judge_base(place.url, "base backup (tar)", parts, place.store.read(MANIFEST), reading.bindirs)


def _directory_dump(folder: Path, where: str, reading: Reading) -> ForeignDump:
    refuse_special_files(folder)
    contents = known_content(LocalStore(folder), "toc.dat")
    if contents.form != Form.CUSTOM or contents.layers:
        raise IntegrityError(f"{where}/toc.dat is no table of contents of pg_dump")
    script = Script("directory", None, folder, where, reading.database, contents.head)
    return judge_dump(script, reading.bindirs, reading.progress)


def _fetch(place: Place, folder: Path, progress: Progress) -> None:
    """Bring the files of a folder in a bucket here.

    Raises:
        TargetRefused: there is no room.
    """
    infos = [info for info in place.store.objects("") if "/" not in info.key]
    check_target(folder / "room", None, sum(info.size_bytes for info in infos), ())
    done = 0
    for info in infos:
        with (folder / info.key).open("xb") as copy:
            for piece in raw_pieces(place.store, info.key):
                done += copy.write(piece)
                progress("fetch", done, None)
