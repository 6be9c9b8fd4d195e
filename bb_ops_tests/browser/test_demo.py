"""The demo, as a stranger sees it: what it prints, what the UI shows, and that nothing remains."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bb_ops_tests.support.commands import BB_OPS
from bb_ops_tests.support.programs import system_program
from bb_ops_tests.support.rooms import make_room, remove_room

pytestmark = [
    pytest.mark.requires("chromium"),
    pytest.mark.timeout(600),
    # The driver's own event loop leaves sockets to the collector when it ends.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}
_CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PATIENCE_MS = 60_000


@dataclass(frozen=True)
class Demo:
    """A demo that runs, and what it printed."""

    directory: Path
    document: dict[str, Any]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a subcommand on it."""
        return _bb_ops("demo", words[0], "--directory", str(self.directory), *words[1:])

    @property
    def url(self) -> str:
        """The UI."""
        return str(self.document["ui_url"])


def _bb_ops(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BB_OPS, *words], capture_output=True, text=True, check=False, env=_ENVIRONMENT, timeout=300, cwd="/"
    )


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """The demo, once for all tests; stopped at the end."""
    room = make_room()
    directory = room / "demo"
    try:
        done = _bb_ops("demo", "--directory", str(directory), "--json")
        assert done.returncode == 0, done.stderr
        yield Demo(directory, json.loads(done.stdout))
    finally:
        stopped = _bb_ops("demo", "stop", "--directory", str(directory))
        assert stopped.returncode == 0, stopped.stderr
        assert _processes_with(str(directory)) == []
        remove_room(room)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of the system."""
    with sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=str(system_program("chromium")), headless=True, args=_CHROMIUM_OPTIONS
        )
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh page, of which a picture is kept."""
    context = browser.new_context(viewport={"width": 1500, "height": 900})
    opened = context.new_page()
    yield opened
    artifacts = Path(request.config.rootpath) / "artifacts"
    artifacts.mkdir(exist_ok=True)
    opened.screenshot(path=artifacts / f"{request.node.name}.png")
    context.close()


def test_every_asset_and_check_of_both_runs_is_shown_as_measured(demo: Demo) -> None:
    assert demo.document["materialized"] == [
        "full_backup",
        "full_backup_replica",
        "full_backup_restore_test",
        "incremental_backup",
    ]
    assert len(demo.document["checks"]) == 14
    assert all(check["passed"] for check in demo.document["checks"])


def test_one_backup_is_proven_in_both_regions(demo: Demo) -> None:
    listed = demo.run("run", "backup", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    [backup] = [one for one in json.loads(listed.stdout)["backups"] if one["kind"] == "full"]
    assert set(backup["proofs"]) == {"us-east-1", "us-west-2"}
    assert all(level in {"L5", "L6"} for level in backup["proofs"].values())


def test_the_increment_builds_on_the_full_and_restores_to_equal_rows(demo: Demo) -> None:
    listed = json.loads(demo.run("run", "backup", "list", "--json").stdout)["backups"]
    full, increment = listed[0], listed[-1]
    assert (full["kind"], increment["kind"]) == ("full", "incremental")
    shown = json.loads(demo.run("run", "backup", "show", increment["id"], "--json").stdout)
    assert shown["parent_id"] == full["id"]
    tested = demo.run("run", "validate", increment["id"], "--json")
    assert json.loads(tested.stdout)["level"] in {"L5", "L6"}


def test_the_streamer_answers_and_the_archive_follows_the_server(demo: Demo) -> None:
    shown = json.loads(demo.run("status", "--json").stdout)
    assert {each["name"]: each["answers"] for each in shown["components"]}["wal-streamer"]
    status = json.loads(demo.run("run", "wal", "status", "--json").stdout)
    assert (status["slot_active"], status["problems"]) == (True, [])
    assert status["lag_s"] < 60


def test_status_is_healthy_and_names_the_window(demo: Demo) -> None:
    shown = demo.run("run", "backup", "status", "--json")
    assert shown.returncode == 0, shown.stdout
    first, other = json.loads(shown.stdout)["regions"]
    for region in (first, other):
        assert region["last_proven_at"] is not None
        assert (region["missing_slots"], region["gaps"]) == ([], [])
    assert len(first["windows"]) == 1
    assert other["windows"]  # two while an increment is copied and the WAL up to it is not yet


def test_doctor_finds_nothing_to_mend(demo: Demo) -> None:
    examined = demo.run("run", "doctor", "--json")
    findings = json.loads(examined.stdout)["findings"]
    assert [finding for finding in findings if finding["outcome"] not in {"pass", "not_applicable"}] == []
    assert examined.returncode == 0


def test_the_ui_shows_the_lineage_from_dump_to_copy_to_restore_test(demo: Demo, page: Page) -> None:
    page.goto(f"{demo.url}/assets/full_backup_restore_test?view=lineage")
    for asset in demo.document["materialized"][:3]:
        expect(page.get_by_text(asset, exact=True).last).to_be_visible(timeout=_PATIENCE_MS)
    for passed in ("4 / 4 Passed", "1 / 1 Passed", "3 / 3 Passed"):
        expect(page.get_by_text(passed)).to_be_visible(timeout=_PATIENCE_MS)


def test_the_ui_shows_the_increment_below_the_full_and_the_archive(demo: Demo, page: Page) -> None:
    page.goto(f"{demo.url}/assets/incremental_backup?view=lineage")
    for asset in ("full_backup", "wal_archive", "incremental_backup"):
        expect(page.get_by_text(asset, exact=True).last).to_be_visible(timeout=_PATIENCE_MS)
    expect(page.get_by_text("2 / 2 Passed")).to_be_visible(timeout=_PATIENCE_MS)


def test_the_ui_shows_what_was_measured_of_the_hour(demo: Demo, page: Page) -> None:
    page.goto(f"{demo.url}/assets/incremental_backup?view=events")
    for entry in ("wal_bytes", "parent_id", "covered_s"):
        expect(page.get_by_text(entry, exact=True).first).to_be_visible(timeout=_PATIENCE_MS)


def test_the_ui_shows_the_slot_as_materialized(demo: Demo, page: Page) -> None:
    page.goto(f"{demo.url}/assets/full_backup?view=partitions")
    expect(page.get_by_text("Materialized (1)")).to_be_visible(timeout=_PATIENCE_MS)
    expect(page.get_by_text(demo.document["partition"], exact=True).first).to_be_visible(timeout=_PATIENCE_MS)


def test_the_code_location_loads_without_warnings(demo: Demo, page: Page) -> None:
    page.goto(f"{demo.url}/deployment/locations")
    expect(page.get_by_text("Loaded").first).to_be_visible(timeout=_PATIENCE_MS)
    logs = "".join(path.read_text(encoding="utf-8") for path in (demo.directory / "logs").glob("dagster-*.log"))
    assert "Warning" not in logs


def _processes_with(word: str) -> list[str]:
    """Return the command lines, other than our own, that name ``word``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in line:
                found.append(line)
    return found
