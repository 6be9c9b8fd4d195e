"""Which backups stand for the shapes of chains."""

from bb_ops.repository.catalog import Catalog
from bb_ops.validation.shapes import Shape, ShapeChoice, choose_shapes
from bb_ops_tests.support.commits import SYSTEM, catalog, commit

FULL = commit(0)
CHAIN = (FULL, one := commit(1, FULL), commit(2, one))


def shapes_of(choice: ShapeChoice) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(entry.region, entry.backup_id): tuple(map(str, entry.shapes)) for entry in choice.chosen}


def absent(choice: ShapeChoice) -> dict[Shape, str]:
    return {entry.shape: entry.reason for entry in choice.absent}


def test_one_full_alone_is_oldest_and_newest_and_the_rest_is_said_to_be_absent() -> None:
    choice = choose_shapes([catalog(FULL)], {SYSTEM: 1})
    assert shapes_of(choice) == {("primary", FULL.id): ("newest", "oldest kept")}
    assert absent(choice) == {
        Shape.DEEPEST: "no increment yet",
        Shape.COMBINED: "no synthetic full yet",
        Shape.SWITCHED: "no timeline switch yet",
        Shape.ELSEWHERE: "no other region is set",
    }


def test_every_shape_has_its_own_backup_where_they_differ() -> None:
    combined = commit(3, combined_from=tuple(member.id for member in CHAIN))
    switched, newest = commit(4, timeline=2), commit(5, timeline=2)
    here = catalog(*CHAIN, combined, switched, increment := commit(6, newest, timeline=2), newest)
    there = catalog(*CHAIN, region="replica")
    choice = choose_shapes([here, there], {SYSTEM: 2})
    assert shapes_of(choice) == {
        ("primary", increment.id): ("newest", "after a timeline switch"),
        ("primary", FULL.id): ("oldest kept",),
        ("primary", CHAIN[2].id): ("deepest increment",),
        ("primary", combined.id): ("synthetic full",),
        ("replica", CHAIN[2].id): ("other region",),
    }
    assert choice.absent == ()


def test_a_damaged_backup_is_chosen_and_nothing_stands_in_for_it() -> None:
    choice = choose_shapes([catalog(*CHAIN, problems={FULL.id: "a part is missing"})], {})
    assert ("primary", FULL.id) in shapes_of(choice)
    assert shapes_of(choice)["primary", CHAIN[2].id] == ("newest", "deepest increment")


def test_a_switch_without_a_backup_since_is_said() -> None:
    assert absent(choose_shapes([catalog(FULL)], {SYSTEM: 3}))[Shape.SWITCHED] == (
        "no backup yet since the switch to timeline 3"
    )


def test_an_empty_region_is_said() -> None:
    choice = choose_shapes([catalog(FULL), Catalog("replica")], {})
    assert absent(choice)[Shape.ELSEWHERE] == "replica holds no physical backup"
    assert choose_shapes([Catalog("primary"), Catalog("replica")], {}).chosen == ()
