"""Rules that hold for every test: what may be missing, and what is left behind."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bb_ops_tests.support.postgres import BUILDS, Build, available
from bb_ops_tests.support.programs import SYSTEM_PROGRAMS, missing_packages
from bb_ops_tests.support.rooms import make_room, remove_room

_LEFT_OUT = "left out"


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark, and make a stop an orderly one."""
    words = ", ".join(SYSTEM_PROGRAMS)
    config.addinivalue_line("markers", f"requires(*programs): system programs that the test needs; one of {words}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops the tests gets everything cleaned up


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a test out whose programs are missing; with CI=true let it fail."""
    words = {word for mark in item.iter_markers("requires") for word in mark.args}
    packages = missing_packages(words)
    if not packages:
        return
    message = f"needs the Debian package {' and '.join(packages)}: apt-get install {' '.join(packages)}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{message} (with CI=true nothing may be left out)", pytrace=False)
    item.user_properties += [(_LEFT_OUT, package) for package in packages]  # also told from another process
    pytest.skip(message)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once, at the end, what was left out for want of which package."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if report.when == "setup"]
    properties = [entry for report in skipped for entry in report.user_properties]
    left_out = Counter(str(package) for name, package in properties if name == _LEFT_OUT)
    if not left_out:
        return
    terminalreporter.section("left out")
    for package, count in sorted(left_out.items()):
        terminalreporter.line(f"{count} tests were left out for want of the Debian package {package}")
    terminalreporter.line(f"to have them: apt-get install {' '.join(sorted(left_out))}")


@pytest.fixture(scope="session")
def session_room() -> Iterator[Path]:
    """A folder for the whole session, which the account of PostgreSQL can enter; removed at the end."""
    room = make_room()
    yield room
    remove_room(room)


@pytest.fixture(scope="module")
def module_room() -> Iterator[Path]:
    """A folder for one module's tests."""
    room = make_room()
    yield room
    remove_room(room)


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder for one test. Unlike ``tmp_path`` the account of PostgreSQL can enter it when we are root."""
    room = make_room()
    yield room
    remove_room(room)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.requires("postgresql") if name == "packaged" else ()) for name in BUILDS
    ],
)
def build(request: pytest.FixtureRequest, session_room: Path) -> Build:
    """Every PostgreSQL that we have: the system's package, 17 and 18 from wheels."""
    return available(request.param, session_room)


@pytest.fixture(scope="session")
def wheel_18(session_room: Path) -> Build:
    """PostgreSQL 18 from a wheel, for tests that need one server of any version."""
    return available("wheel_18", session_room)
