"""The lock between processes and hosts: one holder at a time, and nobody waits for the dead."""

import random
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from bb_ops.errors import BbOpsError, Locked
from bb_ops.repository.lock import LEASE, Lease, lock
from bb_ops.storage.local import LocalStore
from bb_ops_tests.unit.builders import NOON, SettableClock

PREFIX = "main/locks/full/"
CHECKOUT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from bb_ops.clock import SystemClock
from bb_ops.repository.lock import lock
from bb_ops.storage.local import LocalStore
with lock(LocalStore(Path({root!r})), "main", "full", SystemClock(), "the doomed backup"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


def lease_of_another_host(expires_at: datetime, *, released: bool = False) -> bytes:
    lease = Lease(
        holder="backup full by elsewhere pid 1",
        host="another boot/another namespace",
        process="1@1",
        expires_at=expires_at,
        released=released,
    )
    return lease.model_dump_json().encode()


def lease_names(store: LocalStore) -> list[str]:
    return [info.key.removeprefix(PREFIX) for info in store.objects(PREFIX)]


def take_and_release(store: LocalStore, clock: SettableClock, purpose: str = "second") -> None:
    with lock(store, "main", "full", clock, purpose) as held:
        held.check()


def test_a_second_holder_is_refused_and_told_who_the_first_is(store: LocalStore, clock: SettableClock) -> None:
    with lock(store, "main", "full", clock, "backup full X"):
        with pytest.raises(Locked) as refused:
            take_and_release(store, clock)
        assert refused.value.exit_code == 11
        assert refused.value.retryable
        assert "backup full X by " in str(refused.value)
        assert f"{NOON + LEASE:%H:%M:%S} UTC" in str(refused.value)


def test_a_released_lock_is_free_at_once(store: LocalStore, clock: SettableClock) -> None:
    for purpose in ("first", "second", "third"):
        take_and_release(store, clock, purpose)


def test_it_is_released_when_the_block_fails(store: LocalStore, clock: SettableClock) -> None:
    with pytest.raises(ZeroDivisionError), lock(store, "main", "full", clock, "first"):
        raise ZeroDivisionError
    take_and_release(store, clock)


def test_locks_of_other_names_and_clusters_are_others(store: LocalStore, clock: SettableClock) -> None:
    with (
        lock(store, "main", "full", clock, "1"),
        lock(store, "main", "sync", clock, "2"),
        lock(store, "other", "full", clock, "3") as held,
    ):
        held.check()


def test_no_thread_and_few_leases_stay_behind(store: LocalStore, clock: SettableClock) -> None:
    before = set(threading.enumerate())
    for _ in range(10):
        take_and_release(store, clock)
    assert set(threading.enumerate()) <= before
    assert len(lease_names(store)) <= 3


def test_a_process_killed_on_this_host_blocks_nobody(store: LocalStore, root: Path) -> None:
    """Its lease would last another minute; its process is gone."""
    clock = SettableClock(datetime.now().astimezone())
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(root=str(root))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Locked, match="the doomed backup"):
            take_and_release(store, clock)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    take_and_release(store, clock)


def test_a_dead_process_that_nobody_reaped_blocks_nobody(store: LocalStore, root: Path) -> None:
    clock = SettableClock(datetime.now().astimezone())
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(root=str(root))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        child.kill()
        deadline = time.monotonic() + 10
        while ") Z " not in Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii"):
            assert time.monotonic() < deadline
        take_and_release(store, clock)


def test_a_running_lease_of_another_host_is_respected(store: LocalStore, clock: SettableClock) -> None:
    """Process numbers say nothing there: number 1 runs on every host."""
    store.create(f"{PREFIX}000000000001.json", lease_of_another_host(NOON + timedelta(seconds=1)))
    with pytest.raises(Locked, match="elsewhere"):
        take_and_release(store, clock)


