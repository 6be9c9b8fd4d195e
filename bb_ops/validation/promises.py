"""Whether a region's archive of WAL holds what its signed records promise, and joins its backups without a hole."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bb_ops.errors import FindingsPresent, IntegrityError
from bb_ops.findings import Outcome
from bb_ops.postgres.timelines import history_name
from bb_ops.repository import wal, windows
from bb_ops.repository.catalog import Catalog
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Receipt, Span
from bb_ops.repository.wal_listing import TimelineWal
from bb_ops.storage.sealed import Expected

_THREADS = 8
_MOST_NAMED = 3


@dataclass(frozen=True)
class _Promises:
    """What the records of one timeline promise.

    Attributes:
        objects: What must be stored, by key.
        lost: Records that a listing showed and that are gone.
    """

    objects: dict[str, Expected]
    lost: list[str]


def examine_archive(repository: Repository, catalog: Catalog, system_id: str) -> tuple[Outcome, str]:
    """Compare all archived WAL of a system with its records, by presence and size; nothing is opened.

    Every segment that a receipt or a sealed span names counts, those before the oldest backup too: what is promised is
    there. A hole counts where a full backup has not recorded it (``Windows.open_gaps``).

    Raises:
        IntegrityError: a segment is gone or has another size, or a record is damaged; the message names them.
        KeyRejected: a record is forged.
        FindingsPresent: WAL is missing behind a backup, and nothing is recorded of it.
    """
    facts = windows.read_facts(repository, system_id)
    if facts.damaged:
        raise facts.damaged[0]
    promised: dict[str, Expected] = {}
    lacking: list[str] = []
    for listing in facts.timelines.values():
        found = _promised(repository, system_id, listing)
        promised |= found.objects
        lacking += found.lost
    stored = {
        info.key: info.size_bytes for info in repository.store.objects(wal.wal_prefix(repository.cluster, system_id))
    }
    lacking += list(_lacking(repository, promised, stored))
    if lacking:
        more = f"; and {len(lacking) - _MOST_NAMED} more" if len(lacking) > _MOST_NAMED else ""
        raise IntegrityError(
            f"the archive lacks WAL that its records promise: {'; '.join(lacking[:_MOST_NAMED])}{more}"
        )
    backups = [
        entry.physical for entry in catalog.physical if entry.commit.system_id == system_id and not entry.problems
    ]
    seen = windows.recovery_windows(backups, facts, {})
    if seen.open_gaps:
        raise FindingsPresent("; ".join(seen.open_gaps[:_MOST_NAMED]))
    if not promised:
        return Outcome.PASS, "no WAL is archived there: what was committed after the newest backup would be lost"
    said = f"{len(promised)} files of WAL are there with the sizes that their signed records promise"
    recorded = f"; {len(seen.gaps)} holes, left behind by a full backup" if seen.gaps else ", without a hole"
    return Outcome.PASS, f"{said}{recorded} since the oldest backup, {backups[0].id}" if backups else said


def _promised(repository: Repository, system_id: str, listing: TimelineWal) -> _Promises:
    cluster, timeline = repository.cluster, listing.timeline
    names = [*listing.receipts, *([history_name(timeline)] if listing.history else [])]
    keys = [wal.receipt_key(cluster, system_id, timeline, name) for name in names]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="promises") as pool:
        receipts = list(pool.map(lambda key: wal.read_record(repository, key, Receipt), keys))
    span_keys = [wal.span_key(cluster, system_id, timeline, one.start, one.end) for one in listing.spans]
    spans = [wal.read_record(repository, key, Span) for key in span_keys]
    gone = [key for key, record in zip((*keys, *span_keys), (*receipts, *spans), strict=True) if record is None]
    found = [receipt for receipt in receipts if receipt is not None]
    found += [span.receipt(segment) for span in spans if span is not None for segment in span.segments]
    return _Promises(
        {receipt.expected.key: receipt.expected for receipt in found},
        [f"{repository.store.url}/{key} is missing" for key in gone],
    )


def _lacking(repository: Repository, promised: dict[str, Expected], stored: dict[str, int]) -> Iterator[str]:
    for key, expected in sorted(promised.items()):
        if key not in stored:
            yield f"{repository.store.url}/{key} is missing"
        elif stored[key] != expected.size_bytes:
            yield f"{repository.store.url}/{key} has {stored[key]} bytes instead of {expected.size_bytes}"
