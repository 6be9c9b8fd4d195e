"""A real S3 server that is thrown away: SeaweedFS from its wheel, with credentials and ports of its own.

It enforces signatures, conditions, checksums and bucket policies, which is what the tests are about.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import SecretStr

from bb_ops.storage.s3 import S3Store
from bb_ops_tests.support.postgres import die_with_us, wait_until
from bb_ops_tests.support.rooms import hand_over, others_may_enter, server_account

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HOST = "127.0.0.1"
REGION = "us-east-1"
_LOWEST, _HIGHEST = 12_000, 22_000  # plus 10000 stays below 32768, where Linux's ephemeral ports begin
_OFFSETS = tuple(offset + grpc for offset in range(5) for grpc in (0, 10_000))
_S3_OFFSET = 3
_START_ATTEMPTS = 3  # another program may take a port between our look and the server's start


@dataclass
class S3Server:
    """One server. ``directory`` holds everything of it."""

    directory: Path
    access_key_id: str = field(default_factory=lambda: f"test-{secrets.token_hex(8)}")
    secret_access_key: str = field(default_factory=lambda: secrets.token_urlsafe(30))
    base_port: int = 0
    _server: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where the S3 interface listens."""
        return self.base_port + _S3_OFFSET

    @property
    def endpoint_url(self) -> str:
        """The S3 interface."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process number."""
        assert self._server is not None
        return self._server.pid

    @cached_property
    def client(self) -> "S3Client":
        """A client of the administrator, which does not try again."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                connect_timeout=3,
                read_timeout=20,
                retries={"total_max_attempts": 1},
            ),
        )

    def make_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"test-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=name)
        return name

    def store(self, bucket: str, prefix: str = "", *, port: int | None = None) -> S3Store:
        """Return bb_ops's store of a bucket; ``port`` is that of a proxy before the server."""
        return S3Store(
            bucket,
            prefix,
            endpoint_url=f"http://{HOST}:{port or self.port}",
            region=REGION,
            access_key_id=self.access_key_id,
            secret_access_key=SecretStr(self.secret_access_key),
        )

    def start(self) -> "S3Server":
        """Start the server on free ports and wait until it answers a signed request."""
        program = _program(self.directory)
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        identities = self.directory / "identities.json"
        identities.write_text(json.dumps({"identities": [self._identity()]}), encoding="utf-8")
        identities.chmod(0o600)
        hand_over(self.directory)
        die = die_with_us(signal.SIGKILL)
        for _ in range(_START_ATTEMPTS):
            self.base_port = _free_base_port()
            with (self.directory / "log").open("ab") as log:
                self._server = subprocess.Popen(
                    [program, "-logtostderr=true", "mini", f"-s3.config={identities}", *self._options(data)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=data,
                    env={"PATH": "/usr/bin:/bin", "HOME": str(data), "GOMEMLIMIT": "400MiB"},
                    start_new_session=True,
                    preexec_fn=die,  # noqa: PLW1509 - one prctl call, no lock taken
                    **_account(),
                )
            wait_until(lambda: self._answers() or self._ended(), f"SeaweedFS did not start: {self.directory}/log")
            if not self._ended():
                return self
            self.stop()
        raise AssertionError((self.directory / "log").read_text(encoding="utf-8", errors="replace")[-2000:])

    def stop(self) -> None:
        """Kill the server, which loses nothing by it, and remove the sockets that it leaves under names in /tmp."""
        if self._server is None:
            return
        if self._server.poll() is None:
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait(20)
        self._server = None
        if "client" in self.__dict__:
            self.client.close()
            del self.client
        for offset in _OFFSETS:
            for leftover in Path("/tmp").glob(f"seaweedfs-*-grpc-{self.base_port + offset}.sock"):
                leftover.unlink(missing_ok=True)

    def _identity(self) -> dict[str, object]:
        return {
            "name": "tests",
            "credentials": [{"accessKey": self.access_key_id, "secretKey": self.secret_access_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }

    def _options(self, data: Path) -> list[str]:
        """No telemetry, no side services, and no defaults that fail after some fifty buckets."""
        base = self.base_port
        return [
            f"-dir={data}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-master.port={base}",
            f"-volume.port={base + 1}",
            f"-filer.port={base + 2}",
            f"-s3.port={self.port}",
            f"-admin.port={base + 4}",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-filer.localSocket={self.directory}/f.sock",
            f"-s3.localSocket={self.directory}/s.sock",
            "-s3.autoCreateBucket=false",
            "-volume.max=2000",
            "-master.volumeSizeLimitMB=256",
            "-s3.readerCacheSizeMB=64",
        ]

    def _answers(self) -> bool:
        try:
            self.client.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def _ended(self) -> bool:
        return self._server is None or self._server.poll() is not None


@contextmanager
def running_s3(room: Path) -> Iterator[S3Server]:
    """Run a server in a new folder below ``room``, and stop it at the end; the room's owner removes the folder."""
    directory = room / f"s3-{secrets.token_hex(3)}"
    directory.mkdir()
    server = S3Server(directory)
    try:
        yield server.start()
    finally:
        server.stop()


def _program(directory: Path) -> Path:
    """Return SeaweedFS's program, copied where the server's account could not run it in place."""
    program = Path(sys.prefix) / "bin" / "weed"
    assert program.exists(), "the wheel of SeaweedFS is not installed: make setup"
    if server_account() is None or others_may_enter(program.parent):
        return program
    copied = directory / "weed"
    shutil.copy(program, copied)
    copied.chmod(0o755)
    return copied


def _account() -> dict[str, Any]:
    account = server_account()
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _free_base_port() -> int:
    candidates = (_LOWEST + secrets.randbelow(_HIGHEST - _LOWEST) for _ in range(200))
    return next(base for base in candidates if all(_is_free(base + offset) for offset in _OFFSETS))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
