"""The house keeps its own rules, and each rule notices when it is broken."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bb_ops
from bb_ops_tests.architecture import rules

HOUSE = Path(bb_ops.__file__).parent
CHECKOUT = HOUSE.parent
MODULES = sorted(HOUSE.rglob("*.py"))
MOST_LINES = 400
NOT_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "core", "services"}
DAGSTERS_ROOMS = ("defs/", "definitions.py")
CATCH_ALL = {
    "cli/main.py",  # the last resort of every command
    "storage/sealing.py",  # age's thread: what it catches is raised in the thread that writes
}

Rule = Callable[[str], list[int]]


def where(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def broken(rule: Rule, allowed: Callable[[str], bool]) -> list[str]:
    """Return the places outside the allowed ones that break a rule."""
    return [
        f"{where(path)}:{line}"
        for path in MODULES
        if not allowed(where(path))
        for line in rule(path.read_text(encoding="utf-8"))
    ]


def subprocess_imports(source: str) -> list[int]:
    return rules.imports_of(source, "subprocess", "multiprocessing", "pty")


def dagster_imports(source: str) -> list[int]:
    return sorted(
        {line for line, module in rules.imported(source) if module.partition(".")[0].partition("_")[0] == "dagster"}
    )


def edge_imports(source: str) -> list[int]:
    return rules.imports_of(source, "psycopg", "boto3", "botocore", "subprocess")


RULES: dict[str, tuple[Rule, Callable[[str], bool], list[str]]] = {
    "only process.py starts programs": (
        subprocess_imports,
        lambda path: path == "process.py",
        [
            "import subprocess",
            "from subprocess import run",
            "def f():\n    import subprocess",
            "import os, subprocess as s",
        ],
    ),
    "only settings.py reads the environment": (
        rules.reads_of_environment,
        lambda path: path in {"settings.py", "demo/api.py"},  # the demo's booking app is a program of its own
        ["import os\nos.environ['X']", "os.getenv('X')", "from os import environ", "from os import getenv as g"],
    ),
    "only settings.py reads files of settings": (
        lambda source: rules.imports_of(source, "dotenv"),
        lambda path: path == "settings.py",
        ["from dotenv import dotenv_values"],
    ),
    "only clock.py reads the time": (
        rules.reads_of_clock,
        lambda path: path == "clock.py",
        [
            "import time",
            "from time import monotonic",
            "datetime.now(UTC)",
            "datetime.datetime.utcnow()",
            "date.today()",
            "read = datetime.now",
        ],
    ),
    "only defs and definitions know Dagster": (
        dagster_imports,
        lambda path: path.startswith(DAGSTERS_ROOMS),
        ["import dagster as dg", "from dagster import asset", "from dagster_aws.s3 import S3Resource"],
    ),
    "the edges reach servers, stores and programs only through the domains": (
        edge_imports,
        lambda path: not path.startswith(("cli/", *DAGSTERS_ROOMS)),
        ["import psycopg", "from botocore.exceptions import ClientError", "import boto3"],
    ),
    "imports are absolute": (
        rules.relative_imports,
        lambda _: False,
        ["from . import errors", "from ..storage import base"],
    ),
    "nobody catches everything but a thread that hands it on": (
        rules.broad_excepts,
        lambda path: path in CATCH_ALL,
        [
            "try:\n    x\nexcept Exception:\n    pass",
            "try:\n    x\nexcept (ValueError, Exception) as e:\n    log(e)",
            "try:\n    x\nexcept:\n    raise ValueError",
            "try:\n    x\nexcept BaseException as e:\n    raise Other from e",
        ],
    ),
    "only the edges print": (
        rules.prints,
        lambda path: path.startswith(("cli/", "demo/")),
        ["print('x')"],
    ),
}
KEEPS = {
    "a clean-up that raises again is no catch-all": (
        rules.broad_excepts,
        "try:\n    x\nexcept BaseException:\n    y\n    raise",
    ),
    "a given clock is not the operating system's": (
        rules.reads_of_clock,
        "clock.now()\nself._clock.now()\nsettings.today",
    ),
    "our own modules may bear a word of another's": (dagster_imports, "from bb_ops.demo.dagster_ui import start"),
}


@pytest.mark.parametrize(("rule", "allowed", "_"), RULES.values(), ids=RULES.keys())
def test_the_house_keeps_its_rules(rule: Rule, allowed: Callable[[str], bool], _: list[str]) -> None:
    assert broken(rule, allowed) == []


@pytest.mark.parametrize(("rule", "_", "violations"), RULES.values(), ids=RULES.keys())
def test_every_rule_notices_what_breaks_it(rule: Rule, _: Callable[[str], bool], violations: list[str]) -> None:
    assert [source for source in violations if not rule(source)] == []


@pytest.mark.parametrize(("rule", "source"), KEEPS.values(), ids=KEEPS.keys())
def test_what_is_allowed_is_not_complained_about(rule: Rule, source: str) -> None:
    assert rule(source) == []


def test_every_module_fits_a_sitting() -> None:
    lengths = {where(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_names_say_something() -> None:
    assert [where(path) for path in MODULES if NOT_NAMES & {*path.relative_to(HOUSE).parts, path.stem}] == []


def test_replication_means_streaming_replication_only() -> None:
    assert [where(path) for path in MODULES if path.stem == "replication"] == ["postgres/replication.py"]


def test_no_python_lies_where_it_would_shadow_the_standard_library() -> None:
    assert [path for name in ("logging", "monitoring") for path in (CHECKOUT / name).rglob("*.py")] == []


def test_every_module_says_what_it_is_for() -> None:
    empty = [where(path) for path in MODULES if not path.read_text(encoding="utf-8").lstrip().startswith('"""')]
    assert empty == []


