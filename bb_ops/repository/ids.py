"""Names of backups and slots."""

import re
import secrets
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

SLOT_TIME = time(2, 0, tzinfo=UTC)
"""When a daily slot opens (02:00 UTC); the slot named after a day lasts until the next one opens."""

_ID = r"[0-9]{8}T[0-9]{6}Z-[a-z]+-[0-9a-f]{8}"
_ID_PATTERN = re.compile(_ID, re.ASCII)
BackupId = Annotated[str, StringConstraints(pattern=f"^{_ID}$")]
SlotKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")]


class BackupKind(StrEnum):
    """What a backup holds."""

    FULL = "full"
    """Everything that a restore needs."""
    INCREMENTAL = "incremental"
    """Blocks changed since its parent; a restore needs the whole chain down to the full."""
    LOGICAL = "logical"
    """Every database with its rows, dumped by PostgreSQL's own programs."""
    SCHEMA = "schema"
    """Definitions only, likewise."""


def new_backup_id(kind: BackupKind, at: datetime) -> BackupId:
    """Return a fresh id such as ``20261124T020000Z-full-1f3a9c0e``; names never order, positions do."""
    return f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{kind}-{secrets.token_hex(4)}"


def is_backup_id(text: str) -> bool:
    """Say whether a text has the form of a backup id."""
    return _ID_PATTERN.fullmatch(text) is not None


def is_physical_id(text: str) -> bool:
    """Say whether an id names a data directory's backup, which write-ahead log can carry forward."""
    return is_backup_id(text) and text.split("-")[1] in {BackupKind.FULL, BackupKind.INCREMENTAL}


def daily_slot(at: datetime) -> SlotKey:
    """Return the daily slot whose window holds ``at``."""
    utc = at.astimezone(UTC)
    opened = timedelta(hours=SLOT_TIME.hour, minutes=SLOT_TIME.minute)
    return f"{utc - opened:%Y-%m-%d}"


def weekly_slot(at: datetime) -> SlotKey:
    """Return the weekly slot whose window holds ``at``: it bears the day of its Monday."""
    day = datetime.strptime(daily_slot(at), "%Y-%m-%d").replace(tzinfo=UTC)
    return f"{day - timedelta(days=day.weekday()):%Y-%m-%d}"


def monthly_slot(at: datetime) -> SlotKey:
    """Return the monthly slot whose window holds ``at``: it bears the first day of its month."""
    return f"{daily_slot(at)[:7]}-01"


def slot_window(slot: SlotKey) -> tuple[datetime, datetime]:
    """Return when a daily slot opens and when it is over."""
    opens = datetime.combine(datetime.strptime(slot, "%Y-%m-%d").replace(tzinfo=UTC).date(), SLOT_TIME)
    return opens, opens + timedelta(days=1)
