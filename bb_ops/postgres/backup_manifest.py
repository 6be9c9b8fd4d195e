"""PostgreSQL's own manifest of a backup (PostgreSQL manual, 75 Backup Manifest Format), as far as bb_ops reads it."""

import hashlib
import json
from dataclasses import dataclass

from bb_ops.errors import IntegrityError
from bb_ops.postgres.lsn import Lsn

_LAST_LINE = b'"Manifest-Checksum"'


@dataclass(frozen=True)
class ManifestFacts:
    """What a manifest says of its backup.

    Attributes:
        system_id: None before PostgreSQL 17, whose manifests do not say it.
        start_lsn: Where replay begins, on the last timeline that it names.
    """

    system_id: str | None
    timeline: int
    start_lsn: Lsn
    end_lsn: Lsn
    files: int


def read_backup_manifest(data: bytes) -> ManifestFacts:
    """Read a manifest and check it against its own checksum.

    Raises:
        IntegrityError: it is cut, changed, or no manifest.
    """
    text, found, last = data.rpartition(_LAST_LINE)
    if not found or hashlib.sha256(text).hexdigest().encode() not in last:
        raise IntegrityError("the backup manifest does not agree with its own checksum")
    try:
        document = json.loads(data)
        newest = max(document["WAL-Ranges"], key=lambda wal: int(wal["Timeline"]))
        return ManifestFacts(
            system_id=str(document["System-Identifier"]) if "System-Identifier" in document else None,
            timeline=int(newest["Timeline"]),
            start_lsn=Lsn.parse(newest["Start-LSN"]),
            end_lsn=Lsn.parse(newest["End-LSN"]),
            files=len(document["Files"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the backup manifest is not of a form that we know") from error
