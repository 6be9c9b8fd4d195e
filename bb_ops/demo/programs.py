"""Where the demo's programs are: in this environment, or copied into the world for an account that cannot reach it."""

import shutil
from pathlib import Path

from bb_ops import files
from bb_ops.demo import accounts, object_stores, postgres
from bb_ops.errors import UsageError
from bb_ops.process import Account


def locate(directory: Path, run_as: Account | None) -> tuple[Path, Path]:
    """Return PostgreSQL's program directory and the SeaweedFS program, both such that the account can run them.

    An environment under a home of mode 0700 is out of reach for another account; then the programs are copied into
    the world's directory, once. Parents are never opened up. A killed copy leaves only a partial name.

    Raises:
        UsageError: a wheel is missing, or the account cannot run even a copy.
    """
    tree, weed = postgres.wheel_tree(), object_stores.weed_program()
    if not _can_run_postgres(tree, run_as):
        tree = copied_postgres(tree, directory / "programs")
    if not accounts.can_run([str(weed), "version"], run_as):
        weed = _copied(weed, directory / "programs" / "weed")
    if not (_can_run_postgres(tree, run_as) and accounts.can_run([str(weed), "version"], run_as)):
        name = "this user" if run_as is None else f"account {run_as.name!r}"
        raise UsageError(f"{name} cannot run {tree}/bin and {weed}: choose a directory that allows programs")
    return tree / "bin", weed


def _can_run_postgres(tree: Path, run_as: Account | None) -> bool:
    # initdb also needs the wheel's own libraries, which lie outside its tree
    return all(accounts.can_run([str(tree / "bin" / name), "--version"], run_as) for name in ("postgres", "initdb"))


def copied_postgres(tree: Path, programs: Path) -> Path:
    """Copy the tree, and before it the libraries that its programs look for three levels up ($ORIGIN, ld.so(8))."""
    site, relative = tree.parent.parent, tree.relative_to(tree.parent.parent)
    for libraries in site.glob(f"{tree.parent.name}.libs"):
        _copied(libraries, programs / libraries.name)
    return _copied(tree, programs / relative)


def _copied(source: Path, target: Path) -> Path:
    if target.exists():
        return target
    _open_directories(target.parent)
    for leftover in target.parent.glob(f".{target.name}.*{files.PARTIAL_SUFFIX}"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    partial = files.partial_path(target)
    if source.is_dir():
        shutil.copytree(source, partial, symlinks=True)
    else:
        shutil.copy2(source, partial)
    for path in (partial, *partial.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    partial.rename(target)
    return target


def _open_directories(directory: Path) -> None:
    """Create a directory of the world, and those it lacks above it, for everyone to enter whatever our umask is."""
    if not directory.exists():
        _open_directories(directory.parent)
        directory.mkdir()
        directory.chmod(0o755)
