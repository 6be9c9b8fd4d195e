"""The catalog: what exists and what of it is proven, read from the repository alone."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.errors import AlreadyExists, IntegrityError, KeyRejected, RepositoryMissing, UsageError
from bb_ops.findings import Outcome
from bb_ops.postgres.lsn import Lsn
from bb_ops.repository import layout
from bb_ops.repository.catalog import CatalogEntry, read_catalog
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.reports import Level
from bb_ops.repository.repository import Repository
from bb_ops.repository.signing import load_signing_key, sign_document
from bb_ops_tests.unit.builders import (
    NOON,
    SYSTEM_ID,
    new_commit,
    new_proof,
    new_repository,
    overwrite,
    stored_backup,
)

PASS, FAIL, NOT_MEASURED = Outcome.PASS, Outcome.FAIL, Outcome.NOT_MEASURED
Verdict = tuple[Level | None, Outcome]


def entry_with(*verdicts: Verdict, problems: tuple[str, ...] = ()) -> CatalogEntry:
    commit = new_commit()
    proofs = tuple(
        new_proof(commit, level, outcome, after_s=number) for number, (level, outcome) in enumerate(verdicts)
    )
    return CatalogEntry(commit, problems, proofs)


class TestProvenLevel:
    @pytest.mark.parametrize(
        ("verdicts", "proven"),
        [
            ([], None),
            ([(Level.L6, PASS)], Level.L6),
            ([(Level.L1, PASS), (Level.L6, PASS)], Level.L6),
            ([(Level.L6, PASS), (Level.L1, PASS)], Level.L6),
            ([(Level.L6, PASS), (Level.L4, FAIL)], Level.L4),
            ([(Level.L6, PASS), (Level.L0, FAIL)], Level.L0),
            ([(Level.L6, PASS), (None, FAIL)], None),
            ([(Level.L6, PASS), (Level.L4, FAIL), (Level.L1, PASS)], Level.L4),
            ([(Level.L6, PASS), (None, FAIL), (Level.L1, PASS)], Level.L1),
            ([(Level.L4, FAIL), (Level.L6, PASS)], Level.L6),
            ([(Level.L5, NOT_MEASURED)], Level.L5),
            ([(Level.L6, PASS), (Level.L5, NOT_MEASURED)], Level.L6),
            ([(Level.L6, PASS), (None, NOT_MEASURED)], Level.L6),
            ([(None, NOT_MEASURED)], None),
        ],
    )
    def test_a_failure_voids_what_was_proven_above_it_and_a_limited_pass_takes_nothing_away(
        self, verdicts: list[Verdict], proven: Level | None
    ) -> None:
        assert entry_with(*verdicts).proven_level == proven

    @given(
        st.lists(st.tuples(st.none() | st.sampled_from(Level), st.sampled_from(Outcome)), max_size=6),
        st.none() | st.sampled_from(Level),
    )
    def test_after_a_failure_no_more_is_proven_than_it_reached(
        self, before: list[Verdict], reached: Level | None
    ) -> None:
        assert entry_with(*before, (reached, FAIL)).proven_level == reached

    @given(
        st.lists(st.tuples(st.none() | st.sampled_from(Level), st.sampled_from(Outcome)), max_size=6),
        st.sampled_from(Level),
    )
    def test_a_pass_never_lowers(self, before: list[Verdict], level: Level) -> None:
        old = entry_with(*before).proven_level
        new = entry_with(*before, (level, PASS)).proven_level
        assert new is not None
        assert new >= level
        assert old is None or new >= old

    @given(st.lists(st.tuples(st.none() | st.sampled_from(Level), st.sampled_from(Outcome)), max_size=6))
    def test_where_objects_are_missing_nothing_is_proven(self, verdicts: list[Verdict]) -> None:
        entry = entry_with(*verdicts, problems=("an object is missing",))
        assert entry.proven_level is None
        assert entry.failed

    def test_failed_means_the_newest_test(self) -> None:
        assert entry_with((Level.L6, PASS), (Level.L4, FAIL)).failed
        assert not entry_with((Level.L4, FAIL), (Level.L6, PASS)).failed
        assert not entry_with().failed


class TestReading:
    def test_no_place_and_an_empty_place_are_no_repository(self, tmp_path: Path, keys: Path) -> None:
        repository = new_repository(tmp_path, keys=keys, name="made")
        repository.store.delete(layout.MARKER)
        for action in ("empty", "gone"):
            with pytest.raises(RepositoryMissing) as missing:
                read_catalog(repository)
            assert missing.value.exit_code == 10
            if action == "empty":
                (tmp_path / "made").rmdir()

    def test_an_empty_repository_holds_no_backup(self, repository: Repository) -> None:
        catalog = read_catalog(repository)
        assert (catalog.entries, catalog.damaged, catalog.leftovers) == ([], [], [])
        with pytest.raises(RepositoryMissing, match="no physical backup yet"):
            catalog.find("latest")

    def test_a_committed_backup_is_listed_with_its_proofs_oldest_first(self, repository: Repository) -> None:
        commit = stored_backup(repository)
        for level, after_s in ((Level.L1, 30.0), (Level.L6, 60.0), (Level.L0, 10.0)):
            repository.record_proof(commit, new_proof(commit, level, after_s=after_s))
        (entry,) = read_catalog(repository).entries
        assert entry.commit == commit
        assert entry.problems == ()
        assert [proof.level for proof in entry.proofs] == ["L0", "L1", "L6"]
        assert entry.proven_level == Level.L6

    def test_objects_without_a_commit_are_a_leftover_and_no_backup(self, repository: Repository) -> None:
        commit = stored_backup(repository)
        repository.store.delete(layout.commit_key("main", SYSTEM_ID, commit.id))
        catalog = read_catalog(repository)
        assert catalog.entries == []
        (leftover,) = catalog.leftovers
        assert (leftover.backup_id, leftover.system_id) == (commit.id, SYSTEM_ID)
        page = repository.store.stat(layout.page_key("main", SYSTEM_ID, commit.id))
        assert page is not None
        assert set(leftover.keys) == {page.key, *(repository.object_key(commit, entry) for entry in commit.objects)}
        assert leftover.size_bytes == commit.stored_bytes + page.size_bytes

    @pytest.mark.parametrize(
        "name", [".tmp.20261124T020000Z-full-1f3a9c0e", "x.partial", "20261124T020000Z-full-1f3a9c0e"]
    )
    def test_a_name_that_resembles_a_temporary_one_is_still_seen(self, repository: Repository, name: str) -> None:
        repository.store.create(f"main/{SYSTEM_ID}/base/{name}/base.0000.tar.zst", b"x")
        assert [leftover.backup_id for leftover in read_catalog(repository).leftovers] == [name]

    def test_order_is_that_of_time_and_position_and_not_of_names(self, repository: Repository) -> None:
        ids = ["20300101T000000Z-full-00000000", "20200101T000000Z-full-00000000", "20250101T000000Z-full-00000000"]
        for number, backup_id in enumerate(ids):
            stored_backup(repository, id=backup_id, started_at=NOON + timedelta(days=number))
        twin = stored_backup(
            repository, id="20100101T000000Z-full-00000000", started_at=NOON, end_lsn=Lsn.parse("0/1000000")
        )
        catalog = read_catalog(repository)
        assert [entry.commit.id for entry in catalog.entries] == [twin.id, *ids]
        assert catalog.find("latest").commit.id == ids[-1]

    def test_several_systems_are_read_together_or_one_alone(self, repository: Repository) -> None:
        first = stored_backup(repository)
        second = stored_backup(repository, system_id="7430000000000000002", started_at=NOON + timedelta(days=1))
        assert [entry.commit.id for entry in read_catalog(repository).entries] == [first.id, second.id]
        assert [entry.commit.id for entry in read_catalog(repository, SYSTEM_ID).entries] == [first.id]

    def test_another_cluster_in_the_same_place_is_not_seen(
        self, repository: Repository, tmp_path: Path, keys: Path
    ) -> None:
        commit = stored_backup(repository)
        other = new_repository(tmp_path, keys=keys)
        other.cluster = "other"
        assert read_catalog(other).entries == []
        assert [entry.commit for entry in read_catalog(repository).entries] == [commit]


class TestDamage:
    @pytest.fixture
    def commit(self, repository: Repository) -> PhysicalCommit:
        return stored_backup(repository)

    def test_a_missing_object_is_named_and_voids_every_proof(
        self, repository: Repository, commit: PhysicalCommit
    ) -> None:
        repository.record_proof(commit, new_proof(commit, Level.L6))
        key = repository.object_key(commit, commit.objects[0])
        repository.store.delete(key)
        (entry,) = read_catalog(repository).entries
        assert entry.problems == (f"{repository.store.url}/{key} is missing",)
        assert (entry.proven_level, entry.failed) == (None, True)

    def test_an_object_of_another_size_is_named(self, repository: Repository, commit: PhysicalCommit) -> None:
        key = repository.object_key(commit, commit.objects[0])
        overwrite(repository.store, key, b"short")
        (entry,) = read_catalog(repository).entries
        assert len(entry.problems) == 1
        assert key in entry.problems[0]
        assert "5 bytes instead of" in entry.problems[0]

    def test_a_damaged_commit_is_shown_as_damaged_and_never_as_a_backup(
        self, repository: Repository, commit: PhysicalCommit
    ) -> None:
        key = layout.commit_key("main", SYSTEM_ID, commit.id)
        document = repository.store.read(key) or b""
        overwrite(repository.store, key, document.replace(b"18.1", b"18.2"))
        catalog = read_catalog(repository)
        assert (catalog.entries, catalog.leftovers) == ([], [])
        (error,) = catalog.damaged
        assert isinstance(error, IntegrityError)
        assert key in str(error)
        for wanted in (commit.id, "latest"):
            with pytest.raises(IntegrityError, match=commit.id):
                catalog.find(wanted)

    def test_a_forged_commit_is_shown_as_forged_and_never_as_a_backup(
        self, repository: Repository, commit: PhysicalCommit, other_keys: Path
    ) -> None:
        key = layout.commit_key("main", SYSTEM_ID, commit.id)
        overwrite(repository.store, key, forged(commit, other_keys))
        catalog = read_catalog(repository)
        assert catalog.entries == []
        (error,) = catalog.damaged
        assert isinstance(error, KeyRejected)
        with pytest.raises(KeyRejected):
            catalog.find(commit.id)

    def test_a_commit_that_was_moved_to_another_backup_is_refused(
        self, repository: Repository, commit: PhysicalCommit
    ) -> None:
        """With it an older backup could be passed off as today's."""
        document = repository.store.read(layout.commit_key("main", SYSTEM_ID, commit.id)) or b""
        target = layout.commit_key("main", SYSTEM_ID, "20270101T020000Z-full-00000000")
        repository.store.create(target, document)
        catalog = read_catalog(repository)
        assert [entry.commit.id for entry in catalog.entries] == [commit.id]
        (error,) = catalog.damaged
        assert isinstance(error, IntegrityError)
        assert "it was moved" in str(error)

    def test_a_commit_moved_to_another_system_is_refused(self, repository: Repository, commit: PhysicalCommit) -> None:
        document = repository.store.read(layout.commit_key("main", SYSTEM_ID, commit.id)) or b""
        repository.store.create(layout.commit_key("main", "99", commit.id), document)
        (error,) = read_catalog(repository).damaged
        assert "it was moved" in str(error)

    @pytest.mark.parametrize(
        "change",
        [{"schema_id": "bb-ops/backup-commit/2"}, {"unknown": 1}, {"kind": "differential"}, {"system_id": "../x"}],
        ids=["newer format", "unknown field", "unknown kind", "hostile system id"],
    )
    def test_a_signed_document_of_another_format_is_damage(
        self, repository: Repository, commit: PhysicalCommit, change: dict[str, Any]
    ) -> None:
        key = layout.commit_key("main", SYSTEM_ID, commit.id)
        body = commit.model_dump(mode="json") | change
        overwrite(repository.store, key, sign_document(body, repository.signing_key))
        catalog = read_catalog(repository)
        assert catalog.entries == []
        assert [type(error) for error in catalog.damaged] == [IntegrityError]

    @pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "", ".hidden", "x\n"])
    def test_a_signed_commit_cannot_name_objects_elsewhere(
        self, repository: Repository, commit: PhysicalCommit, name: str
    ) -> None:
        body = json.loads(commit.model_dump_json())
        body["objects"][0]["name"] = name
        key = layout.commit_key("main", SYSTEM_ID, commit.id)
        overwrite(repository.store, key, sign_document(body, repository.signing_key))
        assert [type(error) for error in read_catalog(repository).damaged] == [IntegrityError]

    def test_a_damaged_or_forged_proof_counts_for_nothing(
        self, repository: Repository, commit: PhysicalCommit, other_keys: Path
    ) -> None:
        theirs = sign_document(
            new_proof(commit, Level.L7).model_dump(mode="json"), load_signing_key(other_keys / "signing.key")
        )
        repository.store.create(layout.proof_key("main", SYSTEM_ID, commit.id, "forged"), theirs)
        proof = repository.record_proof(commit, new_proof(commit, Level.L6))
        key = layout.proof_key("main", SYSTEM_ID, commit.id, proof.id)
        overwrite(repository.store, key, (repository.store.read(key) or b"").replace(b'"L6"', b'"L7"'))
        catalog = read_catalog(repository)
        assert sorted(type(error).__name__ for error in catalog.damaged) == ["IntegrityError", "KeyRejected"]
        assert catalog.find(commit.id).proven_level is None

    def test_a_proof_that_was_moved_to_another_backup_counts_for_nothing(
        self, repository: Repository, commit: PhysicalCommit
    ) -> None:
        other = stored_backup(repository, started_at=NOON + timedelta(days=1))
        proof = repository.record_proof(commit, new_proof(commit, Level.L6))
        key = layout.proof_key("main", SYSTEM_ID, commit.id, proof.id)
        moved = layout.proof_key("main", SYSTEM_ID, other.id, new_proof(commit, Level.L6).id)
        repository.store.create(moved, repository.store.read(key) or b"")
        catalog = read_catalog(repository)
        assert catalog.find(commit.id).proven_level == Level.L6
        assert catalog.find(other.id).proven_level is None

    def test_a_proof_that_was_carried_over_from_another_repository_counts_for_nothing(
        self, repository: Repository, commit: PhysicalCommit
    ) -> None:
        elsewhere = new_proof(commit, Level.L6).model_copy(update={"repository_id": "0123456789abcdef"})
        key = layout.proof_key("main", SYSTEM_ID, commit.id, elsewhere.id)
        repository.store.create(key, sign_document(elsewhere.model_dump(mode="json"), repository.signing_key))
        catalog = read_catalog(repository)
        assert catalog.damaged == []
        assert catalog.find(commit.id).proven_level is None

    def test_one_damaged_backup_does_not_hide_the_others(self, repository: Repository, commit: PhysicalCommit) -> None:
        good = stored_backup(repository, started_at=NOON + timedelta(days=1))
        overwrite(repository.store, layout.commit_key("main", SYSTEM_ID, commit.id), b"rubbish")
        catalog = read_catalog(repository)
        assert [entry.commit.id for entry in catalog.entries] == [good.id]
        assert len(catalog.damaged) == 1


