"""Restore an increment: the whole chain is extracted beside, checked, and joined by pg_combinebackup.

Everything happens inside the target's directory, on its file system, so that the result is moved into place by
renames. Until the control file appears, which is last, no server starts there. A killed restore goes on behind the
parts that were finished; what it had joined only in part is joined anew.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from bb_ops import process
from bb_ops.clock import Stopwatch
from bb_ops.errors import IntegrityError, NotMeasured, TargetRefused, UsageError
from bb_ops.postgres import inspect
from bb_ops.postgres.programs import Programs
from bb_ops.progress import Progress
from bb_ops.recovery.extract import CONTROL_FILE, CONTROL_PARTIAL
from bb_ops.recovery.finished_parts import FinishedParts
from bb_ops.recovery.restore import (
    Restored,
    archives_of,
    begin_restore,
    complete_target,
    extract_backup,
    finished_bytes,
    read_fingerprints,
    restore,
)
from bb_ops.recovery.target import COMBINED, Target, remove_tree, writing_below
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.repository import Repository

_LOGGER = logging.getLogger(__name__)
_WORKSHOP = ".bb_ops-chain"
_RESULT = "result"
_TIMEOUT_S = 24 * 3600.0
_LINKS_SINCE = 18
_FICLONE = 0x40049409
"""ioctl_ficlone(2): share a file's blocks, where the file system can."""


def restore_backup(  # noqa: PLR0913 - each is a separate fact
    repository: Repository,
    chain: Sequence[PhysicalCommit],
    target: Target,
    programs: Callable[[], Programs],
    progress: Progress,
    *,
    durable: bool,
    plan: str | None = None,
) -> Restored:
    """Restore a full backup, or an increment with all that it builds on, into a checked target.

    Args:
        repository: Where the backups are.
        chain: From ``CatalogEntry.chain``: the full first, the wanted backup last.
        target: From ``check_target``.
        programs: Finds PostgreSQL's programs; called only where a chain needs them.
        progress: Told about raw bytes.
        durable: Force everything to disk before the control file appears.
        plan: What else is wanted, as an opaque hash; another one's interrupted restore is not continued.

    Raises:
        IntegrityError: an object is missing or damaged, or the chain does not fit together; the message names it.
        KeyRejected: our identities do not open it.
        NotMeasured: pg_combinebackup or pg_verifybackup is not installed.
    """
    refuse_unfit(chain)
    if len(chain) == 1:
        return restore(repository, chain[0], target, progress, durable=durable, plan=plan)
    return _restore_chain(repository, chain, target, programs(), progress, durable=durable, plan=plan)


def require_programs(chain: Sequence[PhysicalCommit], programs: Callable[[], Programs]) -> None:
    """Prove, before anything is written, that the programs to join a chain are here.

    Raises:
        UsageError: they are not.
    """
    if len(chain) == 1:
        return
    try:
        programs().path("pg_combinebackup")
    except NotMeasured as error:
        raise UsageError(f"{chain[-1].id} is an increment, which pg_combinebackup must join: {error}") from error


def refuse_unfit(chain: Sequence[PhysicalCommit]) -> None:
    """Refuse what pg_combinebackup would join into garbage (PostgreSQL manual, pg_combinebackup, Limitations).

    Raises:
        IntegrityError: the backups are not one unbroken chain of one system with one state of page checksums.
    """
    if chain[0].parent_id is not None:
        raise IntegrityError(f"{chain[-1].id} builds on {chain[0].parent_id}, which is missing")
    for parent, child in pairwise(chain):
        same = ("system_id", "server_major", "timeline", "data_checksums")
        differs = [name for name in same if getattr(parent, name) != getattr(child, name)]
        if child.parent_id != parent.id or differs:
            raise IntegrityError(
                f"{child.id} does not fit on {parent.id}: {', '.join(differs) or 'it has another parent'} differs"
            )


def _restore_chain(  # noqa: PLR0913 - each is a separate fact
    repository: Repository,
    chain: Sequence[PhysicalCommit],
    target: Target,
    programs: Programs,
    progress: Progress,
    *,
    durable: bool,
    plan: str | None,
) -> Restored:
    watch, last = Stopwatch(), chain[-1]
    facts = {"backup_id": last.id, "region": repository.region, "increments": len(chain) - 1}
    _LOGGER.info("chain restore starts", extra=facts)
    programs.path("pg_combinebackup"), programs.path("pg_verifybackup")
    parts = begin_restore(target, last.id, plan, durable=durable)
    workshop = target.directory / _WORKSHOP
    total = sum(entry.raw_size_bytes for commit in chain for entry in archives_of(commit, with_wal=commit is last))
    found = total if COMBINED in parts else sum(finished_bytes(parts, commit) for commit in chain)
    if COMBINED not in parts:
        with writing_below(target.directory):
            _make(target, workshop)
        members = _extract_members(repository, chain, target, programs, parts, progress)
        progress("combine", 0, None)
        try:
            _combine(programs, chain, members, target, workshop / _RESULT)
        except IntegrityError:
            parts.forget()
            raise
        with writing_below(target.directory):
            parts.add(COMBINED)
    with writing_below(target.directory):
        _move_in(target, workshop)
    complete_target(target, durable=durable)
    _LOGGER.info("chain restore ends", extra={**facts, "duration_s": watch.elapsed_s, "size_bytes": total})
    ids = tuple(commit.id for commit in chain)
    return Restored(target, total, read_fingerprints(repository, last), watch.elapsed_s, ids, found)


