"""Wires settings into the objects that domains work with. The command line and Dagster both start here.

A domain is imported by the method that makes its options: a command pays for what it does, 0.1 s less for most.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from bb_ops.clock import Clock, SystemClock
from bb_ops.dsn import Dsn
from bb_ops.errors import SettingsError, UsageError
from bb_ops.invariants import Invariant, read_invariants
from bb_ops.progress import Progress
from bb_ops.repository.ids import SlotKey
from bb_ops.repository.layout import MARKER
from bb_ops.repository.reports import Level
from bb_ops.repository.repository import KeyFiles, Repository
from bb_ops.settings import RepositorySettings, Settings, process_environment, read_settings
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.local import LocalStore

if TYPE_CHECKING:
    from bb_ops.backup.full import FullBackupOptions
    from bb_ops.backup.incremental import IncrementalBackupOptions
    from bb_ops.backup.interval import IntervalOptions
    from bb_ops.backup.logical import DumpOptions
    from bb_ops.backup.wal_options import WalOptions
    from bb_ops.recovery.combine import CombineOptions
    from bb_ops.recovery.foreign.place import Place
    from bb_ops.recovery.moment.facts import Locate
    from bb_ops.recovery.moment.recovery_target import RecoveryTarget
    from bb_ops.repository.catalog import CatalogEntry
    from bb_ops.repository.drills import DrillReport
    from bb_ops.validation.denial import Denial
    from bb_ops.validation.restore_test import RestoreTestOptions


@dataclass(frozen=True)
class OurBackup:
    """A backup of ours and where it is.

    Attributes:
        configured: The repository is one of those that are set, where proofs are recorded.
    """

    repository: Repository
    entry: "CatalogEntry"
    configured: bool


@dataclass(frozen=True)
class Operations:
    """Everything that a command or an asset needs, made from settings."""

    settings: Settings
    clock: Clock

    @property
    def database(self) -> Dsn:
        """The server to back up."""
        if self.settings.database is None:
            raise SettingsError("DATABASE_URL is not set: give the server to back up as postgresql://…")
        return self.settings.database

    @property
    def repository(self) -> Repository:
        """The first repository."""
        if self.settings.repository is None:
            raise SettingsError("BB_OPS_REPOSITORY is not set: give s3://bucket/prefix or file:///directory")
        return self._repository(self.settings.repository)

    @property
    def replica(self) -> Repository:
        """The second repository."""
        if self.settings.replica is None:
            raise SettingsError("BB_OPS_REPLICA is not set: give s3://bucket/prefix or file:///directory")
        return self._repository(self.settings.replica)

    @property
    def repositories(self) -> list[Repository]:
        """Every repository that is set, the first one first."""
        return [self.repository] + ([self.replica] if self.settings.replica else [])

    def region(self, name: str | None) -> Repository:
        """Return the repository of a region; the first one when ``name`` is None."""
        if name is None:
            return self.repository
        for repository in self.repositories:
            if repository.region == name:
                return repository
        known = ", ".join(repository.region for repository in self.repositories)
        raise SettingsError(f"there is no region {name!r}: known are {known}")

    @property
    def invariants(self) -> tuple[Invariant, ...]:
        """What must be true of the application's data; empty where no file declares anything.

        Raises:
            SettingsError: the file has faults.
        """
        return read_invariants(self.settings.invariants_file) if self.settings.invariants_file else ()

    def place(self, source: str) -> "Place":
        """Return the file or folder that a path or an address names.

        Raises:
            UsageError: there is none.
        """
        from bb_ops.recovery.foreign.place import Place  # noqa: PLC0415 - as above

        if source.startswith("s3://"):
            root, _, name = source.rstrip("/").rpartition("/")
            if root.startswith("s3://"):
                store = self._store_at(root)
                if store.stat(name) is not None:
                    return Place(store, name, None)
            folder = self._store_at(source.rstrip("/"))
            if next(iter(folder.objects("")), None) is None:
                raise UsageError(f"{source}: there is nothing: check the address")
            return Place(folder, None, None)
        path = Path(os.path.abspath(source.removeprefix("file://")))  # noqa: PTH100 - resolve() would follow links
        if path.is_dir():
            return Place(LocalStore(path), None, path)
        if path.is_file():
            return Place(LocalStore(path.parent), path.name, path.parent)
        if path.exists():
            raise UsageError(f"{source} is neither a file nor a folder")
        raise UsageError(
            f"{source!r} is no backup id: see `bb-ops backup list`, or say latest; a file or folder is not there either"
        )

    def find(self, source: str, region: str | None) -> "OurBackup | None":
        """Return our own backup that a SOURCE names: an id, ``latest``, a repository or one backup in it, by address.

        Returns:
            None where it is a place without a repository of ours.

        Raises:
            RepositoryMissing: there is no such backup.
            UsageError: a region is given for an address, or nothing is there.
        """
        from bb_ops.recovery.foreign.source import is_place, named_backup  # noqa: PLC0415 - as above
        from bb_ops.repository.catalog import read_catalog  # noqa: PLC0415 - as above

        if not is_place(source):
            repository = self.region(region)
            return OurBackup(repository, read_catalog(repository).find(source), configured=True)
        if region is not None:
            raise UsageError("--region belongs to a backup's id: an address says itself where it is")
        named = named_backup(source)
        found = self._repository_at(named.root if named else source, named.cluster if named else None)
        if found is None:
            return None
        repository, configured = found
        entry = read_catalog(repository).find(named.backup_id if named else "latest")
        return OurBackup(repository, entry, configured=configured)

    def _repository_at(self, address: str, cluster: str | None) -> tuple[Repository, bool] | None:
        """Return the repository at an address, and whether it is one of the configured; None where there is none."""
        address = address.rstrip("/")
        if not address.startswith("s3://"):
            address = f"file://{os.path.abspath(address.removeprefix('file://'))}"  # noqa: PTH100 - as above
        for place in (self.settings.repository, self.settings.replica):
            if place is not None and place.url == address and cluster in {None, self.settings.cluster}:
                return self._repository(place), True
        store = self._store_at(address)
        if address.startswith("file://") and not Path(address.removeprefix("file://")).is_dir():
            return None
        if store.stat(MARKER) is None:
            return None
        known = store.children("")
        if cluster is None and self.settings.cluster not in known and len(known) == 1:
            cluster = known[0]
        return Repository(store, address, cluster or self.settings.cluster, self._keys, self.clock), False

    def _store_at(self, address: str) -> ObjectStore:
        """Return a store at any address, reached as the configured one in the same bucket is, else as the first."""
        if not address.startswith("s3://"):
            return LocalStore(Path(address.removeprefix("file://")))
        bucket = urlparse(address).netloc
        configured = [one for one in (self.settings.repository, self.settings.replica) if one is not None]
        same = [one for one in configured if one.url.startswith("s3://") and urlparse(one.url).netloc == bucket]
        return _store(replace(same[0] if same else self.settings.elsewhere, url=address))

    def full_backup_options(self, *, slot: SlotKey | None = None, new_lineage: bool = False) -> "FullBackupOptions":
        """Return how full backups are taken."""
        from bb_ops.backup.full import FullBackupOptions  # noqa: PLC0415 - as above

        return FullBackupOptions(
            compression_level=self.settings.compression_level,
            compression_threads=self.settings.compression_threads,
            part_size_bytes=self.settings.part_size_bytes,
            fingerprint_budget_s=self.settings.fingerprint_budget_s,
            max_rate_mib=self.settings.max_rate_mib,
            new_lineage=new_lineage,
            slot=slot,
        )

    def incremental_backup_options(self) -> "IncrementalBackupOptions":
        """Return how increments are taken."""
        from bb_ops.backup.incremental import IncrementalBackupOptions  # noqa: PLC0415 - as above

        return IncrementalBackupOptions(
            compression_level=self.settings.compression_level,
            compression_threads=self.settings.compression_threads,
            part_size_bytes=self.settings.part_size_bytes,
            fingerprint_budget_s=self.settings.fingerprint_budget_s,
            max_rate_mib=self.settings.max_rate_mib,
            most_increments=self.settings.incremental_depth,
        )

    @property
    def interval_options(self) -> "IntervalOptions":
        """What an hour takes: WAL, and blocks where the server can send them."""
        from bb_ops.backup.interval import IntervalOptions  # noqa: PLC0415 - as above

        return IntervalOptions(wal=self.wal_options, blocks=self.incremental_backup_options())

    def combine_options(self) -> "CombineOptions":
        """Return how a chain is made into a full."""
        from bb_ops.recovery.combine import CombineOptions  # noqa: PLC0415 - as above

        settings = self.settings
        return CombineOptions(
            compression_level=settings.compression_level,
            compression_threads=settings.compression_threads,
            part_size_bytes=settings.part_size_bytes,
            pg_bindirs=settings.pg_bindirs,
            server_user=settings.server_user,
            scratch_directory=settings.scratch_directory,
        )

    @property
    def wal_options(self) -> "WalOptions":
        """How WAL is streamed."""
        from bb_ops.backup.wal_options import WalOptions  # noqa: PLC0415 - as above

        settings = self.settings
        return WalOptions(
            partial_interval_s=settings.wal_partial_interval_s,
            retained_limit_bytes=settings.wal_retained_limit_bytes,
            compression_level=settings.compression_level,
            scratch=settings.scratch_directory,
            second=self.replica if settings.wal_both_regions else None,
        )

    def dump_options(
        self, *, databases: tuple[str, ...] = (), slot: SlotKey | None = None, new_lineage: bool = False
    ) -> "DumpOptions":
        """Return how logical and schema backups are taken."""
        from bb_ops.backup.logical import DumpOptions  # noqa: PLC0415 - as above

        return DumpOptions(
            databases=databases,
            pg_bindirs=self.settings.pg_bindirs,
            compression_level=self.settings.compression_level,
            compression_threads=self.settings.compression_threads,
            fingerprint_budget_s=self.settings.fingerprint_budget_s,
            new_lineage=new_lineage,
            slot=slot,
        )

    def locate(self, target: "RecoveryTarget", progress: Progress) -> "Locate | None":
        """Return what finds a target's transaction or restore point in archived WAL; None where none is needed."""
        from bb_ops.recovery.events.locate import locator  # noqa: PLC0415 - as above

        return locator(target, self.settings.pg_bindirs, self.settings.scratch_directory, progress)

    def restore_test_options(self, level: Level) -> "RestoreTestOptions":
        """Return how restore tests are done."""
        from bb_ops.validation.restore_test import RestoreTestOptions  # noqa: PLC0415 - as above

        settings = self.settings
        return RestoreTestOptions(
            level, settings.pg_bindirs, settings.server_user, settings.scratch_directory, self.invariants
        )

    def _repository(self, place: RepositorySettings) -> Repository:
        return Repository(_store(place), place.region, self.settings.cluster, self._keys, self.clock)

    @property
    def _keys(self) -> KeyFiles:
        settings = self.settings
        return KeyFiles(
            encryption=settings.encryption,
            recipients=settings.recipients_file,
            identity=settings.identity_file,
            signing=settings.signing_key_file,
            signing_public=settings.signing_public_key_file,
        )


