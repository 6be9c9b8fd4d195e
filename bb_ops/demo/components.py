"""What the servers of the demo world have in common, and how one is brought to run, found and stopped."""

import signal
from collections.abc import Callable, Sequence
from typing import Protocol

from bb_ops.demo import model, processes
from bb_ops.demo.credentials import Credentials
from bb_ops.demo.model import World
from bb_ops.demo.processes import Process


class Component(Protocol):
    """One server of the demo world.

    Attributes:
        name: Its short name: of its log and of its record in ``world.json``.
        start_timeout_s: How long it may take until it answers.
        stop_timeout_s: How long it may take to end by itself.
        ask: The signal that asks it to end.
        insist: The signal that makes it end.
    """

    name: str
    start_timeout_s: float
    stop_timeout_s: float
    ask: signal.Signals
    insist: signal.Signals

    def port(self, world: World) -> int:
        """Return where it listens for its clients."""
        ...

    def with_free_ports(self, world: World) -> World:
        """Return the world with ports for this server that are free now; the old ones where they are."""
        ...

    def find(self, world: World) -> Process | None:
        """Find its process by words of its command line that only it can have."""
        ...

    def start(self, world: World, known: Credentials) -> Process:
        """Start it, which presumes that it does not run."""
        ...

    def answers(self, world: World, known: Credentials) -> bool:
        """Tell whether it answers a real question."""
        ...


def running(component: Component, world: World) -> Process | None:
    """Return the server's process, whether recorded or only found, or None."""
    recorded = world.process(component.name)
    return recorded if recorded is not None and processes.is_running(recorded) else component.find(world)


def ensure_running(component: Component, world: World, known: Credentials, say: Callable[[str], None]) -> World:
    """Start the server unless it runs, and return the world with its process recorded. Does not wait for it."""
    process = running(component, world)
    if process is None:
        world = model.save(component.with_free_ports(world))
        say(f"starting {component.name} on port {component.port(world)}")
        process = component.start(world, known)
    return model.save(world.with_process(process))


def wait_ready(component: Component, world: World, known: Credentials) -> None:
    """Wait until a server that ``ensure_running`` recorded answers.

    Raises:
        ProgramFailed: it ended, or does not answer in time; the message carries the end of its log.
    """
    process = world.process(component.name)
    processes.wait_until(
        component.name,
        lambda: component.answers(world, known),
        timeout_s=component.start_timeout_s,
        alive=lambda: process is not None and processes.is_running(process),
        log=world.log(component.name),
    )


def stop(group: Sequence[Component], world: World, say: Callable[[str], None]) -> None:
    """Stop all processes of some servers, together. Safe to repeat.

    Raises:
        ProgramFailed: one does not end.
    """
    while found := [(each, process) for each in group if (process := running(each, world)) is not None]:
        for component, process in found:
            processes.ask(process, component.ask)
        for component, process in found:
            processes.wait_ended(process, insist=component.insist, timeout_s=component.stop_timeout_s)
            say(f"stopped {component.name}")
