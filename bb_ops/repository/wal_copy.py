"""Copies one object or record of WAL to another repository, byte for byte, re-hashed where it arrives."""

from bb_ops.errors import AlreadyExists, IntegrityError
from bb_ops.repository import wal
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal import WalRecord
from bb_ops.storage.sealed import Expected, verify_stored


def copy_object(source: Repository, destination: Repository, expected: Expected) -> int:
    """Copy a sealed object, unless it is there whole; return the bytes sent.

    Raises:
        IntegrityError: the source's bytes, or those that arrived, differ from the signed hash.
    """
    store = destination.store
    if store.stat(expected.key) is not None:
        try:
            verify_stored(store, expected)
        except IntegrityError:
            store.delete(expected.key)  # not recorded there, so nobody relies on it
        else:
            return 0
    with store.writer(expected.key) as writer:
        verify_stored(source.store, expected, writer.write)
    verify_stored(store, expected)
    return expected.size_bytes


def copy_record(source: Repository, destination: Repository, key: str, kind: type[WalRecord]) -> bool:
    """Copy a signed record; False where it is gone, since a span took it over, which follows.

    Raises:
        IntegrityError: it is damaged, or another one is stored there under its key.
        KeyRejected: it is not signed by our key.
    """
    data = source.store.read(key)
    if data is None:
        return False
    wal.parse_record(source, data, key, kind)
    try:
        destination.store.create(key, data)
    except AlreadyExists:
        if destination.store.read(key) != data:
            raise IntegrityError(f"{destination.store.url}/{key} differs from the source's") from None
    return True