IMPORT_AND_WATCH = """
import datetime, os, pkgutil, sys, time

NEVER = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
NOT_BY_US = {"socket.bind", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
             "os.mkdir", "os.remove", "os.rename", "open"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CLOCKS = {time.time, time.monotonic, time.perf_counter, time.time_ns, time.sleep}
NOW = ("datetime.now", "datetime.utcnow", "date.today", "datetime.today")
seen = []

def ours(frame):
    # the innermost frame that is not of the standard library says whose work it is
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] == "bb_ops":
            return name
        if "site-packages" in frame.f_code.co_filename or frame.f_code.co_name == "<module>":
            return None
        frame = frame.f_back
    return None

def watch(event, arguments):
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return
    if event in NEVER or (event in NOT_BY_US and ours(sys._getframe(1))):
        seen.append(f"{event} {arguments[:2]}")

def profile(frame, event, argument):
    if event == "c_call" and (argument in CLOCKS or getattr(argument, "__qualname__", "") in NOW):
        name = frame.f_globals.get("__name__", "")  # only who asks directly: a log record bears a time as well
        if name.partition(".")[0] == "bb_ops":
            seen.append(f"clock read in {name}")
    elif event == "call" and frame.f_code.co_name == "__getitem__" and type(frame.f_locals["self"]) is type(os.environ):
        if ours(frame):
            seen.append(f"environment read in {ours(frame)}")

import bb_ops
names = sys.argv[1:] or ["bb_ops"] + [module.name for module in pkgutil.walk_packages(bb_ops.__path__, "bb_ops.")]
names = [name for name in names if not name.endswith("__main__")]
sys.addaudithook(watch)
sys.setprofile(profile)
for name in names:
    __import__(name)
sys.setprofile(None)
print(len(names))
print("\\n".join(seen))
"""


def imported_and_watched(*names: str, path: Path = CHECKOUT) -> tuple[int, list[str]]:
    """Import modules, all of ours by default, in a process without environment; return how many and what they did."""
    script = f"import sys; sys.path[:0] = [{str(CHECKOUT)!r}, {str(path)!r}]\n{IMPORT_AND_WATCH}"
    answer = subprocess.run(
        [sys.executable, "-I", "-B", "-c", script, *names],
        capture_output=True,
        check=False,
        env={},
        cwd="/",
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    count, *seen = answer.stdout.splitlines()
    return int(count), [line for line in seen if line]


def test_importing_does_no_work() -> None:
    """No network, not even by libraries; and none of ours starts a program, writes, or reads clock or environment."""
    count, seen = imported_and_watched()
    assert count == len(MODULES) - sum(path.name == "__main__.py" for path in MODULES)
    assert seen == []


@pytest.mark.parametrize(
    ("work", "noticed"),
    [
        ("import socket; socket.getaddrinfo('localhost', 1)", "socket.getaddrinfo"),
        ("__name__ = 'bb_ops.x'; import socket; socket.socket().bind(('127.0.0.1', 0))", "socket.bind"),
        ("__name__ = 'bb_ops.x'; import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("__name__ = 'bb_ops.x'; import tempfile; tempfile.TemporaryFile()", "open"),
        ("__name__ = 'bb_ops.x'; import time; time.monotonic()", "clock read in bb_ops.x"),
        ("__name__ = 'bb_ops.x'; from datetime import datetime; datetime.now()", "clock read in bb_ops.x"),
        ("__name__ = 'bb_ops.x'; import os; os.environ.get('X')", "environment read in bb_ops.x"),
    ],
)
def test_work_at_import_would_be_noticed(tmp_path: Path, work: str, noticed: str) -> None:
    (tmp_path / "worker.py").write_text(work, encoding="utf-8")
    _, seen = imported_and_watched("worker", path=tmp_path)
    assert any(noticed in line for line in seen)
