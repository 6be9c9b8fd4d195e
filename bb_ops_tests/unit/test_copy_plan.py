"""What a copy to the other region would do."""

from datetime import timedelta

from bb_ops.cross_region.plan import plan_copy
from bb_ops.errors import KeyRejected
from bb_ops.repository.catalog import Catalog, CatalogEntry
from bb_ops_tests.unit.builders import NOON, new_commit

ENTRIES = [CatalogEntry(new_commit(started_at=NOON + timedelta(days=day)), (), ()) for day in range(3)]
IDS = [entry.commit.id for entry in ENTRIES]


def test_what_is_missing_is_copied_oldest_first() -> None:
    plan = plan_copy(Catalog("a", ENTRIES), Catalog("b", ENTRIES[1:2]), verify_all=False)
    assert (plan.to_copy, plan.to_verify, plan.refused) == ((IDS[0], IDS[2]), (), ())


def test_without_a_destination_everything_is_copied() -> None:
    plan = plan_copy(Catalog("a", ENTRIES), None, verify_all=True)
    assert (plan.to_copy, plan.to_verify) == (tuple(IDS), ())


def test_what_is_only_in_the_destination_is_never_removed_and_is_verified_when_asked() -> None:
    plan = plan_copy(Catalog("a"), Catalog("b", ENTRIES), verify_all=True)
    assert (plan.to_copy, plan.to_verify) == ((), tuple(IDS))
    assert plan_copy(Catalog("a"), Catalog("b", ENTRIES), verify_all=False).to_verify == ()


def test_a_backup_with_missing_objects_is_refused_and_named() -> None:
    broken = CatalogEntry(ENTRIES[0].commit, ("x is missing",), ())
    plan = plan_copy(Catalog("a", [broken, ENTRIES[1]]), None, verify_all=False)
    assert plan.to_copy == (IDS[1],)
    assert plan.refused == (f"{IDS[0]}: x is missing",)


def test_a_forged_backup_is_refused_and_named() -> None:
    source = Catalog("a", [], [KeyRejected("x/COMMIT.json bears a forged signature")])
    assert plan_copy(source, None, verify_all=False).refused == ("x/COMMIT.json bears a forged signature",)


def test_damage_of_a_backup_that_is_already_copied_refuses_nothing() -> None:
    broken = CatalogEntry(ENTRIES[0].commit, ("x is missing",), ())
    assert plan_copy(Catalog("a", [broken]), Catalog("b", ENTRIES), verify_all=False).refused == ()
