"""The ``bb-ops`` command: its tree, and the one place where errors become exit codes."""

import gc
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from bb_ops import __version__
from bb_ops.cli.output import LogFormatter, fail
from bb_ops.cli.tree import Leaf, Tree
from bb_ops.errors import BbOpsError

_COMMANDS = {
    "backup": Leaf("bb_ops.cli.backup:command", "Take backups and see what exists."),
    "demo": Leaf(
        "bb_ops.cli.demo:command",
        "The embedded world: a real server, two object stores, an application. For trying only.",
    ),
    "doctor": Leaf("bb_ops.cli.doctor:command", "What is missing, misconfigured or left over, and how to mend it."),
    "drill": Leaf(
        "bb_ops.cli.drill:command", "The disaster-recovery exercise: a region is dead, and how long does it take?"
    ),
    "keys": Leaf("bb_ops.cli.keys:command", "Make and check encryption and signing keys."),
    "recover": Leaf("bb_ops.cli.recover:command", "Bring a backup back, beside what exists."),
    "sync": Leaf("bb_ops.cli.sync:command", "Copy backups to the other region."),
    "validate": Leaf(
        "bb_ops.cli.validate:command", "Prove that a backup comes back, by restoring it in a throw-away server."
    ),
    "wal": Leaf(
        "bb_ops.cli.wal:command", "Stream the write-ahead log into the repository, so that any second can be restored."
    ),
}
_INTERRUPTED = 130


class _Root(Tree):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command; click itself would add an empty line to the one that says it was interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise click.Abort from error


_EPILOG = (
    "Exit codes: 0 done; 1 failed; 2 usage or settings; 3 partly done; 4 bad state found; 5 data differ from their "
    "checksum; 10 repository missing; 11 locked; 12 cannot decrypt or authenticate; 13 could not measure; "
    "130 interrupted."
)


@click.group(cls=_Root, leaves=_COMMANDS, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bb-ops")
@click.option("-v", "--verbose", is_flag=True, help="Log every operation's start and end.")
def cli(*, verbose: bool) -> None:
    """Backups of BookedBarber's PostgreSQL that are copied, restored and proven."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(for_people=sys.stderr.isatty()))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True)
    for library in ("boto3", "botocore", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A service manager's stop is an interruption like Ctrl-C: what is unfinished is taken back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = run(words)
    gc.freeze()  # the end of the process frees everything: nothing needs to be looked through once more
    sys.exit(code)


def run(words: list[str]) -> int:
    """Run a command and return its exit code; every error is one line on standard error."""
    as_json = "--json" in words
    try:
        result: Any = cli.main(args=words, prog_name="bb-ops", standalone_mode=False)
    except click.exceptions.Abort:
        return fail(
            "interrupted: nothing was committed; the same command can be run again", _INTERRUPTED, as_json=as_json
        )
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code if error.exit_code != 1 else 2, as_json=as_json)
    except BbOpsError as error:
        return fail(str(error), error.exit_code, as_json=as_json)
    except BrokenPipeError:
        return 1
    except Exception as error:
        # A fault of ours, not of the caller's: still one line, with the traceback on request.
        logging.getLogger(__name__).info("unexpected error", exc_info=True)
        return fail(
            f"unexpected {type(error).__name__}: {error} (run with -v for more, and report it)", 1, as_json=as_json
        )
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