def _extract_members(  # noqa: PLR0913 - each is a separate fact
    repository: Repository,
    chain: Sequence[PhysicalCommit],
    target: Target,
    programs: Programs,
    parts: FinishedParts,
    progress: Progress,
) -> list[Target]:
    """Extract every backup of a chain and check it, also one that an interrupted restore had extracted."""
    total = sum(commit.size_bytes for commit in chain)
    members: list[Target] = []
    done = 0
    for commit in chain:
        before = done
        member = _member(target, target.directory / _WORKSHOP / f"{commit.depth:04d}")
        done += extract_backup(
            repository,
            commit,
            member,
            parts,
            lambda now, before=before: progress("restore", before + now, total),  # type: ignore[misc]
            with_wal=commit is chain[-1],
        )
        partial = member.directory / CONTROL_PARTIAL
        if partial.exists():
            partial.rename(member.directory / CONTROL_FILE)
        try:
            _check_member(programs, member, commit)
        except IntegrityError:
            parts.forget()
            raise
        members.append(member)
    return members


def _member(target: Target, folder: Path) -> Target:
    member = Target(folder / "data", folder / "tablespaces", target.owner)
    with writing_below(target.directory):
        for path in (folder, member.directory):
            _make(target, path)
    return member


def _check_member(programs: Programs, member: Target, commit: PhysicalCommit) -> None:
    """Prove that a backup of the chain is complete: pg_combinebackup would not miss a file that is not there."""
    complaints = inspect.check_manifest(programs, member.directory, member.owner, ignore=())
    if complaints:
        raise IntegrityError(f"{commit.id} differs from its backup_manifest: {'; '.join(complaints)}")


def _combine(
    programs: Programs, chain: Sequence[PhysicalCommit], members: Sequence[Target], target: Target, result: Path
) -> None:
    last = members[-1]
    mappings = []
    if chain[-1].tablespaces:
        with writing_below(target.directory):
            _make(target, target.tablespaces)
    for space in chain[-1].tablespaces:
        old, new = last.tablespaces / str(space.oid), target.tablespaces / str(space.oid)
        mappings.append(f"--tablespace-mapping={_escape(old)}={_escape(new)}")
    answer = process.run(
        [
            programs.path("pg_combinebackup"),
            "--no-sync",  # the caller forces everything to disk at once, or need not
            *_copy_method(programs, target, last),
            *mappings,
            f"--output={result}",
            *(member.directory for member in members),
        ],
        timeout_s=_TIMEOUT_S,
        run_as=target.owner,
        accept=frozenset({0, 1}),
    )
    if answer.returncode == 0:
        return
    said = " ".join(line for line in answer.stderr.splitlines() if "error:" in line or "fatal:" in line)
    if "No space left" in said:
        raise TargetRefused(f"{target.directory} has too little room to join the chain of {chain[-1].id}: free some")
    raise IntegrityError(f"the chain from {chain[0].id} to {chain[-1].id} cannot be joined: {said or answer.stderr}")


def _copy_method(programs: Programs, target: Target, last: Target) -> list[str]:
    """Choose how unchanged files get into the result. The chain is removed afterwards, so that sharing is safe."""
    one_file_system = not target.tablespaces.exists() or (
        target.tablespaces.stat().st_dev == target.directory.stat().st_dev
    )
    if not one_file_system:
        return []
    if programs.major >= _LINKS_SINCE:
        return ["--link"]
    return ["--clone"] if _can_clone(last.directory) else []


def _can_clone(directory: Path) -> bool:
    source, copy = directory / "PG_VERSION", directory.parent / "clone"
    try:
        with source.open("rb") as reader, copy.open("wb") as writer:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError:
        return False
    finally:
        copy.unlink(missing_ok=True)
    return True


def _move_in(target: Target, workshop: Path) -> None:
    """Move the result into place, the control file under another name, and remove the chain. Safe to repeat."""
    result = workshop / _RESULT
    if (result / CONTROL_FILE).exists():
        (result / CONTROL_FILE).rename(result / CONTROL_PARTIAL)
    for entry in list(result.iterdir()) if result.exists() else ():
        entry.rename(target.directory / entry.name)
    remove_tree(workshop)


def _make(target: Target, path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    os.chmod(path, 0o700)  # noqa: PTH101 - whatever the umask
    target.chown(path)


def _escape(path: Path) -> str:
    """Escape a directory as --tablespace-mapping wants it (pg_combinebackup.c, add_tablespace_mapping)."""
    return str(path).replace("=", "\\=")
