"""The rule for missing programs: a test is left out and the package named, and with CI=true it fails instead."""

import subprocess
import sys
from pathlib import Path

import pytest

_CONFTEST = """
from pathlib import Path
from bb_ops_tests.conftest import *
from bb_ops_tests.support.programs import SYSTEM_PROGRAMS, SystemProgram

SYSTEM_PROGRAMS["absent"] = SystemProgram("absent-package", lambda: None)
SYSTEM_PROGRAMS["present"] = SystemProgram("present-package", lambda: Path("/bin/true"))
"""
_TESTS = """
import pytest

@pytest.mark.requires("absent", "present")
def test_needs_it():
    raise AssertionError("never run")

@pytest.mark.requires("present")
def test_has_it():
    pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Write a suite of two tests that follows the rule."""
    (tmp_path / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    (tmp_path / "test_it.py").write_text(_TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -ra\n", encoding="utf-8")
    return tmp_path


def test_a_test_that_lacks_a_program_is_left_out_and_the_package_named(suite: Path) -> None:
    answer = _run(suite, {})
    assert answer.returncode == 0
    assert "1 passed, 1 skipped" in answer.stdout
    assert "1 tests were left out for want of the Debian package absent-package" in answer.stdout
    assert "apt-get install absent-package" in answer.stdout
    assert "present-package" not in answer.stdout


def test_with_ci_true_nothing_may_be_left_out(suite: Path) -> None:
    answer = _run(suite, {"CI": "true"})
    assert answer.returncode == 1
    assert "1 passed, 1 error" in answer.stdout
    assert "needs the Debian package absent-package" in answer.stdout
    assert "skipped" not in answer.stdout


def _run(suite: Path, extra: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[2]
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(root), **extra}
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", "-q", str(suite)]
    return subprocess.run(argv, cwd=suite, env=environment, capture_output=True, check=False, text=True, timeout=120)
