"""Asks of an hour what can be asked of what is stored now, not of what the run said of itself."""

from bb_ops.backup.hour import Hour
from bb_ops.errors import IntegrityError, KeyRejected
from bb_ops.findings import Finding, Outcome, Severity
from bb_ops.repository import wal
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Span


def examine_hour(repository: Repository, hour: Hour) -> tuple[Finding, ...]:
    """Examine an hour: ``continuous``, ``durable``, ``chain_whole`` and ``block_increment``."""
    return (continuous(hour), _durable(repository, hour), chain_whole(hour), block_increment(hour))


def continuous(hour: Hour) -> Finding:
    """Judge whether the WAL joins what came before, and no instant of the hour since the archive began is missing.

    Before it began nothing was missed, as before the first backup no slot was; ``covered_s`` says how little that is.
    """
    coverage = hour.coverage
    wrong = dict.fromkeys((*hour.gaps, *coverage.missing, *hour.holes))
    begins = coverage.begins_at
    if wrong:
        return _finding("continuous", hour, "; ".join(wrong), Outcome.FAIL)
    if begins is not None and begins >= coverage.to_at:
        said = f"nothing of this hour is restorable: the archive begins at {begins:%H:%M:%S} UTC; no hole since"
    elif begins is not None:
        said = f"the archive begins in this hour, at {begins:%H:%M:%S} UTC; no hole since then"
    else:
        said = f"every instant of {coverage.covered_s:.0f} s can be restored"
    return _finding("continuous", hour, said)


def chain_whole(hour: Hour) -> Finding:
    """Judge whether everything that a restore of the hour's backup needs is there. Pure."""
    entry = hour.chain
    if entry.problems:
        return _finding("chain_whole", hour, "; ".join(entry.problems), Outcome.FAIL)
    objects = sum(len(commit.objects) for commit in entry.chain)
    return _finding(
        "chain_whole", hour, f"{len(entry.chain)} backups from {entry.chain[0].id} on, {objects} objects of their sizes"
    )


def block_increment(hour: Hour) -> Finding:
    """Judge whether a restore is fast: blocks were taken wherever the server can send them. Pure."""
    if hour.taken is None:
        return _finding("block_increment", hour, "not applicable: the hour is long over, and blocks are those of now")
    if hour.backup is None:
        said = hour.taken.skipped
        if said is not None:
            return _finding("block_increment", hour, f"not applicable: {said}")
        return _finding("block_increment", hour, str(hour.taken.errors[-1]), Outcome.FAIL, Severity.MEDIUM)
    instead = hour.backup.fallback_reason
    return _finding("block_increment", hour, f"a full was taken: {instead}" if instead else f"of {hour.backup.kind}")


def _durable(repository: Repository, hour: Hour) -> Finding:
    """Read every span back; the segments were looked at when they were sealed or found."""
    spans = hour.taken.span.spans if hour.taken is not None and hour.taken.span is not None else ()
    for span in spans:
        try:
            found = wal.read_record(repository, span.key, Span)
        except (IntegrityError, KeyRejected) as error:
            return _finding("durable", hour, str(error), Outcome.FAIL)
        if found != span:
            return _finding("durable", hour, f"{repository.store.url}/{span.key} is gone or differs", Outcome.FAIL)
    if hour.wal is None:
        return _finding("durable", hour, "not measured: no whole segment of this hour was seen", Outcome.NOT_MEASURED)
    segments = f"{hour.wal.segments} segments of their sizes"
    return _finding("durable", hour, f"{len(spans)} signed spans and {segments}" if spans else segments)


def _finding(
    check_id: str, hour: Hour, message: str, outcome: Outcome = Outcome.PASS, severity: Severity = Severity.HIGH
) -> Finding:
    return Finding(check_id=check_id, outcome=outcome, severity=severity, resource=hour.key, message=message)
