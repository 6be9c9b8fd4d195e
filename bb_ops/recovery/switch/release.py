"""Remove an old data directory that a switch has kept, once its replacement is backed up."""

from pathlib import Path

from bb_ops.clock import Clock
from bb_ops.errors import TargetRefused
from bb_ops.files import fsync_directory
from bb_ops.findings import Value
from bb_ops.postgres.data_directory import inode_of, processes_in, server_in, tablespaces_of
from bb_ops.recovery.switch.journal import Journal, Step, is_spaces_path
from bb_ops.recovery.target import remove_tree

_TOMBSTONE = ".bb_ops-released"


class Released(Value):
    """What a release removed.

    Attributes:
        old: The directory that is no more.
        left: What belonged to the old cluster elsewhere and is not touched: tablespaces that somebody made a place for.
    """

    schema_id: str = "bb-ops/release/1"
    old: Path
    journal: Path
    left: tuple[Path, ...]


def refusals(journal: Journal, *, backed_up: bool) -> list[str]:
    """Say why an old data directory may not be removed.

    Args:
        journal: The switch that kept it.
        backed_up: Whether a backup of the new timeline exists.
    """
    old = journal.old
    if journal.did(Step.ROLLED_BACK) or not journal.did(Step.STARTED):
        return [f"the switch that set {old} aside has not ended: repeat it first"]
    found = []
    if not backed_up:
        found.append("there is no full backup of the new timeline yet: run `bb-ops backup full` first")
    if inode_of(old) is None:
        return found  # what is left of it bears a name that nobody else uses
    if inode_of(old) != journal.live_inode or old.is_symlink():
        found.append(f"{old} is not the directory that {journal.path} names")
    elif server_in(old) is not None or processes_in(old):
        found.append(f"a server runs in {old}: stop it first")
    mounts = [point for path in (old, *_our_spaces(journal)) for point in _mounts_in(path)]
    if mounts:
        found.append(f"{' and '.join(mounts)} is a mount point: unmount it first")
    return found


def release(journal: Journal, clock: Clock) -> Released:
    """Remove the old data directory. Safe to kill: called again it goes on; other things are never touched.

    Raises:
        TargetRefused: something that is not the old data directory is in the way.
    """
    old = journal.old
    tombstone = old.with_name(old.name + _TOMBSTONE)
    if inode_of(old) == journal.live_inode:
        if tombstone.exists():
            raise TargetRefused(f"{tombstone} exists already: look what it is, and move it away")
        old.rename(tombstone)  # from now on nobody takes it for a data directory
        fsync_directory(old.parent)
    if inode_of(tombstone) == journal.live_inode:
        remove_tree(tombstone)
        fsync_directory(old.parent)
    for space in _our_spaces(journal):
        remove_tree(space)
        if not any(space.parent.iterdir()):
            space.parent.rmdir()
    journal.with_step(Step.RELEASED, f"{old} was removed", clock)
    left = tuple(path for path in journal.old_tablespaces.values() if path.exists())
    return Released(old=old, journal=journal.path, left=left)


def _our_spaces(journal: Journal) -> list[Path]:
    """Return the old cluster's tablespaces that lie where an earlier switch put them, unless the new one uses them."""
    used = set(tablespaces_of(journal.replace).values())
    places = [path for path in journal.old_tablespaces.values() if is_spaces_path(path.parent, journal.replace)]
    return [path for path in places if path not in used and path.is_dir() and not path.is_symlink()]


def _mounts_in(directory: Path) -> list[str]:
    """Return the mount points that are or lie in a directory (proc(5), the fifth field of ``mountinfo``)."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in points if Path(point).is_relative_to(directory)]
