"""A lock that holds between processes, hosts and schedulers: leases with fencing numbers in the repository.

Leases are write-once objects numbered upwards. Whoever creates the next number, which the store lets only one writer
do, holds the lock until the lease ends; while it works it creates further numbers. A holder that dies blocks nobody
for longer than one lease, and on its own host for no time at all: a dead process is seen at once.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread

from bb_ops import process
from bb_ops.clock import Clock
from bb_ops.errors import AlreadyExists, BbOpsError, Locked
from bb_ops.findings import Value
from bb_ops.repository import layout
from bb_ops.storage.base import ObjectStore

LEASE = timedelta(seconds=60)
"""How long a lease lasts; renewed after a third of it. Also the clock difference between hosts that is tolerated."""
_DIGITS = 12
_NAME = re.compile(rf"[0-9]{{{_DIGITS}}}\.json")


class Lease(Value):
    """One lease, as stored."""

    schema_id: str = "bb-ops/lease/1"
    holder: str
    host: str
    process: str
    expires_at: datetime
    released: bool = False


class HeldLock:
    """A lock that we hold; ``check`` before any step that must not be done twice."""

    def __init__(self, store: ObjectStore, prefix: str, clock: Clock, first_fence: int, lease: Lease) -> None:
        """Remember the lease we won."""
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._fence = first_fence
        self._holder = lease.holder
        self._expires_at = lease.expires_at
        self._lost: str | None = None
        self._ended = Event()
        self._thread = Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Prove that we still hold the lock.

        Raises:
            Locked: the lease ran out or another run took over; what we were about to do must not be done.
        """
        if self._lost is None and self._clock.now() >= self._expires_at:
            self._lost = "the lease ran out while the repository could not be reached"
        if self._lost is not None:
            raise Locked(f"the lock {self._prefix} was lost: {self._lost}; nothing was committed")

    def release(self) -> None:
        """Give the lock back, and remove old leases where the store allows it. Never fails: a lease ends anyway."""
        self._ended.set()
        self._thread.join()
        if self._lost is None:
            self._put(_lease(self._holder, self._clock.now(), released=True))
        with suppress(BbOpsError):
            for fence in _fences(self._store, self._prefix):
                if fence < self._fence - 1:
                    self._store.delete(_key(self._prefix, fence))

    def _renew(self) -> None:
        while not self._ended.wait(LEASE.total_seconds() / 3):
            self._put(_lease(self._holder, self._clock.now() + LEASE))
            with suppress(BbOpsError):  # a long run must not pile up old leases
                self._store.delete(_key(self._prefix, self._fence - 2))

    def _put(self, lease: Lease) -> None:
        try:
            self._store.create(_key(self._prefix, self._fence + 1), lease.model_dump_json().encode())
        except AlreadyExists:
            self._lost = "another run took over"
            self._ended.set()
        except BbOpsError:
            return  # the next renewal tries again; `check` sees an expired lease
        else:
            self._fence += 1
            self._expires_at = lease.expires_at


@contextmanager
def lock(store: ObjectStore, cluster: str, name: str, clock: Clock, purpose: str) -> Iterator[HeldLock]:
    """Hold the lock ``name`` of a cluster during a block.

    Raises:
        Locked: another run holds it; the message says who and until when.
    """
    prefix = layout.lock_prefix(cluster, name)
    fence = max(_fences(store, prefix), default=0)
    live = _live(store, _key(prefix, fence), clock) if fence else None
    if live is not None:
        raise Locked(f"{live.holder} is at work (lease until {live.expires_at:%H:%M:%S} UTC): wait for it to end")
    holder = f"{purpose} by {socket.gethostname()} pid {os.getpid()}"
    lease = _lease(holder, clock.now() + LEASE)
    taken = Locked(f"another run took the lock {prefix} at this moment: try again later")
    try:
        store.create(_key(prefix, fence + 1), lease.model_dump_json().encode())
    except AlreadyExists as error:
        raise taken from error
    if max(_fences(store, prefix), default=0) > fence + 1:
        raise taken  # we were slow: others came and went, and removed the lease that should have stopped us
    held = HeldLock(store, prefix, clock, fence + 1, lease)
    try:
        yield held
    finally:
        held.release()


def holder_of(store: ObjectStore, cluster: str, name: str, clock: Clock) -> str | None:
    """Say who holds a lock at this moment; None where nobody does."""
    prefix = layout.lock_prefix(cluster, name)
    fence = max(_fences(store, prefix), default=0)
    live = _live(store, _key(prefix, fence), clock) if fence else None
    return live.holder if live is not None else None


def _live(store: ObjectStore, key: str, clock: Clock) -> Lease | None:
    data = store.read(key)
    if data is None:
        return None
    try:
        lease = Lease.model_validate(json.loads(data))
    except ValueError as error:
        raise BbOpsError(f"{store.url}/{key} is not a lease: remove it once no run is active") from error
    return None if lease.released or clock.now() >= lease.expires_at or _is_dead(lease) else lease


def _is_dead(lease: Lease) -> bool:
    if lease.host != _host():
        return False
    pid, _, ticks = lease.process.partition("@")
    return process.start_ticks(int(pid)) != int(ticks)


def _lease(holder: str, expires_at: datetime, *, released: bool = False) -> Lease:
    return Lease(
        holder=holder,
        host=_host(),
        process=f"{os.getpid()}@{process.start_ticks(os.getpid())}",
        expires_at=expires_at,
        released=released,
    )


def _host() -> str:
    """Name this boot of this host and this process namespace: only there do process numbers mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _key(prefix: str, fence: int) -> str:
    return f"{prefix}{fence:0{_DIGITS}d}.json"


def _fences(store: ObjectStore, prefix: str) -> list[int]:
    names = [info.key.removeprefix(prefix) for info in store.objects(prefix)]
    return [int(name.removesuffix(".json")) for name in names if _NAME.fullmatch(name)]