@pytest.mark.parametrize("expired_for_s", [0, 1, 86_400])
def test_an_expired_lease_of_another_host_is_taken_over(
    store: LocalStore, clock: SettableClock, expired_for_s: int
) -> None:
    store.create(f"{PREFIX}000000000001.json", lease_of_another_host(NOON - timedelta(seconds=expired_for_s)))
    take_and_release(store, clock)


def test_a_released_lease_of_another_host_is_free_whatever_its_clock_says(
    store: LocalStore, clock: SettableClock
) -> None:
    store.create(f"{PREFIX}000000000001.json", lease_of_another_host(NOON + timedelta(days=1), released=True))
    take_and_release(store, clock)


def test_the_highest_number_counts(store: LocalStore, clock: SettableClock) -> None:
    store.create(f"{PREFIX}000000000009.json", lease_of_another_host(NOON, released=True))
    store.create(f"{PREFIX}000000000010.json", lease_of_another_host(NOON + timedelta(seconds=30)))
    with pytest.raises(Locked):
        take_and_release(store, clock)


def test_a_lease_that_ran_out_is_lost(store: LocalStore, clock: SettableClock) -> None:
    with lock(store, "main", "full", clock, "slow") as held:
        clock.advance(LEASE.total_seconds() - 1)
        held.check()
        clock.advance(1)
        with pytest.raises(Locked, match=r"was lost.*nothing was committed"):
            held.check()


def test_a_lost_lock_stays_lost_when_the_clock_steps_back(store: LocalStore, clock: SettableClock) -> None:
    with lock(store, "main", "full", clock, "slow") as held:
        clock.advance(3600)
        with pytest.raises(Locked):
            held.check()
        clock.advance(-3600)
        with pytest.raises(Locked):
            held.check()


def test_after_a_takeover_the_old_holder_leaves_the_new_one_alone(store: LocalStore, clock: SettableClock) -> None:
    with lock(store, "main", "full", clock, "slow") as slow:
        clock.advance(61)
        store.create(f"{PREFIX}000000000002.json", lease_of_another_host(clock.now() + LEASE))
        with pytest.raises(Locked):
            slow.check()
    with pytest.raises(Locked, match="elsewhere"):
        take_and_release(store, clock)


class SlowClock(SettableClock):
    """A clock on which some seconds pass whenever somebody looks: a host under load, a store that answers slowly."""

    def now(self) -> datetime:
        self.advance(5)
        return self.at


def test_we_never_believe_to_hold_it_longer_than_others_do(store: LocalStore) -> None:
    clock = SlowClock()
    with lock(store, "main", "full", clock, "slow") as held:
        stored = Lease.model_validate_json(store.read(f"{PREFIX}000000000001.json") or b"")
        clock.at = stored.expires_at - timedelta(seconds=5)
        with pytest.raises(Locked):
            held.check()


def test_what_is_no_lease_is_said_and_not_guessed(store: LocalStore, clock: SettableClock) -> None:
    store.create(f"{PREFIX}000000000001.json", b"rubbish")
    with pytest.raises(BbOpsError, match=r"000000000001\.json is not a lease"):
        take_and_release(store, clock)


def test_objects_of_other_names_are_no_leases(store: LocalStore, clock: SettableClock) -> None:
    store.create(f"{PREFIX}README", b"about this folder")
    take_and_release(store, clock)
    assert "README" in lease_names(store)


def test_of_many_that_want_it_never_two_have_it(store: LocalStore, clock: SettableClock) -> None:
    inside: list[int] = []
    most_inside: list[int] = []
    held_times: list[int] = []

    def work(number: int) -> None:
        for _ in range(40):
            try:
                with lock(store, "main", "full", clock, f"run {number}"):
                    inside.append(number)
                    most_inside.append(len(inside))
                    time.sleep(random.random() / 1000)
                    inside.remove(number)
                    held_times.append(number)
            except Locked:
                time.sleep(random.random() / 1000)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most_inside) == 1
    assert len(held_times) > 10
