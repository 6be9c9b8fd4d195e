"""What a backup says of its own memory is true, and it writes nothing of the data anywhere but the repository."""

import json
import subprocess
import sys
from pathlib import Path

from bb_ops_tests.support.commands import BB_OPS, bb_ops
from bb_ops_tests.support.postgres import Build, running_cluster

_PARENT = """
import subprocess, sys
ballast = bytearray(b"x") * (700 << 20)
sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
"""
MOST_MEMORY_BYTES = 300_000_000


def test_the_reported_peak_is_the_commands_own_and_not_that_of_who_started_it(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        command = bb_ops(room, wheel_18, server.url)
        answer = subprocess.run(
            [sys.executable, "-c", _PARENT, BB_OPS, "backup", "full", "--json"],
            env=dict(command.environment),
            cwd=room,
            capture_output=True,
            check=True,
            timeout=120,
        )
        alone = command.ok("backup", "full", "--json")
    reported = json.loads(answer.stdout)["peak_memory_bytes"]
    assert 30_000_000 < reported < MOST_MEMORY_BYTES
    assert abs(reported - alone.document["peak_memory_bytes"]) < 50_000_000


def test_a_backup_needs_no_room_on_local_disk(wheel_18: Build, room: Path) -> None:
    with running_cluster(wheel_18, room / "cluster") as server:
        server.execute("CREATE TABLE t AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g")
        command = bb_ops(room, wheel_18, server.url)
        with command.having(TMPDIR="/nonexistent", HOME="/nonexistent").start("backup", "full") as running:
            opened: set[str] = set()
            while running.alive:
                opened |= _files_open_for_writing(running.pid)
            running.finish().expect(0)
    outside = {path for path in opened if not path.startswith((f"{room}/repository", "/dev/", "pipe:", "socket:"))}
    assert outside == set()
    assert any(path.startswith(f"{room}/repository") for path in opened), "the look-out saw no file at all"


def _files_open_for_writing(pid: int) -> set[str]:
    """Return the files that a process has open for writing at this moment (proc(5), fdinfo)."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = str(descriptor.readlink())
            facts = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text(encoding="ascii")
        except OSError:  # it was closed while we looked
            continue
        flags = int(next(line for line in facts.splitlines() if line.startswith("flags:")).split()[1], 8)
        if flags & 0o3 and not target.startswith("anon_inode"):
            found.add(target)
    return found