def operations(settings: Settings | None = None, clock: Clock | None = None) -> Operations:
    """Return the operations that the settings describe; contacts nothing.

    Raises:
        SettingsError: a setting is wrong.
    """
    return Operations(settings or read_settings(), clock or SystemClock())


def denial(region: str | None, offline_key: Path | None, *, needs_key: bool = True) -> "Denial":
    """Return what is left of the settings when the other region is dead; see ``deny``. They are not checked here."""
    from bb_ops.validation.denial import deny  # noqa: PLC0415 - as above

    return deny(process_environment(), region, offline_key, needs_key=needs_key)


def survivor(environment: Mapping[str, str], region: str, clock: Clock | None = None) -> Operations:
    """Return the operations of a region that lives alone.

    Raises:
        SettingsError: a setting of it is wrong.
    """
    settings = read_settings(environment)
    if settings.repository is not None:
        settings = replace(settings, repository=replace(settings.repository, region=region))
    return operations(settings, clock)


def recorded(left: "Denial", report: "DrillReport") -> "DrillReport":
    """Store a drill's report in the region that lives, where a signing key is set; return it as it is kept.

    Raises:
        StoreFailed: the store refuses.
    """
    from bb_ops.validation.drill import record  # noqa: PLC0415 - as above

    if not left.signing:
        return report
    return record(survivor({**left.environment, **left.signing}, left.region).repository, report)


def _store(place: RepositorySettings) -> ObjectStore:
    if place.url.startswith("file://"):
        return LocalStore(Path(place.url.removeprefix("file://")))
    from bb_ops.storage.s3 import S3Store  # noqa: PLC0415 - the SDK costs 0.3 s that local repositories need not pay

    url = urlparse(place.url)
    return S3Store(
        url.netloc,
        url.path,
        endpoint_url=place.endpoint_url,
        region=place.aws_region,
        access_key_id=place.access_key_id,
        secret_access_key=place.secret_access_key,
    )