def forged(commit: PhysicalCommit, other_keys: Path) -> bytes:
    return sign_document(commit.model_dump(mode="json"), load_signing_key(other_keys / "signing.key"))


class TestFinding:
    @pytest.mark.parametrize("text", ["", "newest", "../x", "20261124"])
    def test_what_is_no_id_is_a_mistake_of_use(self, repository: Repository, text: str) -> None:
        stored_backup(repository)
        with pytest.raises(UsageError) as refused:
            read_catalog(repository).find(text)
        assert refused.value.exit_code == 2

    def test_an_id_that_does_not_exist_is_missing(self, repository: Repository) -> None:
        stored_backup(repository)
        with pytest.raises(RepositoryMissing):
            read_catalog(repository).find("20261124T020000Z-full-00000000")

    def test_a_slot_is_represented_by_its_newest_backup(self, repository: Repository) -> None:
        stored_backup(repository)
        newer = stored_backup(repository, started_at=NOON + timedelta(hours=1))
        stored_backup(repository, started_at=NOON + timedelta(days=1))
        assert read_catalog(repository).find_slot("2026-11-24").commit.id == newer.id
        with pytest.raises(RepositoryMissing, match="2026-11-26"):
            read_catalog(repository).find_slot("2026-11-26")


def test_a_backup_is_committed_once(repository: Repository) -> None:
    commit = stored_backup(repository)
    with pytest.raises(AlreadyExists):
        repository.commit(commit)


def test_a_repository_can_be_made_twice_and_stays_itself(repository: Repository) -> None:
    assert repository.initialise() == repository.initialise() == repository.open()
