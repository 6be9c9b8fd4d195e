"""What recoveries measured: signed records beside the backups, from which the next one's duration is predicted."""

from typing import Literal

from pydantic import AwareDatetime, ValidationError

from bb_ops.errors import AlreadyExists, IntegrityError
from bb_ops.findings import Value
from bb_ops.repository import layout
from bb_ops.repository.repository import Repository
from bb_ops.repository.signing import open_document, sign_document

_NEWEST = 20


class RecoveryRecord(Value):
    """One recovery that reached its target.

    Attributes:
        target: As it was typed.
        restored_bytes: Raw bytes of the backups.
        restore_s: Seconds from the first byte read to a complete directory.
        replayed_bytes: Of WAL behind the backup's end.
        replay_s: Seconds from the server's start to the end of recovery.
        duration_s: Of all, with its checks.
    """

    schema_id: Literal["bb-ops/recovery-record/1"] = "bb-ops/recovery-record/1"
    id: str
    backup_id: str
    region: str
    target: str
    restored_bytes: int
    restore_s: float | None
    replayed_bytes: int
    replay_s: float | None
    duration_s: float
    proof: str | None
    started_at: AwareDatetime
    host: str
    bb_ops_version: str


def record_recovery(repository: Repository, system_id: str, record: RecoveryRecord) -> bool:
    """Store a record, once; return whether it could be signed here. Safe to repeat.

    Raises:
        StoreFailed: the store refuses.
    """
    if not repository.can_sign:
        return False
    document = sign_document(record.model_dump(mode="json"), repository.signing_key)
    try:
        repository.store.create(layout.recovery_key(repository.cluster, system_id, record.id), document)
    except AlreadyExists:
        return True
    return True


def read_recoveries(repository: Repository, system_id: str) -> list[RecoveryRecord]:
    """Return the newest records, oldest first.

    Raises:
        IntegrityError, KeyRejected: one is damaged or forged.
    """
    prefix = layout.recovery_prefix(repository.cluster, system_id)
    keys = [info.key for info in repository.store.objects(prefix)][-_NEWEST:]
    found = []
    for key in keys:
        data = repository.store.read(key)
        if data is None:
            continue
        where = f"{repository.store.url}/{key}"
        try:
            found.append(RecoveryRecord.model_validate(open_document(data, where, repository.public_key)))
        except ValidationError as error:
            raise IntegrityError(f"{where} is signed but not a record of a format that we know") from error
    return found
