"""Groups of commands that import a command's module only when it is called."""

import importlib
from collections.abc import Mapping
from typing import NamedTuple

import click


class Leaf(NamedTuple):
    """Where a command is (``module:name``), and what its group's help says of it."""

    place: str
    text: str


class Tree(click.Group):
    """A group whose commands are known by name alone."""

    def __init__(self, name: str, leaves: Mapping[str, Leaf], **arguments: object) -> None:
        """Name the commands."""
        super().__init__(name, **arguments)  # type: ignore[arg-type]  # click's own arguments
        self._leaves = leaves

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands."""
        del ctx
        return sorted(self._leaves)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module and return the command."""
        del ctx
        if cmd_name not in self._leaves:
            return None
        module, _, name = self._leaves[cmd_name].place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(sorted((name, leaf.text) for name, leaf in self._leaves.items()))
