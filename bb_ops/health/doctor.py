"""Looks at settings, keys, servers, stores and leftovers, and says how to mend what is wrong."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from bb_ops.dsn import Dsn
from bb_ops.errors import BbOpsError, Locked, NotMeasured, RepositoryMissing
from bb_ops.findings import Finding, Outcome, Severity
from bb_ops.postgres.cluster import read_facts, refusals
from bb_ops.postgres.programs import find_programs
from bb_ops.repository.catalog import Leftover, read_catalog
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.repository import Repository
from bb_ops.storage.base import Unfinished

_NEEDED_PROGRAMS = ("pg_verifybackup", "pg_waldump", "pg_amcheck", "pg_checksums", "pg_controldata")


def examine_database(dsn: Dsn, pg_bindirs: tuple[Path, ...]) -> Iterator[Finding]:
    """Check that the server can be backed up, and that its backups can be tested here."""
    try:
        facts = read_facts(dsn)
    except BbOpsError as error:
        yield _finding("database_reachable", Outcome.FAIL, Severity.CRITICAL, str(dsn), str(error), "see the message")
        return
    yield _finding("database_reachable", Outcome.PASS, Severity.CRITICAL, str(dsn), f"PostgreSQL {facts.version}")
    found = refusals(facts)
    yield _finding(
        "database_can_be_backed_up",
        Outcome.FAIL if found else Outcome.PASS,
        Severity.CRITICAL,
        str(dsn),
        "; ".join(found) or "the role may replicate and WAL is sufficient",
        "see the message",
    )
    yield _finding(
        "data_checksums",
        Outcome.PASS if facts.data_checksums else Outcome.FAIL,
        Severity.MEDIUM,
        str(dsn),
        "page checksums are on" if facts.data_checksums else "page checksums are off: rot in a page goes unseen",
        "stop the server and run pg_checksums --enable",
    )
    try:
        programs = find_programs(facts.major, pg_bindirs)
        for name in _NEEDED_PROGRAMS:
            programs.path(name)
    except NotMeasured as error:
        yield _finding("programs_for_tests", Outcome.FAIL, Severity.HIGH, str(dsn), str(error), "install them")
    else:
        yield _finding("programs_for_tests", Outcome.PASS, Severity.HIGH, str(dsn), f"found in {programs.directory}")


def examine_keys(repository: Repository) -> Iterator[Finding]:
    """Check that every key that is set can be used, and that the working identity belongs to the recipients."""
    where = "settings"
    if repository.encryption == "none":
        yield _finding(
            "encryption",
            Outcome.FAIL,
            Severity.HIGH,
            where,
            "BB_OPS_ENCRYPTION=none: backups are not encrypted",
            "unset it",
        )
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("recipients", lambda: repository.recipients),
        ("signing_key", lambda: repository.signing_key),
        ("signing_public_key", lambda: repository.public_key),
    )
    for check_id, check in checks:
        yield _try(check_id, where, check)
    if repository.encryption == "age":
        yield _try("identity", where, lambda: _match(repository))


def examine_repository(repository: Repository) -> Iterator[Finding]:
    """Check that a repository exists, that its commits are right, and that nothing is left over."""
    url = repository.store.url
    try:
        catalog = read_catalog(repository)
    except RepositoryMissing as error:
        yield _finding("repository", Outcome.FAIL, Severity.HIGH, url, str(error), "see the message")
        return
    except BbOpsError as error:
        yield _finding("repository", Outcome.FAIL, Severity.CRITICAL, url, str(error), "see the message")
        return
    yield _finding("repository", Outcome.PASS, Severity.HIGH, url, f"{len(catalog.entries)} backups")
    problems = [str(error) for error in catalog.damaged]
    problems += [problem for entry in catalog.entries for problem in entry.problems]
    for problem in problems:
        yield _finding(
            "repository_intact", Outcome.FAIL, Severity.CRITICAL, url, problem, "copy it back from another region"
        )
    if not problems:
        yield _finding("repository_intact", Outcome.PASS, Severity.CRITICAL, url, "every commit is signed by our key")
    leftovers, uploads = find_leftovers(repository)
    for left in leftovers:
        message = f"{left.backup_id} was never committed: {len(left.keys)} objects, {left.size_bytes} bytes"
        yield _leftover(url, message)
    for upload in uploads:
        yield _leftover(url, f"unfinished write of {upload.key}: {upload.size_bytes} bytes")
    if not leftovers and not uploads:
        yield _finding("leftovers", Outcome.PASS, Severity.LOW, url, "nothing is left over")


def examine_copies(abandoned: Sequence[Path]) -> Iterator[Finding]:
    """Name the throw-away copies of the data that killed restore tests left on this host."""
    for path in abandoned:
        yield _leftover(str(path), "a restore test that was killed left a readable copy of the data here")
    if not abandoned:
        message = "no copy of the data is left from restore tests"
        yield _finding("leftovers", Outcome.PASS, Severity.LOW, "this host", message)


def find_leftovers(repository: Repository) -> tuple[list[Leftover], list[Unfinished]]:
    """Return what dead runs left behind; what a running backup is writing is among it.

    Unfinished writes of WAL are not: a streamer writes all the time, and the next one writes again what was cut off.
    """
    return read_catalog(repository).leftovers, [
        upload for upload in repository.store.unfinished() if not _is_wal(upload)
    ]


def remove_leftovers(repository: Repository) -> tuple[int, int]:
    """Remove what dead runs left behind, under the locks that runs hold, so that nothing alive is touched.

    Returns:
        How many uncommitted backups and unfinished writes were removed.

    Raises:
        Locked: a backup or a copy is running.
    """
    try:
        repository.open()
    except RepositoryMissing:
        return 0, 0
    with ExitStack() as stack:
        for name in (*BackupKind, "combine", "sync"):  # a backup holds the lock of its kind
            stack.enter_context(repository.lock(name, "doctor"))
        leftovers, uploads = find_leftovers(repository)
        for left in leftovers:
            for key in left.keys:
                repository.store.delete(key)
        with suppress(Locked), repository.lock("wal", "doctor"):  # a streamer at work keeps what it is writing
            uploads += [upload for upload in repository.store.unfinished() if _is_wal(upload)]
        for upload in uploads:
            repository.store.remove_unfinished(upload)
    return len(leftovers), len(uploads)


def _is_wal(upload: Unfinished) -> bool:
    return "/wal/" in upload.key


def _match(repository: Repository) -> str:
    public = {str(identity.to_public()) for identity in repository.identities}
    known = {str(recipient) for recipient in repository.recipients}
    if not public & known:
        raise NotMeasured("BB_OPS_AGE_IDENTITY_FILE opens none of the recipients: new backups could not be read here")
    return "the identity belongs to a recipient"


def _try(check_id: str, where: str, check: Callable[[], object]) -> Finding:
    try:
        answer = check()
    except BbOpsError as error:
        return _finding(check_id, Outcome.FAIL, Severity.HIGH, where, str(error), "see the message")
    message = answer if isinstance(answer, str) else "usable"
    return _finding(check_id, Outcome.PASS, Severity.HIGH, where, message)


def _leftover(url: str, message: str) -> Finding:
    return _finding("leftovers", Outcome.FAIL, Severity.LOW, url, message, "run bb-ops doctor --remove-leftovers")


def _finding(  # noqa: PLR0913 - the fields of a finding
    check_id: str, outcome: Outcome, severity: Severity, resource: str, message: str, remedy: str = ""
) -> Finding:
    return Finding(
        check_id=check_id,
        outcome=outcome,
        severity=severity,
        resource=resource,
        message=message,
        remedy="" if outcome == Outcome.PASS else remedy,
    )
