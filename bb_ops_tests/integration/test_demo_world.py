"""The demo world, with its real servers: what it promises to those who try bb_ops on it."""

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from botocore.exceptions import ClientError, HTTPClientError
from dotenv import dotenv_values
from mypy_boto3_s3 import S3Client

from bb_ops import process
from bb_ops.clock import SystemClock
from bb_ops.demo import accounts, credentials, folder, model, object_stores, postgres, programs, world
from bb_ops.demo.credentials import AccessKey, Credentials
from bb_ops.demo.model import World
from bb_ops.demo.processes import Process
from bb_ops.dsn import parse_dsn
from bb_ops.errors import Locked, TargetRefused, UsageError
from bb_ops.invariants import read_invariants
from bb_ops.postgres.invariants import check_invariants
from bb_ops.repository.keys import key_settings, make_keys

pytestmark = pytest.mark.timeout(180)

TABLES = (
    "users",
    "barbershop_locations",
    "barber_profiles",
    "services",
    "clients",
    "appointments",
    "payments",
    "refunds",
    "payouts",
    "gift_certificates",
    "guest_bookings",
    "notification_queue",
    "user_consents",
    "data_export_requests",
    "data_processing_logs",
    "legal_consent_audit",
    "mfa_events",
    "idempotency_keys",
)


def quiet(_line: str) -> None:
    """Take a line of progress and show it to nobody."""


