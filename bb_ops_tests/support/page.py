"""Follows a ``RECOVERY.md`` to the letter, where neither bb_ops nor Python is on the path."""

import subprocess
from pathlib import Path
from typing import Any

from bb_ops_tests.support.programs import SEARCHED, system_program
from bb_ops_tests.support.rooms import hand_over, server_account

_TOOLS = "awk cat chmod cp grep ls ln locale mkdir mv rm sed sh sha256sum sleep tail tr truncate"


def follow(page: str, room: Path, **names: str | Path) -> subprocess.CompletedProcess[str]:
    """Run every ``sh`` block of a page as PostgreSQL's account, with the names of its first step set."""
    script, tools = room / "restore.sh", room / "tools"
    script.write_text("".join(blocks(page)), encoding="utf-8")
    if not tools.exists():
        tools.mkdir()
        for word in _TOOLS.split():
            (tools / word).symlink_to(_found(word))
        for word in ("age", "zstd", "tar"):
            (tools / word).symlink_to(system_program(word))
    hand_over(room)
    account = server_account()
    identity: dict[str, Any] = {}
    if account is not None:
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return subprocess.run(
        [tools / "sh", script],
        capture_output=True,
        check=False,
        text=True,
        cwd=room,
        env={"PATH": str(tools), "HOME": str(room), **{name: str(value) for name, value in names.items()}},
        timeout=180,
        **identity,
    )


def blocks(page: str) -> list[str]:
    """Return the ``sh`` blocks of a page, in order."""
    return [part.partition("\n```")[0] + "\n" for part in page.split("\n```sh\n")[1:]]


def _found(word: str) -> Path:
    return next(path for folder in SEARCHED.split(":") if (path := Path(folder) / word).exists())
