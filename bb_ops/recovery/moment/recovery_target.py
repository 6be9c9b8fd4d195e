"""What a recovery goes to: the moment, in any of the forms that PostgreSQL knows (manual, 20.5.6 Recovery Target)."""

import re
from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AwareDatetime

from bb_ops.errors import UsageError
from bb_ops.findings import Value
from bb_ops.postgres.lsn import Lsn

FORMS = "latest, immediate, a time with its zone (2026-11-24 03:07:12+00), lsn:X/Y, xid:N or name:RESTORE-POINT"
_FORM = re.compile(r"(time|lsn|xid|name)\s*[:=]\s*(.*)", re.DOTALL | re.IGNORECASE)
_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", re.ASCII)
_ZONE_NAME = re.compile(r"(.*\d)\s+([A-Za-z][A-Za-z_+\-0-9]*(?:/[A-Za-z_+\-0-9]+)*)")
_TWELVE_HOURS = re.compile(r"\b[ap]\.?m\.?\b", re.IGNORECASE)
_LONGEST_NAME = 63
"""MAXFNAMELEN - 1 of xlog_internal.h: pg_create_restore_point takes no longer name."""
_LARGEST_XID = 0xFFFFFFFF


class TargetKind(StrEnum):
    """The forms."""

    LATEST = "latest"
    IMMEDIATE = "immediate"
    TIME = "time"
    LSN = "lsn"
    XID = "xid"
    NAME = "name"


class RecoveryTarget(Value):
    """A moment.

    Attributes:
        kind: Its form.
        value: As PostgreSQL's setting of that form wants it; a time is in UTC with microseconds. Empty without one.
        inclusive: Whether what stands exactly at the target is in: the commit at that instant, the transaction itself,
            the record that starts at the position.
        timeline: The timeline to follow; None follows the newest on which the target lies.
    """

    kind: TargetKind
    value: str = ""
    inclusive: bool = True
    timeline: int | None = None

    @property
    def at(self) -> AwareDatetime:
        """The instant of a time."""
        return datetime.fromisoformat(self.value)

    @property
    def lsn(self) -> Lsn:
        """The position of an LSN."""
        return Lsn.parse(self.value)

    @property
    def xid(self) -> int:
        """The transaction of an xid."""
        return int(self.value)

    def __str__(self) -> str:
        """Say it as it can be typed."""
        said = f"{self.kind}:{self.value}" if self.value else str(self.kind)
        if self.kind == TargetKind.TIME:
            said = f"{self.at:%Y-%m-%d %H:%M:%S.%f}+00"
        if self.kind in _DEFAULTS and self.inclusive != _DEFAULTS[self.kind]:
            said += " (inclusive)" if self.inclusive else " (exclusive)"
        return f"{said} on timeline {self.timeline}" if self.timeline is not None else said


_DEFAULTS = {TargetKind.TIME: True, TargetKind.XID: True, TargetKind.LSN: False}
"""A position names the end of what is wanted, as pg_current_wal_lsn() gives it: what starts there is not in."""


def parse_target(text: str, *, inclusive: bool | None = None, timeline: int | None = None) -> RecoveryTarget:
    """Read a target as people type it.

    Args:
        text: One of ``FORMS``; a bare position or time needs no prefix.
        inclusive: None takes the default of the form: True for a time and a transaction, False for a position.
        timeline: See ``RecoveryTarget``.

    Raises:
        UsageError: it is none of these, or a time without zone, which would be another instant on another host.
    """
    word = text.strip()
    form = _FORM.fullmatch(word)
    if form is not None:
        kind, value = TargetKind(form[1].lower()), form[2].strip()
    elif word.lower() in {TargetKind.LATEST, TargetKind.IMMEDIATE}:
        kind, value = TargetKind(word.lower()), ""
    elif _LSN.fullmatch(word):
        kind, value = TargetKind.LSN, word
    elif word[:1].isdigit() and any(sign in word for sign in "-:T"):
        kind, value = TargetKind.TIME, word
    else:
        raise UsageError(f"{text!r} is no recovery target: give {FORMS}")
    default = _DEFAULTS.get(kind)
    if inclusive is not None and default is None:
        raise UsageError(f"--inclusive and --exclusive mean nothing for {kind}: leave them out")
    chosen = default if inclusive is None else inclusive
    return RecoveryTarget(
        kind=kind,
        value=_READERS[kind](value) if kind in _READERS else "",
        inclusive=True if chosen is None else chosen,
        timeline=timeline,
    )


def _time(value: str) -> str:
    if _TWELVE_HOURS.search(value):
        raise UsageError(f"{value!r} has a 12-hour clock: give the hour from 00 to 23")
    zone: ZoneInfo | None = None
    named = _ZONE_NAME.fullmatch(value)
    text = value
    if named is not None:
        text = named[1]
        zone = _zone(named[2], value)
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise UsageError(f"{value!r} is no time: give it like 2026-11-24 03:07:12+00") from error
    if at.tzinfo is None and zone is None:
        like = value if ":" in value else f"{at:%Y-%m-%d %H:%M:%S}"
        raise UsageError(f"{value!r} has no time zone: add one, as in {like}+00 for UTC")
    if zone is not None:
        if at.tzinfo is not None:
            raise UsageError(f"{value!r} has two time zones: give one")
        at = _in_zone(at, zone, value)
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _zone(name: str, value: str) -> ZoneInfo:
    if name.upper() in {"UTC", "GMT", "Z"}:
        return ZoneInfo("UTC")
    if "/" not in name:  # CET, EST and their like name one thing here and another there
        raise UsageError(f"{value!r}: {name} may mean several zones: give an offset, as in +00 for UTC")
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise UsageError(f"{value!r}: there is no time zone {name}: give an offset, as in +00 for UTC") from error


def _in_zone(at: datetime, zone: ZoneInfo, value: str) -> datetime:
    """Place a local time; one that a change of clocks makes happen twice or never is refused."""
    first, second = (at.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    if first.utcoffset() != second.utcoffset():
        raise UsageError(f"{value!r} lies in a change of clocks there: give an offset, as in +00 for UTC")
    return first


def _lsn(value: str) -> str:
    try:
        return str(Lsn.parse(value))
    except ValueError as error:
        raise UsageError(f"{value!r} is no WAL position: give it like 16/B374D848") from error


def _xid(value: str) -> str:
    if not (value.isascii() and value.isdecimal()) or int(value) < 3:  # noqa: PLR2004 - the first normal one
        raise UsageError(f"{value!r} is no transaction id: give a number from 3 on")
    if int(value) > _LARGEST_XID:  # pg_current_xact_id() gives the epoch too, above the lower 32 bits
        return str(int(value) & _LARGEST_XID)
    return str(int(value))


def _name(value: str) -> str:
    if not 0 < len(value.encode()) <= _LONGEST_NAME or "\n" in value:
        raise UsageError(f"{value!r} is no restore point's name: give 1 to {_LONGEST_NAME} bytes")
    return value


_READERS = {
    TargetKind.TIME: _time,
    TargetKind.LSN: _lsn,
    TargetKind.XID: _xid,
    TargetKind.NAME: _name,
}