def new_directory() -> Path:
    # pytest's own are below a 0700 directory, which the servers' account cannot enter when we are root
    directory = Path(tempfile.mkdtemp(prefix="bb_ops-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    return directory


def remove(directory: Path) -> None:
    world.down(directory, quiet)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    made = new_directory()
    yield made
    remove(made)


@pytest.fixture
def other_directory() -> Iterator[Path]:
    made = new_directory()
    yield made
    remove(made)


@pytest.fixture
def demo(directory: Path) -> World:
    return world.up(directory, size="small", say=quiet)


@pytest.fixture
def known(demo: World) -> Credentials:
    return credentials.load(demo.directory)


def count(demo: World, table: str, where: str = "true") -> int:
    password = credentials.load(demo.directory).readonly
    with postgres.connect(demo, postgres.READONLY, password) as connection:
        row = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def are_up(directory: Path) -> bool:
    begun_later = ("dagster", "wal-streamer")
    servers = [each for each in world.status(directory).components if not each.name.startswith(begun_later)]
    return len(servers) == 4 and all(each.pid is not None and each.answers for each in servers)


def read_object(store: S3Client, bucket: str, key: str) -> bytes | None:
    """Read an object; None while the server, which answers already, still collects its volumes."""
    try:
        return store.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (ClientError, HTTPClientError):
        return None


def write_object(store: S3Client, bucket: str, key: str, data: bytes) -> bool:
    """Store an object; False while the server still collects its volumes, as after a power cut before."""
    try:
        store.put_object(Bucket=bucket, Key=key, Body=data)
    except (ClientError, HTTPClientError):
        return False
    return True


def eventually(question: Callable[[], bool], timeout_s: float = 60) -> bool:
    deadline = time.monotonic() + timeout_s
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def command_lines(directory: Path) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            works_in = (entry / "cwd").readlink()
        except OSError:
            continue
        if entry.name != str(os.getpid()) and (str(directory) in line or works_in.is_relative_to(directory)):
            found[int(entry.name)] = line
    return found


def kill(victim: Process | None) -> None:
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    assert eventually(lambda: process.start_ticks(victim.pid) != victim.start_ticks)


@pytest.mark.parametrize("table", TABLES)
def test_table_has_rows(demo: World, table: str) -> None:
    assert count(demo, table) > 0


def test_payments_add_up(demo: World) -> None:
    assert count(demo, "payments", "abs(amount - platform_fee - barber_amount) > 0.001") == 0


def test_every_refund_belongs_to_a_refunded_payment(demo: World) -> None:
    assert count(demo, "refunds JOIN payments ON payments.id = payment_id", "payments.status <> 'refunded'") == 0


def test_payment_statuses_have_their_proportions(demo: World) -> None:
    total = count(demo, "payments", "id <= 2300")
    assert 0.94 < count(demo, "payments", "id <= 2300 AND status = 'completed'") / total < 0.985


def test_customers_keep_writing(demo: World) -> None:
    before = count(demo, "appointments")
    assert eventually(lambda: count(demo, "appointments") > before + 2)


def test_the_declared_invariants_hold_under_its_traffic(demo: World) -> None:
    settings = dotenv_values(demo.env_file)
    declared = read_invariants(Path(settings["BB_OPS_INVARIANTS_FILE"] or ""))
    results = check_invariants(parse_dsn(settings["DATABASE_URL"] or ""), declared, 60.0)
    assert results.evidence == f"{len(declared)} of {len(declared)} invariants hold"


def test_killed_postgres_comes_back_with_its_data_and_its_customers(demo: World) -> None:
    before = count(demo, "payments")
    kill(demo.process("postgres"))
    again = world.up(demo.directory, size="small", say=quiet)
    assert count(again, "payments") >= before
    assert again.process("booking-api") == demo.process("booking-api")
    assert eventually(lambda: count(again, "payments") > before + 5)


def test_everything_comes_back_after_a_power_cut(demo: World, known: Credentials) -> None:
    region = demo.regions[0]
    with closing(object_stores.client(region, known.regions[region.name])) as store:
        assert eventually(lambda: write_object(store, region.bucket, "kept", b"kept"))
    for victim in demo.processes:
        kill(victim)
    again = world.up(demo.directory, size="small", say=quiet)
    with closing(object_stores.client(again.regions[0], known.regions[region.name])) as store:
        assert eventually(lambda: read_object(store, region.bucket, "kept") == b"kept")
    assert are_up(demo.directory)


def test_stale_lock_file_with_a_living_pid_does_not_hinder_the_start(demo: World) -> None:
    kill(demo.process("postgres"))
    store = demo.process("object-store-us-east-1")  # an unrelated process of the same account
    assert store is not None
    lock = demo.data_directory / "postmaster.pid"
    lines = lock.read_text().splitlines()
    lock.write_text("\n".join([str(store.pid), *lines[1:]]) + "\n")
    world.up(demo.directory, size="small", say=quiet)
    assert are_up(demo.directory)


def test_regions_refuse_each_others_credentials(demo: World, known: Credentials) -> None:
    first, second = demo.regions
    for region, key in ((first, known.regions[second.name]), (second, known.regions[first.name])):
        with closing(object_stores.client(region, key)) as store, pytest.raises(ClientError) as refusal:
            store.list_buckets()
        assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_region_refuses_a_wrong_secret(demo: World, known: Credentials) -> None:
    region = demo.regions[0]
    key = AccessKey(access_key_id=known.regions[region.name].access_key_id, secret_access_key=known.app)
    assert object_stores.bucket_names(region, key) is None


def test_wrong_password_is_refused(demo: World, known: Credentials) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        postgres.connect(demo, postgres.ADMIN, known.app)


def test_settings_name_the_whole_world(directory: Path) -> None:
    demo = world.up(directory, size="small", say=quiet, extra_settings={"BB_OPS_KEYS": "/a path/with 'quotes'"})
    settings = dotenv_values(demo.env_file)
    assert settings["BB_OPS_KEYS"] == "/a path/with 'quotes'"
    assert Path(settings["BB_OPS_PG_BINDIR"] or "", "pg_basebackup").exists()
    with psycopg.connect(settings["DATABASE_URL"] or "") as connection:
        assert connection.info.user == "bookedbarber_backup"
        assert connection.execute("SELECT count(*) > 0 FROM users").fetchone() == (True,)


def test_backup_role_may_stream_and_server_can_summarize(demo: World, known: Credentials) -> None:
    url = postgres.url(demo, postgres.BACKUP, known.backup)
    with psycopg.connect(url, replication="database", autocommit=True) as connection:
        assert connection.execute("IDENTIFY_SYSTEM").fetchone() is not None
        for name, value in (("data_checksums", "on"), ("summarize_wal", "on"), ("wal_level", "replica")):
            assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)


def test_readonly_role_cannot_write(demo: World, known: Credentials) -> None:
    with (
        postgres.connect(demo, postgres.READONLY, known.readonly) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("DELETE FROM users")


def test_secrets_are_private(demo: World) -> None:
    names = {"demo.env", "credentials.json", "world.json", "s3conf-us-east-1.json", "s3conf-us-west-2.json"}
    modes = {name: stat.S_IMODE((demo.directory / name).stat().st_mode) for name in names}
    assert modes == dict.fromkeys(names, 0o600)
    assert not (demo.directory / "initdb.password").exists()


def test_no_command_line_and_no_log_holds_a_secret(demo: World, known: Credentials) -> None:
    secrets = [value.get_secret_value() for value in (known.admin, known.app, known.readonly, known.backup)]
    secrets += [key.secret_access_key.get_secret_value() for key in known.regions.values()]
    secrets.append(known.object_encryption.get_secret_value())
    shown = "\n".join(command_lines(demo.directory).values())
    assert str(demo.directory) in shown
    shown += "".join(log.read_text() for log in demo.directory.glob("**/logs/*.log"))
    shown += (demo.directory / model.FILE_NAME).read_text()
    assert not [secret for secret in secrets if secret in shown]


def test_booking_is_written_once_for_a_key(demo: World) -> None:
    body = json.dumps({"client_id": 1, "barber_id": 11, "service_id": 1, "start_time": "2030-01-02T10:00:00Z"})
    headers = {"Idempotency-Key": f"test-{time.monotonic_ns()}"}
    answers = []
    for _ in range(2):
        with closing(http.client.HTTPConnection("127.0.0.1", demo.api_port, timeout=10)) as connection:
            connection.request("POST", "/api/v2/bookings", body, headers)
            response = connection.getresponse()
            answers.append((response.status, json.loads(response.read())["appointment_id"]))
    assert (answers[0][0], answers[1][0]) == (201, 200)
    assert answers[0][1] == answers[1][1]


def test_api_measures_its_database(demo: World) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", demo.api_port, timeout=10)) as connection:
        connection.request("GET", "/api/v1/health/detailed")
        document = json.loads(connection.getresponse().read())
    assert document["checks"]["database"]["status"] == "healthy"
    assert document["checks"]["redis"]["status"] == "not_configured"


def test_audit_log_has_the_applications_form(demo: World) -> None:
    log = demo.api_directory / "logs" / "audit.log"
    assert eventually(lambda: log.exists() and log.read_text().count("\n") > 1)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["event_type"] for line in lines} >= {"booking", "payment"}
    assert {"timestamp", "level", "logger", "message", "module", "function", "line"} <= lines[0].keys()


def test_second_up_starts_nothing_and_loads_nothing(demo: World) -> None:
    before = count(demo, "appointments")
    said: list[str] = []
    again = world.up(demo.directory, size="year", say=said.append)
    assert (again.size, again.processes) == ("small", demo.processes)
    assert any("another size needs a new directory" in line for line in said)
    assert before <= count(demo, "appointments") < 2 * before


def test_unfinished_load_is_done_again_from_scratch(demo: World, known: Credentials) -> None:
    with postgres.connect(demo, postgres.ADMIN, known.admin) as connection:
        connection.execute(f"COMMENT ON DATABASE {postgres.DATABASE} IS NULL")
        connection.execute("CREATE TABLE left_by_a_killed_load (id int)")
    again = world.up(demo.directory, size="small", say=quiet)
    assert count(again, "pg_tables", "tablename = 'left_by_a_killed_load'") == 0
    assert count(again, "appointments") >= 2500


def streamer(directory: Path) -> world.ComponentStatus:
    return next(each for each in world.status(directory).components if each.name == "wal-streamer")


def test_the_wal_streamer_runs_is_found_again_and_ends_with_the_world(directory: Path) -> None:
    keys = directory / "keys"
    demo = world.up(directory, size="small", say=quiet, extra_settings=key_settings(keys))
    make_keys(keys, SystemClock().now())
    up = world.wal_up(demo, quiet)
    started = up.process("wal-streamer")
    assert streamer(directory).answers
    # it was started, and we were killed before we could record that
    unrecorded = model.save(up.model_copy(update={"processes": demo.processes}))
    assert world.wal_up(unrecorded, quiet).process("wal-streamer") == started
    kill(started)
    assert eventually(lambda: not streamer(directory).answers)
    again = world.wal_up(up, quiet)
    assert again.process("wal-streamer") != started
    moved = again.model_copy(update={"streamer_ports": (1,)})
    assert world.wal_up(moved, quiet).process("wal-streamer") != again.process("wal-streamer")
    assert "Traceback" not in again.log("wal-streamer").read_text()
    world.down(directory, quiet)
    assert not command_lines(directory)


def test_down_leaves_no_process_and_can_be_repeated(demo: World) -> None:
    world.down(demo.directory, quiet)
    assert not command_lines(demo.directory)
    world.down(demo.directory, quiet)
    assert not [component for component in world.status(demo.directory).components if component.pid is not None]


def test_down_removes_what_a_killed_object_store_leaves_in_tmp(demo: World) -> None:
    for region in demo.regions:
        kill(demo.process(f"object-store-{region.name}"))
    world.down(demo.directory, quiet)
    left = [path for port in demo.ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
    assert not left


def test_down_never_signals_a_recycled_pid(demo: World) -> None:
    world.down(demo.directory, quiet)
    bystander = process.start(["/bin/sleep", "60"])
    try:
        stale = Process(name="postgres", pid=bystander.pid, start_ticks=1)
        model.save(demo.model_copy(update={"processes": (stale,)}))
        world.down(demo.directory, quiet)
        assert bystander.poll() is None
    finally:
        process.kill_group(bystander)


def test_taken_ports_are_replaced(demo: World) -> None:
    world.down(demo.directory, quiet)
    with socket.create_server(("127.0.0.1", demo.postgres_port)):
        with socket.create_server(("127.0.0.1", demo.regions[0].base_port + 10001)):
            again = world.up(demo.directory, size="small", say=quiet)
        assert again.postgres_port != demo.postgres_port
        assert again.regions[0].base_port != demo.regions[0].base_port
        assert again.regions[1] == demo.regions[1]
        assert are_up(demo.directory)


def test_one_up_at_a_time(demo: World) -> None:
    with folder.locked(demo.directory), pytest.raises(Locked):
        world.up(demo.directory, size="small", say=quiet)


def test_directory_with_other_content_is_refused(other_directory: Path) -> None:
    (other_directory / "precious").write_text("mine")
    with pytest.raises(TargetRefused):
        world.up(other_directory, size="small", say=quiet)
    assert [path.name for path in other_directory.iterdir()] == ["precious"]


def test_unknown_size_is_refused(other_directory: Path) -> None:
    with pytest.raises(UsageError, match="small, year, large"):
        world.up(other_directory, size="huge", say=quiet)


def test_status_without_a_world_says_so(other_directory: Path) -> None:
    with pytest.raises(UsageError, match="no demo world"):
        world.status(other_directory)


@pytest.mark.parametrize("killed_after_lines", [1, 3, 9])
def test_killed_up_is_completed_by_the_next(other_directory: Path, killed_after_lines: int) -> None:
    dies = (
        "import os, signal, sys; from pathlib import Path; from bb_ops.demo import world; seen = []\n"
        "def say(line):\n    seen.append(line)\n"
        f"    if len(seen) > {killed_after_lines}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "world.up(Path(sys.argv[1]), size='small', say=say)"
    )
    killed = process.run(
        [sys.executable, "-c", dies, str(other_directory)],
        timeout_s=60,
        cwd=Path(__file__).parents[2],
        accept=frozenset({-signal.SIGKILL}),
    )
    assert killed.returncode == -signal.SIGKILL
    demo = world.up(other_directory, size="small", say=quiet)
    assert are_up(other_directory)
    assert count(demo, "appointments") >= 2500
    servers = [line for line in command_lines(other_directory).values() if not line.startswith("postgres: ")]
    assert len([line for line in servers if str(other_directory) in line]) == 4


def test_deep_directory_gets_short_sockets_which_down_removes(other_directory: Path) -> None:
    deep = other_directory / ("d" * 60) / ("e" * 60)
    try:
        demo = world.up(deep, size="small", say=quiet)
        assert len(str(demo.socket_directory)) < 40
        assert demo.socket_directory.is_dir()
    finally:
        world.down(deep, quiet)
    assert not demo.socket_directory.exists()


def test_programs_copied_for_another_account_are_whole_and_open_to_it(other_directory: Path) -> None:
    mask = os.umask(0o077)
    try:
        tree = programs.copied_postgres(postgres.wheel_tree(), other_directory / "programs")
    finally:
        os.umask(mask)
    assert tree.is_relative_to(other_directory)
    for name in ("postgres", "initdb", "pg_basebackup"):
        assert accounts.can_run([str(tree / "bin" / name), "--version"], accounts.server_account())
