"""Whose WAL may enter an archive: that of its own system, major version and segment size, with its history known.

Asked before the first byte is stored, whichever way the WAL comes.
"""

from collections.abc import Iterable
from typing import NamedTuple

from bb_ops.errors import RepositoryMissing, ServerUnusable
from bb_ops.postgres.timelines import history_name
from bb_ops.postgres.wal_file import KNOWN_MAJORS, WalFileHeader
from bb_ops.repository import wal, wal_reader
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import Receipt


class Refused(ServerUnusable):
    """The server is not the one whose WAL is archived, or lacks what every restore needs; waiting mends neither."""


class WalForm(NamedTuple):
    """What all WAL of one system has in common, as long as it lives."""

    server_major: int
    segment_bytes: int


def refuse_foreign(repository: Repository, system_id: str, expected: Iterable[str], whose: str) -> None:
    """Refuse the WAL of another system than those ``expected``; where none is expected yet, the first one is ours.

    Raises:
        Refused: it is another system's.
    """
    known = sorted(expected)
    if known and system_id not in known:
        raise Refused(
            f"{whose}: its system identifier is {system_id}, and cluster {repository.cluster} in "
            f"{repository.store.url} belongs to {', '.join(known)}: set another BB_OPS_CLUSTER, or take "
            "`bb-ops backup full --new-lineage` first after a major upgrade"
        )


def refuse_other_form(form: WalForm | None, found: WalForm, whose: str) -> None:
    """Refuse WAL of another major version or segment size under the same system identifier: no restore reads both.

    Raises:
        Refused: it differs from ``form``, that of what is stored.
    """
    if form is None:
        return
    if form.server_major != found.server_major:
        raise Refused(
            f"{whose} is of PostgreSQL {found.server_major}, and what is stored of this system was written by version "
            f"{form.server_major}: set another BB_OPS_CLUSTER"
        )
    if form.segment_bytes != found.segment_bytes:
        raise Refused(
            f"{whose} has segments of {found.segment_bytes} bytes, and the archive of this system has "
            f"{form.segment_bytes}: set another BB_OPS_CLUSTER"
        )


def read_form(repository: Repository, system_id: str) -> WalForm | None:
    """Return what the WAL of a system must be like, by its archive or else its backups; None where it has neither."""
    position = wal_reader.newest_position(repository, system_id)
    if position is not None:
        return WalForm(position.server_major, position.segment_bytes)
    try:
        catalog = read_catalog(repository, system_id)
    except RepositoryMissing:
        return None
    for entry in reversed(catalog.physical):
        return WalForm(entry.physical.server_major, entry.physical.wal_segment_bytes)
    return None


class FileAdmission:
    """Admits WAL files one by one, by the header that each begins with; asks the repository once for what is alike."""

    def __init__(self, repository: Repository) -> None:
        """Name the repository."""
        self._repository = repository
        self._admitted: set[tuple[str, WalForm, int]] = set()

    def admit(self, name: str, header: WalFileHeader) -> WalForm:
        """Return what form a file has that may enter.

        Raises:
            Refused: it is that of another system, version or segment size, or its timeline's history is not archived.
        """
        if header.major is None:
            raise Refused(f"{name} is of a version of PostgreSQL that we do not know: {KNOWN_MAJORS} are supported")
        system, form, timeline = header.system_id, WalForm(header.major, header.segment_bytes), int(name[:8], 16)
        if (system, form, timeline) not in self._admitted:
            expected = {*self._repository.system_ids(), *(entry[0] for entry in self._admitted)}
            refuse_foreign(self._repository, system, expected, name)
            earlier = (entry[1] for entry in self._admitted if entry[0] == system)
            refuse_other_form(read_form(self._repository, system) or next(earlier, None), form, name)
            self._refuse_unknown_timeline(system, timeline, name)
            self._admitted.add((system, form, timeline))
        return form

    def owner(self, name: str) -> tuple[str, WalForm]:
        """Return whose a history file is, which does not say so itself: that of the one system that we know.

        Raises:
            Refused: there is none, or several.
        """
        systems = {entry[0] for entry in self._admitted} or set(self._repository.system_ids())
        form = read_form(self._repository, *systems) if len(systems) == 1 else None
        if form is None:
            raise Refused(
                f"{name}: {len(systems)} systems are stored in cluster {self._repository.cluster}, so that it is not "
                "known whose it is: take `bb-ops backup full` first, or archive a segment of the same server"
            )
        return systems.pop(), form

    def _refuse_unknown_timeline(self, system_id: str, timeline: int, name: str) -> None:
        if timeline == 1:
            return
        history = history_name(timeline)
        key = wal.receipt_key(self._repository.cluster, system_id, timeline, history)
        if wal.read_record(self._repository, key, Receipt) is None:
            raise Refused(
                f"{name}: {history} is not archived, and without it no restore could follow timeline {timeline}: hand "
                "over that file of pg_wal first, in the same way"
            )
