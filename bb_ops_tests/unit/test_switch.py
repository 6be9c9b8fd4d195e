"""When a copy may take a live directory's place, what that is called, and what is left of the old one."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bb_ops.errors import TargetRefused
from bb_ops.postgres.cluster import Newest
from bb_ops.postgres.data_directory import DataDirectory, command_line_of, server_in
from bb_ops.recovery.restore import NO_ARCHIVING, Restored, keep_from_archiving
from bb_ops.recovery.switch.decision import SwitchFacts, begin, pending_switch, plan_switch, refusals_before
from bb_ops.recovery.switch.exchange import allow_archiving, take_configuration
from bb_ops.recovery.switch.journal import (
    Journal,
    Proven,
    Step,
    journal_of_old,
    old_path,
    read_proven,
    remember_proven,
    spaces_path,
)
from bb_ops.recovery.switch.release import refusals, release
from bb_ops.recovery.target import Target
from bb_ops.repository.ids import BackupId
from bb_ops_tests.unit.builders import NOON, SYSTEM_ID, SettableClock

LIVE = Path("/srv/pg/data")
COPY = Path("/srv/pg/data.bb_ops-recovered")
PROVEN = Proven(
    id="20261124T120000000000Z",
    plan_hash="0011223344556677",
    cluster="main",
    backup_id=BackupId("20261124T020000Z-full-00000000"),
    region="primary",
    target="latest",
    level="L5",
    system_id=SYSTEM_ID,
    timeline=2,
    recovered_to_at=NOON,
    recovered_to_lsn="0/5000000",
    inode=22,
)


def directory(path: Path = LIVE, **changes: Any) -> DataDirectory:  # noqa: ANN401 - any field
    made = DataDirectory(
        path=path,
        major=18,
        system_id=SYSTEM_ID,
        timeline=1,
        next_xid=900,
        checkpoint_at=NOON,
        shut_down=False,
        device=1,
        inode=11,
        uid=os.geteuid(),
        pid=4711,
        port=5432,
        standby=False,
        mounted=False,
        tablespaces={},
    )
    return replace(made, **changes)


def facts(live: dict[str, Any] | None = None, copy: dict[str, Any] | None = None, **changes: Any) -> SwitchFacts:  # noqa: ANN401
    restored = directory(COPY, timeline=2, next_xid=700, shut_down=True, inode=22, pid=None, port=None)
    made = SwitchFacts(
        live=directory(**(live or {})),
        copy=replace(restored, **(copy or {})),
        copy_path=COPY,
        copy_device=1,
        proven=PROVEN,
        newest=None,
        writable=True,
        may_act=True,
        old_exists=False,
    )
    return replace(made, **changes)


def test_a_proven_copy_may_take_the_place() -> None:
    plan = plan_switch(facts(newest=Newest(1000, NOON, SYSTEM_ID, 5432)))
    assert (plan.refusals, plan.lost_transactions, plan.live_running) == ((), 300, True)
    assert plan.old == Path("/srv/pg/data.bb_ops-old-20261124T120000000000Z")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (facts(copy_path=LIVE / "copy"), "lies in or around"),
        (facts(copy_path=LIVE.parent), "lies in or around"),
        (facts(copy_device=2), "another file system"),
        (facts({"mounted": True}), "mount point"),
        (facts(copy={"mounted": True}), "mount point"),
        (facts({"standby": True}), "is a standby"),
        (facts(writable=False), "cannot be written to"),
        (facts(may_act=False), "belongs to another account"),
        (facts({"system_id": "7"}), "is it the right directory?"),
        (facts({"major": 17}), "of PostgreSQL 17, and the backup of 18"),
        (facts(newest=Newest(1, NOON, "7", 5432)), "another running server"),
        (facts({"pid": None, "port": None}, newest=Newest(1, NOON, SYSTEM_ID, 5432)), "another running server"),
        (facts(proven=PROVEN.model_copy(update={"level": "L3"})), "proven L3 only"),
        (facts(copy={"timeline": 3}), "no longer the copy that was proven"),
        (facts({"timeline": 2}), "is already on 2"),
        (facts(copy={"uid": 12345}), "belongs to another account than"),
        (facts(old_exists=True), "exists already"),
    ],
)
def test_what_cannot_take_the_place_is_refused(made: SwitchFacts, said: str) -> None:
    plan = plan_switch(made)
    assert [said in refusal for refusal in plan.refusals] == [True]
    with pytest.raises(TargetRefused, match="nothing was changed"):
        begin(made, plan)


def test_another_system_may_be_accepted_but_no_other_version() -> None:
    other = facts({"system_id": "7"})
    assert plan_switch(other, other_system=True).refusals == ()
    assert refusals_before(other, SYSTEM_ID, 17, other_system=True) != []


def test_without_a_proof_there_is_nothing_to_decide() -> None:
    with pytest.raises(TargetRefused, match="nothing is known of a proven copy"):
        plan_switch(facts(proven=None, copy=None))


def test_the_hash_binds_what_is_replaced_and_by_what() -> None:
    assert plan_switch(facts()).plan_hash == plan_switch(facts({"next_xid": 5000})).plan_hash
    others = [
        facts({"timeline": 0}),
        facts({"path": Path("/srv/pg/other")}),
        facts(proven=PROVEN.model_copy(update={"id": "x"})),
    ]
    assert len({plan_switch(one).plan_hash for one in [facts(), *others]}) == 4


def journal(room: Path, *steps: Step) -> Journal:
    live, copy = directory(room / "data"), room / "copy"
    made = facts({"path": live.path}, {"path": copy}, copy_path=copy)
    begun = begin(made, plan_switch(made))
    for step in steps:
        begun = begun.with_step(step, "", SettableClock())
    return begun


def test_the_same_command_finds_the_switch_that_it_began_and_another_is_kept_off(room: Path) -> None:
    begun = journal(room, Step.BEGUN)
    data, copy, confirmed = room / "data", room / "copy", begun.plan_hash
    assert pending_switch(data, copy, confirmed) == begun
    assert pending_switch(data, copy, None, "latest") == begun
    for other in ((data, room / "other", confirmed), (data, copy, "another"), (data, copy, None, "immediate")):
        with pytest.raises(TargetRefused, match=f"--plan {confirmed}"):
            pending_switch(*other)
    assert pending_switch(room / "dat", copy, confirmed) is None
    started = begun.with_step(Step.STARTED, "", SettableClock())
    assert pending_switch(data, copy, None, "latest") == started
    ended = started.with_step(Step.BACKED_UP, "", SettableClock())
    assert pending_switch(data, copy, None, "latest") is None
    assert pending_switch(data, copy, confirmed) == ended
    assert pending_switch(data, copy, "another") is None


def test_a_switch_that_was_taken_back_is_begun_anew(room: Path) -> None:
    begun = journal(room, Step.BEGUN, Step.ROLLED_BACK)
    assert pending_switch(room / "data", room / "copy", begun.plan_hash) is None


def test_only_what_a_switch_kept_and_backed_up_is_released(room: Path) -> None:
    old = old_path(room / "data", PROVEN.id)
    (old / "base").mkdir(parents=True)
    (old / "outside").symlink_to(room)
    with pytest.raises(TargetRefused, match="was not kept by a switch"):
        journal_of_old(old)
    begun = journal(room, Step.BEGUN)
    assert "has not ended" in refusals(begun, backed_up=True)[0]
    started = begun.with_step(Step.STARTED, "", SettableClock())
    assert "is not the directory" in refusals(started, backed_up=True)[0]
    ours = started.model_copy(update={"live_inode": old.stat().st_ino})
    assert "no full backup" in refusals(ours, backed_up=False)[0]
    assert refusals(ours, backed_up=True) == []
    release(ours, SettableClock())
    assert sorted(path.name for path in room.iterdir()) == [ours.path.name]
    assert journal_of_old(old).did(Step.RELEASED)


def test_a_release_that_was_killed_is_ended(room: Path) -> None:
    old = old_path(room / "data", PROVEN.id)
    tombstone = old.with_name(old.name + ".bb_ops-released")
    tombstone.mkdir()
    (tombstone / "left").touch()
    ours = journal(room, Step.BEGUN, Step.STARTED).model_copy(update={"live_inode": tombstone.stat().st_ino})
    assert refusals(ours, backed_up=True) == []
    release(ours, SettableClock())
    assert not tombstone.exists()


def test_tablespaces_that_a_switch_made_a_place_for_go_with_their_cluster(room: Path) -> None:
    theirs, ours, used = (
        room / "fast" / "1",
        spaces_path(room / "data", "a") / "1",
        spaces_path(room / "data", "b") / "2",
    )
    for space in (theirs, ours, used):
        space.mkdir(parents=True)
    (room / "data" / "pg_tblspc").mkdir(parents=True)
    (room / "data" / "pg_tblspc" / "2").symlink_to(used)
    places = {"old_tablespaces": {1: ours, 2: used, 3: theirs}}
    released = release(journal(room, Step.BEGUN, Step.STARTED).model_copy(update=places), SettableClock())
    assert sorted(released.left) == sorted([theirs, used])
    assert (theirs.exists(), used.exists(), ours.parent.exists()) == (True, True, False)


def test_a_proof_counts_for_the_very_directory_alone(room: Path) -> None:
    copy = room / "copy"
    copy.mkdir()
    remember_proven(copy, PROVEN.model_copy(update={"inode": copy.stat().st_ino}))
    assert read_proven(copy) is not None
    copy.rename(room / "away")
    copy.mkdir()
    assert read_proven(copy) is None


def test_the_configuration_of_the_live_server_counts_and_archiving_comes_back(room: Path) -> None:
    live, copy = room / "live", room / "copy"
    for place in (live, copy):
        place.mkdir()
        (place / "postgresql.conf").write_text(f"# {place.name}\n", encoding="utf-8")
    (live / "server.key").write_text("renewed", encoding="utf-8")
    (live / "base").mkdir()
    (copy / "postgresql.auto.conf").write_text("archive_mode = 'on'\n", encoding="utf-8")
    keep_from_archiving(Restored(Target(copy, room / "spaces", None), 0, None, 0.0, ()))
    assert NO_ARCHIVING in (copy / "postgresql.auto.conf").read_bytes()
    for _ in range(2):
        assert take_configuration(live, copy) == ["postgresql.conf", "server.key"]
    assert (copy / "postgresql.auto.conf").read_text(encoding="utf-8") == "archive_mode = 'on'\n"
    assert (copy / "postgresql.conf").read_text(encoding="utf-8") == "# live\n"
    assert sorted(path.name for path in copy.iterdir()) == ["postgresql.auto.conf", "postgresql.conf", "server.key"]
    allow_archiving(live)
    assert not (live / "postgresql.auto.conf").exists()


def test_a_command_line_is_read_as_it_was_given(room: Path) -> None:
    words = ("/usr/lib/postgresql/18/bin/postgres", "-D", "/srv/my data", "-c", "cluster_name=a b", "")
    text = words[0] + "".join(f' "{word}"' for word in words[1:]) + "\n"
    (room / "postmaster.opts").write_text(text, encoding="utf-8")
    assert command_line_of(room) == words


def test_what_an_operator_should_know_is_noted() -> None:
    notes = plan_switch(facts(unit="postgresql@18-main.service", wal_elsewhere=Path("/fast/wal"))).notes
    assert [word in "; ".join(notes) for word in ("was not asked", "/fast/wal", "run by postgresql@18-main")] == [
        True
    ] * 3


def test_a_number_in_a_lock_file_is_no_server(room: Path) -> None:
    (room / "postmaster.pid").write_text(f"{os.getpid()}\n", encoding="utf-8")
    assert server_in(room) is None
