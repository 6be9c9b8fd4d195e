"""Proofs: what a test of a backup measured, kept as immutable signed objects beside the backups."""

from enum import IntEnum
from typing import Literal

from pydantic import AwareDatetime

from bb_ops.findings import Outcome, Value
from bb_ops.invariants import InvariantResult
from bb_ops.repository.ids import BackupId


class Level(IntEnum):
    """How much of a backup is proven; each level includes the ones below it."""

    L0 = 0
    """Every object is present with its size."""
    L1 = 1
    """Every byte is intact: hashes, decryption, decompression."""
    L2 = 2
    """The contents are complete: PostgreSQL's manifest agrees."""
    L3 = 3
    """It moves forward: the WAL is continuous from its start to its end."""
    L4 = 4
    """It restores: a server started on it and reached the recorded position."""
    L5 = 5
    """Its structure is sound: indexes, heaps and constraints were checked."""
    L6 = 6
    """Its data equal the source's, table by table, and every declared invariant of the application holds."""
    L7 = 7
    """It survives the region: restored from the other region with the offline key, timed."""


class Step(Value):
    """One level's answer.

    Attributes:
        level: ``L0`` … ``L7``.
        outcome: Passed, failed, could not be measured, or does not apply to this kind of backup.
        evidence: What was seen, in a few words with figures.
        duration_s: How long it took.
    """

    level: str
    outcome: Outcome
    evidence: str
    duration_s: float


class Proof(Value):
    """What one climb of the ladder showed.

    Attributes:
        level: The highest level whose steps, and all below that apply, passed; None where not even L0 did.
        outcome: ``fail`` where any step failed; ``not_measured`` where a wanted level could not be reached.
        repository_id: The repository whose bytes were tested; elsewhere, where a plain sync of buckets may carry it,
            the proof says nothing.
        region: That repository's name at the time.
        restore_s: Seconds from the first byte read to a server that answers; None where none was started.
        rows_compared: Rows counted and hashed on both sides.
        invariants: What the application's declared invariants answered; empty where none is declared or evaluated.
    """

    schema_id: Literal["bb-ops/proof/1"] = "bb-ops/proof/1"
    id: str
    backup_id: BackupId
    repository_id: str = ""
    region: str
    level: str | None
    outcome: Outcome
    steps: tuple[Step, ...]
    started_at: AwareDatetime
    duration_s: float
    restore_s: float | None
    restored_bytes: int | None
    tables_compared: int
    rows_compared: int
    anchor_lsn: str | None
    host: str
    bb_ops_version: str
    invariants: tuple[InvariantResult, ...] = ()
