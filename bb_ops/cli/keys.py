"""``bb-ops keys``: make and check encryption and signing keys."""

from pathlib import Path

import click

from bb_ops.cli.output import emit, json_option, table
from bb_ops.clock import SystemClock
from bb_ops.repository.keys import KeySet, check_keys, make_keys


@click.group("keys")
def command() -> None:
    """Make and check encryption and signing keys."""


@command.command("init")
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def init(*, directory: Path, as_json: bool) -> None:
    """Make a working and an offline age key, a signing key, and the settings that use them, in DIRECTORY."""
    made = make_keys(directory, SystemClock().now())
    _show(made, as_json=as_json)
    if not as_json:
        click.echo(
            f"\nMove {directory}/offline.agekey to a place that no server can reach (paper, a safe, a hardware token)."
            f"\nUse the keys with: set -a; . {made.settings_file}; set +a"
        )


@command.command("check")
@click.argument("directory", type=click.Path(path_type=Path))
@json_option
def check(*, directory: Path, as_json: bool) -> None:
    """Prove that a key directory is whole: keys parse, pairs match, secret files are private."""
    _show(check_keys(directory), as_json=as_json)


def _show(keys: KeySet, *, as_json: bool) -> None:
    document = keys.model_dump(mode="json")
    if as_json:
        emit(document)
    else:
        table(("fact", "value"), [(name, value) for name, value in document.items() if name != "schema_id"])
