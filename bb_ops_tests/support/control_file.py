"""Gives a cluster the system identifier of another one, as no honest server has it: for tests of what must be refused.

The identifier is the first field of ``global/pg_control``, and a CRC-32C of all before it is its last field
(pg_control.h, ControlFileData). pg_resetwal then writes WAL that bears the identifier.
"""

import struct

from bb_ops_tests.support.postgres import Cluster

_POLYNOMIAL = 0x82F63B78
_ALIGNMENT = 4
_FIRST_POSSIBLE = 200
_LAST_POSSIBLE = 512


def adopt_system_id(cluster: Cluster, system_id: str) -> None:
    """Make a stopped cluster claim another's system identifier, with a control file and WAL that are right by it."""
    path = cluster.data / "global" / "pg_control"
    content = bytearray(path.read_bytes())
    at = next(
        at
        for at in range(_FIRST_POSSIBLE, _LAST_POSSIBLE, _ALIGNMENT)
        if struct.unpack_from("=I", content, at)[0] == crc32c(content[:at])
    )
    struct.pack_into("=Q", content, 0, int(system_id))
    struct.pack_into("=I", content, at, crc32c(content[:at]))
    path.write_bytes(content)
    cluster.run("pg_resetwal", "-f", "-D", str(cluster.data))


def crc32c(data: bytes | bytearray) -> int:
    """Return the Castagnoli CRC of some bytes (RFC 3720)."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = (found >> 1) ^ (_POLYNOMIAL if found & 1 else 0)
    return found ^ 0xFFFFFFFF
