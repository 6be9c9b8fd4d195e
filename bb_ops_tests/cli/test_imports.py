"""The command line starts quickly, because it imports only what a command needs, and it needs no Dagster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bb_ops_tests.support.commands import BB_OPS

HEAVY = {"dagster", "boto3", "botocore", "psycopg", "pydantic", "pyrage", "zstandard", "cryptography", "rich"}
_MODULES = (
    "import bb_ops.cli.main, json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
)


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    answer = subprocess.run([sys.executable, "-I", "-c", _MODULES], capture_output=True, check=True, timeout=60)
    loaded = set(json.loads(answer.stdout))
    assert "click" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["backup", "--help"], ["--no-such-option"]])
def test_help_and_usage_faults_work_without_dagster(words: list[str], room: Path) -> None:
    answer = _without_dagster(words, room)
    assert "no dagster" not in answer.stderr
    assert answer.returncode == (0 if "--no-such-option" not in words else 2)


@pytest.mark.parametrize("module", ["backup", "doctor", "keys", "recover", "sync", "validate"])
def test_no_command_imports_dagster(module: str) -> None:
    code = f"import bb_ops.cli.{module}, sys; sys.exit('dagster' in sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)


def test_a_whole_command_works_without_dagster(room: Path) -> None:
    answer = _without_dagster(["keys", "init", str(room / "keys"), "--json"], room)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["schema_id"] == "bb-ops/keys/1"


def test_dagster_really_cannot_be_imported_here(room: Path) -> None:
    """The guard of the tests above."""
    code = [sys.executable, "-c", "import dagster"]
    answer = subprocess.run(code, env=_blocking(room), capture_output=True, check=False, text=True, timeout=60)
    assert answer.returncode == 1
    assert "no dagster" in answer.stderr


def _without_dagster(words: list[str], room: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BB_OPS, *words], env=_blocking(room), cwd=room, capture_output=True, check=False, text=True, timeout=60
    )


def _blocking(room: Path) -> dict[str, str]:
    """Return an environment in which a module stands in dagster's way."""
    folder = room / "blocking"
    folder.mkdir(exist_ok=True)
    (folder / "dagster.py").write_text("raise ImportError('no dagster here')\n", encoding="utf-8")
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(folder)}
