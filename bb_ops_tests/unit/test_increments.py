"""What an increment builds on, and what chains a catalog shows: decisions, without any server."""

import hashlib
import json
from dataclasses import replace

import pytest
from pydantic import ValidationError

from bb_ops.backup.parent import Choice, choose_parent
from bb_ops.backup.physical import SourceFacts
from bb_ops.cross_region.plan import plan_copy
from bb_ops.errors import IntegrityError
from bb_ops.postgres.backup_manifest import read_backup_manifest
from bb_ops.postgres.cluster import ServerFacts
from bb_ops.postgres.lsn import Lsn
from bb_ops.postgres.replication import SystemIdentity
from bb_ops.postgres.wal_summaries import Summary, SummaryFacts
from bb_ops.recovery.chain import refuse_unfit
from bb_ops.recovery.restore import needed_bytes
from bb_ops.repository.catalog import Catalog, CatalogEntry, linked
from bb_ops.repository.manifest import PhysicalCommit
from bb_ops.repository.status import missing_slots, region_status
from bb_ops_tests.support.commits import BEGAN, SYSTEM, catalog, commit, overview

FULL = commit(1)
FIRST = commit(2, FULL)
SECOND = commit(3, FIRST)
SERVER = ServerFacts(180006, "18.6", "replica", 10, 1 << 24, True, True, "postgres", "postgres", False, 0)  # noqa: FBT003
FACTS = SourceFacts(SERVER, SystemIdentity(SYSTEM, 1, Lsn(9 << 24)), (SYSTEM,), BEGAN)
SUMMARIES = SummaryFacts(enabled=True, summaries=(Summary(1, Lsn(0), Lsn(8 << 24)),), summarized_to=Lsn(8 << 24))


def _choose(
    *commits: PhysicalCommit,
    facts: SourceFacts = FACTS,
    summaries: SummaryFacts = SUMMARIES,
    problems: dict[str, str] | None = None,
    most: int = 24,
) -> Choice:
    return choose_parent(catalog(*commits, problems=problems).entries, facts, summaries, most)


def test_the_newest_whole_backup_is_the_parent() -> None:
    assert _choose(FULL) == Choice(FULL, None)
    assert _choose(FULL, FIRST, SECOND) == Choice(SECOND, None)
    assert _choose(FULL, FIRST, SECOND, problems={SECOND.id: "gone"}) == Choice(FIRST, None)
    assert _choose(FULL, FIRST, SECOND, problems={FIRST.id: "gone"}) == Choice(FULL, None)


def test_a_chain_at_its_bound_gets_a_full() -> None:
    assert _choose(FULL, FIRST, SECOND, most=3).parent == SECOND
    choice = _choose(FULL, FIRST, SECOND, most=2)
    assert choice.parent is None
    assert "BB_OPS_INCREMENTAL_DEPTH" in str(choice.reason)


@pytest.mark.parametrize(
    ("facts", "summaries", "word"),
    [
        (replace(FACTS, server=replace(SERVER, version_num=150018, version="15.18")), SUMMARIES, "15.18"),
        (FACTS, SummaryFacts(enabled=False), "summarize_wal"),
        (replace(FACTS, server=replace(SERVER, data_checksums=False)), SUMMARIES, "checksums"),
        (replace(FACTS, server=replace(SERVER, version_num=170010)), SUMMARIES, "17"),
        (replace(FACTS, identity=SystemIdentity(SYSTEM, 2, Lsn(9 << 24))), SUMMARIES, "timeline 2"),
        (replace(FACTS, identity=SystemIdentity("5", 1, Lsn(9 << 24))), SUMMARIES, "system 5"),
        (replace(FACTS, identity=SystemIdentity(SYSTEM, 1, Lsn(1 << 20))), SUMMARIES, "set back"),
        (FACTS, replace(SUMMARIES, summaries=(Summary(1, Lsn(2 << 24), Lsn(8 << 24)),)), "wal_summary_keep_time"),
    ],
)
def test_what_forbids_an_increment_is_said(facts: SourceFacts, summaries: SummaryFacts, word: str) -> None:
    choice = _choose(FULL, facts=facts, summaries=summaries)
    assert choice.parent is None
    assert word in str(choice.reason)


def test_no_backup_or_only_broken_ones_means_a_full() -> None:
    assert "no whole backup" in str(_choose().reason)
    assert "base.0000 is missing" in str(_choose(FULL, problems={FULL.id: "base.0000 is missing"}).reason)
    assert _choose(commit(1, engine="logical")).parent is None


def test_summaries_may_overlap_and_lag_but_not_lack() -> None:
    pieces = (Summary(1, Lsn(0), Lsn(20)), Summary(1, Lsn(10), Lsn(30)), Summary(1, Lsn(30), Lsn(40)))
    facts = SummaryFacts(enabled=True, summaries=pieces, summarized_to=Lsn(40))
    assert facts.hole_behind(1, Lsn(5)) is None
    assert facts.hole_behind(1, Lsn(40)) is None, "what was not summarized yet is waited for"
    assert facts.hole_behind(1, Lsn(90)) is None
    assert replace(facts, summarized_to=Lsn(50)).hole_behind(1, Lsn(5)) == 40
    assert replace(facts, summaries=pieces[::2]).hole_behind(1, Lsn(5)) == 20
    assert facts.hole_behind(2, Lsn(5)) == 5


