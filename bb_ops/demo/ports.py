"""Free TCP ports on the loopback address, below the range that the kernel hands out by itself."""

import secrets
import socket
from collections.abc import Collection

from bb_ops.errors import UsageError

HOST = "127.0.0.1"
SEAWEED_OFFSETS = (0, 1, 2, 3, 4, 10000, 10001, 10002, 10003, 10004)
"""One SeaweedFS server listens on five ports and, for gRPC, on the same five plus 10000."""
SINGLE = (0,)

_LOWEST, _HIGHEST = 12_000, 22_000  # plus 10000 stays below 32768, where Linux's ephemeral ports begin
_ATTEMPTS = 200


def are_free(base: int, offsets: Collection[int] = SINGLE) -> bool:
    """Tell whether a server could listen on all ports of the block now."""
    return all(_is_free(base + offset) for offset in offsets)


def choose(offsets: Collection[int] = SINGLE, *, avoid: Collection[int] = ()) -> int:
    """Return the base of a random block whose ports are all free and not among those to avoid.

    Raises:
        UsageError: no free block was found.
    """
    for _ in range(_ATTEMPTS):
        base = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
        if not {base + offset for offset in offsets} & set(avoid) and are_free(base, offsets):
            return base
    raise UsageError(f"found no free TCP ports on {HOST} between {_LOWEST} and {_HIGHEST}")


def keep_or_choose(base: int, offsets: Collection[int] = SINGLE, *, avoid: Collection[int] = ()) -> int:
    """Return the block's own base where its ports are still free, else another one."""
    return base if are_free(base, offsets) else choose(offsets, avoid=avoid)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections that our own server left in TIME_WAIT do not count: it may take the port again.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
