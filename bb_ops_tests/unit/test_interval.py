"""What is taken beside a sealed span, decided without a server."""

from bb_ops.backup.interval import Decision, decide
from bb_ops.postgres.wal_summaries import SummaryFacts
from bb_ops.repository.status import region_status
from bb_ops_tests.support.commits import BEGAN, SYSTEM, catalog, commit, overview

ON, OFF = SummaryFacts(enabled=True), SummaryFacts(enabled=False)


def test_with_summaries_the_increment_decides_for_itself() -> None:
    assert decide(SYSTEM, "18.1", ON, []) == Decision()
    assert decide(SYSTEM, "18.1", ON, catalog(commit(0)).entries) == Decision()


def test_without_summaries_the_span_alone_is_taken() -> None:
    held = catalog(commit(0)).entries
    assert decide(SYSTEM, "18.1", OFF, held) == Decision(skipped="summarize_wal is off")
    old = decide(SYSTEM, "15.3", None, held)
    assert (old.first_full, old.skipped) == (None, "PostgreSQL 15.3 has no block increments")


def test_without_any_whole_backup_of_this_system_a_full_is_taken() -> None:
    first = commit(0)
    for held in (catalog(), catalog(first, problems={first.id: "gone"}), catalog(commit(0, system_id="1"))):
        for summaries in (OFF, None):
            decision = decide(SYSTEM, "15.3", summaries, held.entries)
            assert decision.skipped is None
            assert "no whole backup" in (decision.first_full or "")


def test_status_counts_the_increments_of_each_chain() -> None:
    first = commit(0)
    second = commit(1, first)
    third = commit(2, second)
    status = region_status(overview(catalog(first, second, third, commit(3))), BEGAN)
    (chain,) = status.chains
    assert (chain.full_id, chain.increments, chain.newest_id) == (first.id, 2, third.id)
    assert chain.newest_at == third.as_of
