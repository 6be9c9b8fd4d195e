"""What a SOURCE names, and what content is by its first bytes: never by the end of a name. Pure."""

import re
from enum import StrEnum
from typing import NamedTuple

from bb_ops.errors import BbOpsError, IntegrityError, UsageError
from bb_ops.postgres.archive_header import MAGIC
from bb_ops.repository.ids import is_backup_id
from bb_ops.repository.layout import COMMIT_NAME

HEAD_BYTES = 8192
_BACKUP = re.compile(r"(?P<root>.+?)/(?P<cluster>[^/]+)/(?P<system>[0-9]+)/base/(?P<id>[^/]+)")
_TAR_AT, _TAR = 257, b"ustar"
_SCRIPT = re.compile(
    rb"\A(?:\xef\xbb\xbf)?(?:--\r?\n|\s|\\restrict [A-Za-z0-9]+)*-- PostgreSQL database (?:cluster )?dump\b"
)
_SHOWN_BYTES = 8
ACCEPTED = (
    "accepted are our own backups, dumps of pg_dump and pg_dumpall (script, custom, directory, tar) and base backups "
    "of pg_basebackup (folder, tar), as they are or compressed by gzip or zstd"
)


class Form(StrEnum):
    """What content is, by its own first bytes."""

    SCRIPT = "SQL script"
    CUSTOM = "custom-format dump"
    TAR = "tar"
    GZIP = "gzip"
    ZSTD = "zstd"
    AGE = "age"


class NamedBackup(NamedTuple):
    """One backup inside a repository, by its path."""

    root: str
    cluster: str
    system_id: str
    backup_id: str


def is_place(source: str) -> bool:
    """Say whether a SOURCE names a place, a path or an address, and not a backup of the configured repository."""
    return source != "latest" and not is_backup_id(source)


def detect(head: bytes) -> Form | None:
    """Tell what content is by its first ``HEAD_BYTES``; None where we do not know it."""
    for magic, form in (
        (MAGIC, Form.CUSTOM),
        (b"\x1f\x8b", Form.GZIP),
        (b"\x28\xb5\x2f\xfd", Form.ZSTD),
        (b"age-encryption.org/v1", Form.AGE),
        (b"-----BEGIN AGE ENCRYPTED FILE-----", Form.AGE),
    ):
        if head.startswith(magic):
            return form
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return Form.TAR
    return Form.SCRIPT if _SCRIPT.match(head) else None


def named_backup(path: str) -> NamedBackup | None:
    """Return the backup that a path or address names: its folder, or the commit in it."""
    found = _BACKUP.fullmatch(path.rstrip("/").removesuffix(f"/{COMMIT_NAME}"))
    if found is None or not is_backup_id(found["id"]):
        return None
    return NamedBackup(found["root"], found["cluster"], found["system"], found["id"])


def refusal(head: bytes, where: str) -> BbOpsError:
    """Return the error for content that cannot be restored, in one line that says what was found."""
    if not head:
        return IntegrityError(f"{where} is empty")
    if detect(head) == Form.AGE:
        return UsageError(
            f"{where} is encrypted by age and is no part of a repository: decrypt it with its own key first (age -d)"
        )
    return UsageError(f"{where} starts with {head[:_SHOWN_BYTES].hex(' ')}, which is no backup: {ACCEPTED}")