def test_a_catalog_shows_chains_and_dependants() -> None:
    other = commit(5)
    on_other = commit(6, other)
    found = catalog(on_other, SECOND, other, FULL, FIRST)
    assert [[entry.commit.id for entry in chain] for chain in found.chains] == [
        [FULL.id, FIRST.id, SECOND.id],
        [other.id, on_other.id],
    ]
    assert found.find(SECOND.id).chain == (FULL, FIRST, SECOND)
    assert [entry.commit.id for entry in found.dependants(FIRST.id)] == [SECOND.id]
    assert found.find("latest").commit == on_other
    assert not any(entry.problems for entry in found.entries)


def test_a_missing_or_damaged_parent_is_a_problem_of_all_above_it() -> None:
    found = catalog(FULL, SECOND)
    assert f"its parent {FIRST.id} is missing in primary" in found.find(SECOND.id).problems[0]
    assert any(FIRST.id in problem for problem in region_status(overview(found), BEGAN).problems)
    assert found.newest_whole() == found.find(FULL.id)
    assert found.chains[-1] == (found.find(SECOND.id),)
    found = catalog(FULL, FIRST, SECOND, problems={FULL.id: "base.0000 is missing"})
    assert all("base.0000 is missing" in entry.problems[0] for entry in found.entries)
    assert f"needs {FIRST.id}" in found.find(SECOND.id).problems[0]


def test_a_parent_with_a_damaged_commit_is_named() -> None:
    damage = IntegrityError(f"file:///r/main/1/base/{FULL.id}/COMMIT.json is damaged")
    found = linked(Catalog("primary", [CatalogEntry(FIRST, (), ())], [damage]))
    assert f"{FULL.id}/COMMIT.json is damaged" in found.find(FIRST.id).problems[0]


def test_a_parent_that_is_another_backup_is_refused() -> None:
    stranger = commit(1, id=FULL.id, system_id="1")
    assert "not the backup that it was taken against" in catalog(stranger, FIRST).find(FIRST.id).problems[0]
    too_deep = commit(2, FULL, depth=7)
    assert "not the backup that it was taken against" in catalog(FULL, too_deep).find(too_deep.id).problems[0]


def test_only_fulls_represent_slots() -> None:
    late = commit(25, SECOND)
    found = catalog(FULL, FIRST, SECOND, late)
    assert missing_slots(overview(found).backups, late.started_at) == (late.slot,)
    assert found.find_slot(FULL.slot).commit == FULL


@pytest.mark.parametrize("changes", [{"parent_id": None}, {"depth": 0}, {"kind": "full"}])
def test_an_increment_without_parent_or_depth_cannot_be_said(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        commit(2, FULL, **changes)


def test_a_commit_written_before_increments_is_read() -> None:
    old = FULL.model_dump(mode="json")
    for name in ("parent_id", "depth", "cluster_bytes", "fallback_reason", "combined_from"):
        del old[name]
    assert PhysicalCommit.model_validate(old) == FULL


def test_parents_are_copied_first_whatever_the_clocks_said() -> None:
    set_back = commit(0, SECOND, end_lsn=Lsn(99 << 24))
    plan = plan_copy(catalog(set_back, FULL, FIRST, SECOND), None, verify_all=False)
    assert plan.to_copy == (FULL.id, FIRST.id, SECOND.id, set_back.id)
    there = catalog(FULL, FIRST, region="replica")
    plan = plan_copy(catalog(set_back, FULL, FIRST, SECOND), there, verify_all=False)
    assert plan.to_copy == (SECOND.id, set_back.id)
    assert plan.refused == ()


def test_an_increment_is_not_copied_where_its_chain_is_broken() -> None:
    plan = plan_copy(catalog(FULL, FIRST, SECOND, problems={FIRST.id: "gone"}), None, verify_all=False)
    assert plan.to_copy == (FULL.id,)
    assert any(line.startswith(SECOND.id) for line in plan.refused)
    there = catalog(FULL, FIRST, problems={FULL.id: "base.0000 is missing"}, region="replica")
    plan = plan_copy(catalog(FULL, FIRST, SECOND), there, verify_all=False)
    assert plan.to_copy == ()
    assert "damaged there" in plan.refused[0]


def test_backups_that_do_not_fit_are_not_joined() -> None:
    refuse_unfit((FULL, FIRST, SECOND))
    refuse_unfit((FULL,))
    with pytest.raises(IntegrityError, match=FULL.id):
        refuse_unfit((FIRST, SECOND))
    with pytest.raises(IntegrityError, match="another parent"):
        refuse_unfit((FULL, SECOND))
    with pytest.raises(IntegrityError, match="data_checksums"):
        refuse_unfit((FULL, commit(2, FULL, data_checksums=False)))


def test_a_chain_needs_room_for_itself_and_its_result() -> None:
    assert needed_bytes((FULL,)) == 0
    assert needed_bytes((FULL, commit(2, FULL, cluster_bytes=700))) == 700


def test_a_manifest_is_read_and_a_changed_one_refused() -> None:
    text = (
        '{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": 17,\n"Files": [{"Path": "a"}],\n'
        '"WAL-Ranges": [{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "0/2000120" }],\n'
    )
    checksum = hashlib.sha256(text.encode()).hexdigest()
    manifest = f'{text}"Manifest-Checksum": "{checksum}"}}\n'.encode()
    facts = read_backup_manifest(manifest)
    assert (facts.system_id, facts.timeline, str(facts.start_lsn), facts.files) == ("17", 1, "0/2000028", 1)
    for damaged in (manifest.replace(b'"a"', b'"b"'), manifest[:-40], b"", b"{}", json.dumps({}).encode()):
        with pytest.raises(IntegrityError):
            read_backup_manifest(damaged)
