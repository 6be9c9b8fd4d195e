"""Every error that bb_ops raises on purpose, with its exit code.

    BbOpsError                      1   failed
    ├── UsageError                  2   the command, a setting or a target is wrong
    │   ├── SettingsError           2   one or more settings are missing or wrong
    │   ├── ServerUnusable          2   the PostgreSQL server cannot be reached or lacks what is needed
    │   └── TargetRefused           2   a restore target is not empty, in use or too small
    ├── PartlyDone                  3   some of the work succeeded, and the message says what did not
    ├── FindingsPresent             4   the work was done and a bad state was found
    ├── IntegrityError              5   data differs from its checksum or manifest
    ├── RepositoryMissing          10   a repository, or a backup in it, does not exist
    ├── Locked                     11   another run holds the lock
    ├── KeyRejected                12   data cannot be decrypted, or its author cannot be authenticated
    ├── NotMeasured                13   the question could not be answered; never a pass
    ├── StoreFailed                 1   an object store refused or failed      (a retry can help)
    │   └── AlreadyExists           1   a write-once key is taken               (a retry cannot help)
    ├── ProgramFailed               1   a program that we started failed
    └── BackupFailed                1   the server broke off the backup         (a retry can help)
        └── IncrementRefused        1   the server takes no increment here; a full can be taken

A message is one line: what is wrong, where, and what to do; never a secret.
"""


class BbOpsError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        exit_code: What the command line ends with.
        retryable: Whether the same call may succeed later without a change.
    """

    exit_code: int = 1
    retryable: bool = False

    def __init__(self, message: str) -> None:
        """Keep the message on one line, so that it stays one line in every log."""
        super().__init__(" ".join(message.split()))


class UsageError(BbOpsError):
    """The command, a setting or a target is wrong."""

    exit_code = 2


class SettingsError(UsageError):
    """One or more settings are missing or wrong; the message names them all."""


class ServerUnusable(UsageError):
    """The PostgreSQL server cannot be reached, refuses us, or lacks what the work needs."""


class TargetRefused(UsageError):
    """A restore target is not empty, in use, too small or not ours."""


class PartlyDone(BbOpsError):
    """Some of the work succeeded."""

    exit_code = 3


class FindingsPresent(BbOpsError):
    """The work was done and a bad state was found."""

    exit_code = 4


class IntegrityError(BbOpsError):
    """Data differs from its checksum or manifest; the message names the object."""

    exit_code = 5


class RepositoryMissing(BbOpsError):
    """A repository, or a backup in it, does not exist."""

    exit_code = 10


class Locked(BbOpsError):
    """Another run holds the lock."""

    exit_code = 11
    retryable = True


class KeyRejected(BbOpsError):
    """Data cannot be decrypted with our keys, or its author cannot be authenticated."""

    exit_code = 12


class NotMeasured(BbOpsError):
    """The question could not be answered. Never a pass."""

    exit_code = 13


class StoreFailed(BbOpsError):
    """An object store refused or failed."""

    retryable = True


class AlreadyExists(StoreFailed):
    """A write-once key is taken."""

    retryable = False


class ProgramFailed(BbOpsError):
    """A program that we started failed or ran over its deadline."""


class BackupFailed(BbOpsError):
    """The server broke off the backup; nothing was committed."""

    retryable = True


class IncrementRefused(BackupFailed):
    """The server takes no increment on this parent, and said so before the first byte; a full can be taken."""

    retryable = False
