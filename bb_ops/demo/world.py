"""The demo world as a whole: start or restart it, stop it, say how it is.

Everything is in one directory. The servers outlive the command that started them. Every step can be repeated, and a
killed ``up`` is completed by the next one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from bb_ops.demo import (
    accounts,
    api_process,
    components,
    credentials,
    data,
    env_file,
    folder,
    model,
    object_stores,
    ports,
    postgres,
    programs,
)
from bb_ops.demo.accounts import choose_directory
from bb_ops.demo.api import DEFAULT_RATE_PER_S
from bb_ops.demo.api_process import BookingApi
from bb_ops.demo.components import Component
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.dagster_ui import CodeServer, Daemon, WebServer
from bb_ops.demo.model import Region, World
from bb_ops.demo.object_stores import ObjectStore
from bb_ops.demo.wal_streamer import WalStreamer
from bb_ops.errors import UsageError
from bb_ops.findings import Value

__all__ = ["ComponentStatus", "Status", "World", "choose_directory", "down", "status", "up"]

Say = Callable[[str], None]
_DAGSTER: tuple[Component, ...] = (WebServer(), Daemon())
_STREAMER: Component = WalStreamer()
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class ComponentStatus(Value):
    """One server of the demo world.

    Attributes:
        name: Which one.
        port: Where it listens on the loopback address.
        pid: Its process, or None when it does not run.
        answers: Whether it just answered a real question.
    """

    name: str
    port: int
    pid: int | None
    answers: bool


class Status(Value):
    """The demo world, and how each of its servers is."""

    world: World
    components: tuple[ComponentStatus, ...]

    @property
    def healthy(self) -> bool:
        """Whether every server runs and answers."""
        return all(component.pid is not None and component.answers for component in self.components)


def up(
    directory: Path,
    *,
    size: str,
    say: Say,
    extra_settings: Mapping[str, str] = _NO_SETTINGS,
    rate_per_s: float = DEFAULT_RATE_PER_S,
) -> World:
    """Start what does not run, load what is not loaded, and write ``demo.env``. Safe to repeat and to kill.

    Args:
        directory: The world's own directory; created when missing.
        size: ``small``, ``year`` or ``large``; only a new world is loaded with it.
        say: Receives one line per step.
        extra_settings: Added to ``demo.env``, and win over our own.
        rate_per_s: The customers' actions per second; 0 for none. An API that already runs keeps its rate.

    Raises:
        UsageError: the size, the directory or a missing program.
        Locked: another ``up`` or ``down`` is at work.
        ProgramFailed: a server does not start; the message carries the end of its log.
    """
    directory = directory.resolve()
    folder.claim(directory, accounts.server_account())
    with folder.locked(directory):
        world = _planned(directory, size)
        known = credentials.ensure(directory, tuple(region.name for region in world.regions))
        world = _servers_up(world, known, say)
        world = model.save(world.model_copy(update={"size": data.ensure_loaded(world, known, say)}))
        world = _api_up(world, known, rate_per_s, say)
        env_file.write(world, known, extra_settings)
    say(f"the demo world is up; its settings are in {world.env_file}")
    return world


def wal_up(world: World, say: Say) -> World:
    """Start the WAL streamer on a world that is up and has keys, anew where a port has changed. Safe to repeat.

    Raises:
        ProgramFailed: it does not start; the message carries the end of its log.
    """
    with folder.locked(world.directory):
        known = credentials.load(world.directory)
        if world.streamer_ports != tuple(sorted(world.ports)):
            components.stop([_STREAMER], world, say)
        world = components.ensure_running(_STREAMER, world, known, say)
        components.wait_ready(_STREAMER, world, known)
    return world


def dagster_up(world: World, say: Say) -> World:
    """Start Dagster's web server and daemon on a world that is up. Safe to repeat.

    One after the other: started together on a new SQLite home, both create its tables and one of them fails.

    Raises:
        ProgramFailed: one does not start; the message carries the end of its log.
    """
    with folder.locked(world.directory):
        known = credentials.load(world.directory)
        for component in _DAGSTER:
            world = components.ensure_running(component, world, known, say)
            components.wait_ready(component, world, known)
    return world


def down(directory: Path, say: Say) -> None:
    """Stop every server of the world and keep its data. Safe to repeat, also where there is no world.

    Raises:
        Locked: another ``up`` or ``down`` is at work.
        ProgramFailed: a server does not end.
    """
    directory = directory.resolve()
    if not folder.exists(directory):
        say(f"there is no demo world in {directory}")
        return
    with folder.locked(directory):
        world = model.load(directory)
        if world is None:
            return
        *servers, api = _components()
        components.stop([*_DAGSTER, _STREAMER, api], world, say)
        components.stop([CodeServer()], world, say)
        components.stop(servers, world, say)
        object_stores.remove_leftovers(world)
        folder.remove_outside(directory, world.socket_directory)
        model.save(world.model_copy(update={"processes": ()}))
    say("the demo world is down; its data are kept")


def status(directory: Path) -> Status:
    """Ask every server of the world how it is; changes nothing.

    Raises:
        UsageError: there is no world here, or not yet.
    """
    directory = directory.resolve()
    world = model.load(directory) if folder.exists(directory) else None
    if world is None or not (directory / credentials.FILE_NAME).exists():
        raise UsageError(f"there is no demo world in {directory}: start one with 'bb-ops demo'")
    known = credentials.load(directory)
    return Status(
        world=world,
        components=tuple(_state(component, world, known) for component in (*_components(), _STREAMER, *_DAGSTER)),
    )


def _components(rate_per_s: float = DEFAULT_RATE_PER_S) -> list[Component]:
    """Return all servers in the order in which they start."""
    return [
        ObjectStore(object_stores.PRIMARY),
        ObjectStore(object_stores.OTHER),
        postgres.Server(),
        BookingApi(rate_per_s),
    ]


def _state(component: Component, world: World, known: Credentials) -> ComponentStatus:
    process = components.running(component, world)
    return ComponentStatus(
        name=component.name,
        port=component.port(world),
        pid=None if process is None else process.pid,
        answers=process is not None and component.answers(world, known),
    )


def _planned(directory: Path, size: str) -> World:
    """Read the world, or plan a new one, with programs, accounts and sockets as they are today; save it."""
    run_as = accounts.server_account()
    chosen = next((name for name in data.SCALES if name == size), None)
    if chosen is None:
        raise UsageError(f"there is no demo size {size!r}: choose one of {', '.join(data.SCALES)}")
    pg_bindir, weed = programs.locate(directory, run_as)
    world = model.load(directory)
    today: dict[str, object] = {
        "size": chosen,
        "server_account": None if run_as is None else run_as.name,
        "pg_bindir": pg_bindir,
        "weed": weed,
        "socket_directory": folder.socket_directory(
            directory, None if world is None else world.socket_directory, run_as
        ),
    }
    if world is None:
        return model.save(World.model_validate({**today, **_new_ports(), "directory": directory}))
    return model.save(world.model_copy(update=today))


def _new_ports() -> dict[str, object]:
    taken: set[int] = set()
    regions = []
    for name, bucket in object_stores.BUCKETS.items():
        region = Region(name=name, bucket=bucket, base_port=ports.choose(ports.SEAWEED_OFFSETS, avoid=taken))
        taken |= region.ports
        regions.append(region)
    postgres_port = ports.choose(avoid=taken)
    api_port = ports.choose(avoid={*taken, postgres_port})
    return {
        "regions": tuple(regions),
        "postgres_port": postgres_port,
        "api_port": api_port,
        "ui_port": ports.choose(avoid={*taken, postgres_port, api_port}),
    }


def _servers_up(world: World, known: Credentials, say: Say) -> World:
    """Bring PostgreSQL and the object stores up, together, with roles and buckets."""
    *servers, _ = _components()
    for component in servers:
        world = components.ensure_running(component, world, known, say)
    for component in servers:
        components.wait_ready(component, world, known)
    for region in world.regions:
        object_stores.ensure_bucket(region, known.regions[region.name])
    postgres.create_roles(world, known)
    return world


def _api_up(world: World, known: Credentials, rate_per_s: float, say: Say) -> World:
    """Bring the API up, anew where PostgreSQL moved to another port since it was started."""
    api = BookingApi(rate_per_s)
    if world.api_database_port != world.postgres_port:
        components.stop([api], world, say)
    if components.running(api, world) is None:
        name = api_process.choose_account(world.run_as)
        if world.run_as is not None and name is None:
            say(f"account {world.run_as.name!r} cannot run this Python: the booking API stays with the current user")
        world = world.model_copy(update={"api_account": name, "api_database_port": world.postgres_port})
    world = components.ensure_running(api, world, known, say)
    components.wait_ready(api, world, known)
    return world
