"""What the demo world is: the values that every part shares, and their file ``world.json``."""

from pathlib import Path
from typing import Literal

from bb_ops import files
from bb_ops.demo.ports import HOST, SEAWEED_OFFSETS
from bb_ops.demo.processes import Process
from bb_ops.findings import Value
from bb_ops.process import Account, account

FILE_NAME = "world.json"
Size = Literal["small", "year", "large"]


class Region(Value):
    """One SeaweedFS server that stands for a cloud region (demo)."""

    name: str
    bucket: str
    base_port: int

    @property
    def s3_port(self) -> int:
        """The port of the S3 interface."""
        return self.base_port + 3

    @property
    def endpoint_url(self) -> str:
        """Where the S3 interface answers."""
        return f"http://{HOST}:{self.s3_port}"

    @property
    def ports(self) -> set[int]:
        """All ports that it listens on."""
        return {self.base_port + offset for offset in SEAWEED_OFFSETS}


class World(Value):
    """A demo world in one directory; no secrets, those are in ``credentials.json``.

    Attributes:
        schema_id: The format of ``world.json``.
        label: Says that all of this is a demonstration.
        directory: The one directory that holds everything.
        size: How much data was loaded.
        server_account: The account of PostgreSQL and the object stores; None means the user who started them.
        api_account: Likewise, for the booking API.
        pg_bindir: Where PostgreSQL's programs are.
        weed: The SeaweedFS program.
        socket_directory: Short enough for socket paths; inside ``directory`` where possible.
        postgres_port: PostgreSQL on the loopback address.
        api_port: The booking API on the loopback address.
        ui_port: Dagster's UI on the loopback address.
        api_database_port: The PostgreSQL port that the booking API was started with.
        streamer_ports: All ports of the world when the WAL streamer was started.
        regions: The primary region, then the other one.
        processes: What was started last, also when it no longer runs.
    """

    schema_id: Literal["bb-ops/demo-world/1"] = "bb-ops/demo-world/1"
    label: Literal["demo"] = "demo"
    directory: Path
    size: Size
    server_account: str | None
    api_account: str | None = None
    pg_bindir: Path
    weed: Path
    socket_directory: Path
    postgres_port: int
    api_port: int
    ui_port: int
    api_database_port: int | None = None
    streamer_ports: tuple[int, ...] = ()
    regions: tuple[Region, Region]
    processes: tuple[Process, ...] = ()

    @property
    def data_directory(self) -> Path:
        """PostgreSQL's data directory."""
        return self.directory / "postgres"

    @property
    def env_file(self) -> Path:
        """The settings with which bb_ops works on this world (0600)."""
        return self.directory / "demo.env"

    @property
    def api_url(self) -> str:
        """Where the booking API answers."""
        return f"http://{HOST}:{self.api_port}"

    @property
    def api_directory(self) -> Path:
        """Where the booking API keeps its ``logs``."""
        return self.directory / "app"

    @property
    def run_as(self) -> Account | None:
        """The account of PostgreSQL and the object stores, looked up."""
        return None if self.server_account is None else account(self.server_account)

    @property
    def ports(self) -> set[int]:
        """All ports of the world."""
        return {self.postgres_port, self.api_port, self.ui_port}.union(*(region.ports for region in self.regions))

    def region(self, name: str) -> Region:
        """Return a region by name."""
        return next(region for region in self.regions if region.name == name)

    def log(self, component: str) -> Path:
        """Where a process's output goes."""
        return self.directory / "logs" / f"{component}.log"

    def process(self, component: str) -> Process | None:
        """What was started last for a component."""
        return next((known for known in self.processes if known.name == component), None)

    def with_process(self, started: Process) -> "World":
        """Return the world with a process recorded in place of its predecessor."""
        others = tuple(known for known in self.processes if known.name != started.name)
        return self.model_copy(update={"processes": (*others, started)})


def save(world: World) -> World:
    """Write ``world.json`` (0600) and return what was written."""
    files.write_atomic(world.directory / FILE_NAME, world.model_dump_json(indent=2).encode())
    return world


def load(directory: Path) -> World | None:
    """Read ``world.json``, or return None when there is no world yet."""
    try:
        return World.model_validate_json((directory / FILE_NAME).read_bytes())
    except FileNotFoundError:
        return None
