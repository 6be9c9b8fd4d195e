"""Everything that can be set, read once from the environment. Nothing else in bb_ops reads the environment.

The predecessor's names keep working. A file ``.env`` (and ``.env.monitoring``) in the working directory is read
first; the process environment wins. Every secret can also be given as ``NAME_FILE``, a path.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from dotenv import dotenv_values
from pydantic import SecretStr

from bb_ops.dsn import Dsn, parse_dsn
from bb_ops.errors import SettingsError

_ENV_FILES = (".env", ".env.monitoring")
_BUCKET_PREFIX = "bb_ops"
_S3_URL = re.compile(r"(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/|$))(.*)")
_FILE_URL = re.compile(r"(file:///)(.*)")
_NO_PART = {"", ".", ".."}
_CLUSTER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_T = TypeVar("_T")


@dataclass(frozen=True)
class RepositorySettings:
    """Where one repository is and how to reach it.

    Attributes:
        region: The name that reports use for it.
        url: ``s3://bucket/prefix`` or ``file:///directory``.
        aws_region: The region to name to AWS; None where it does not matter.
        endpoint_url: An S3-compatible server; None for AWS.
        access_key_id: None to use the AWS SDK's own chain (instance role, profile).
        secret_access_key: Likewise.
    """

    region: str
    url: str
    aws_region: str | None = None
    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None


@dataclass(frozen=True)
class Settings:
    """All settings, checked. What a command does not need may be None.

    Attributes:
        database: The server to back up.
        cluster: The name of the database cluster inside the repositories.
        elsewhere: How to reach buckets that hold no repository of ours; its ``url`` is empty.
        encryption: ``age``, or ``none`` by explicit wish only.
        recipients_file: age public keys, one a line; all that a backup needs.
        identity_file: age secret key; needed only where restores run.
        signing_key_file: Ed25519 secret key; needed where backups are committed.
        signing_public_key_file: Ed25519 public key; needed where backups are read.
        compression_level: zstd level.
        compression_threads: zstd worker threads.
        max_rate_mib: How much of the database the server may send each second for a backup, in MiB; None: all it can.
        part_size_bytes: An archive is cut at the first member boundary after this many raw bytes.
        fingerprint_budget_s: Time that counting and hashing the source's rows may take; 0 turns it off.
        incremental_depth: How many increments a chain may have before a full is taken again.
        pg_bindirs: Folders with PostgreSQL programs, searched first.
        server_user: The account that runs restored servers when we are root.
        scratch_directory: Where throw-away restores go; the system's temporary directory when None.
        invariants_file: What must be true of the application's data; None declares nothing.
        cache_directory: Where is kept what was read before, to be quick; None keeps nothing.
        wal_partial_interval_s: How often the unfinished WAL segment is stored while WAL is streamed.
        wal_both_regions: Whether WAL counts as durable only once the replica's repository holds it too.
        wal_retained_limit_bytes: Above this much WAL kept for us, the server's disk is said to be in danger.
    """

    database: Dsn | None
    cluster: str
    repository: RepositorySettings | None
    replica: RepositorySettings | None
    encryption: Literal["age", "none"]
    recipients_file: Path | None
    identity_file: Path | None
    signing_key_file: Path | None
    signing_public_key_file: Path | None
    compression_level: int
    compression_threads: int
    max_rate_mib: int | None
    part_size_bytes: int
    fingerprint_budget_s: float
    incremental_depth: int
    pg_bindirs: tuple[Path, ...]
    server_user: str | None
    scratch_directory: Path | None
    invariants_file: Path | None
    cache_directory: Path | None
    wal_partial_interval_s: float
    wal_both_regions: bool
    wal_retained_limit_bytes: int
    elsewhere: RepositorySettings


def read_settings(environment: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        environment: What to read; the process environment and the ``.env`` files when None.
        directory: Where the ``.env`` files are looked for; the working directory when None.

    Raises:
        SettingsError: names every fault at once, and never a value.
    """
    if environment is None:
        environment = process_environment(directory)
    reader = _Reader(environment)
    settings = Settings(
        database=reader.parsed("DATABASE_URL", parse_dsn, secret=True),
        cluster=reader.parsed("BB_OPS_CLUSTER", _cluster_name) or "main",
        repository=_repository(
            reader, "REPOSITORY", "BB_OPS_S3", "AWS_S3_BACKUP_BUCKET", "AWS_DEFAULT_REGION", "primary"
        ),
        replica=_repository(
            reader, "REPLICA", "BB_OPS_REPLICA_S3", "AWS_S3_CROSS_REGION_BUCKET", "AWS_BACKUP_REGION", "replica"
        ),
        encryption=reader.parsed("BB_OPS_ENCRYPTION", _encryption) or "age",
        recipients_file=reader.parsed("BB_OPS_AGE_RECIPIENTS_FILE", _file),
        identity_file=reader.parsed("BB_OPS_AGE_IDENTITY_FILE", _file),
        signing_key_file=reader.parsed("BB_OPS_SIGNING_KEY_FILE", _file),
        signing_public_key_file=reader.parsed("BB_OPS_SIGNING_PUBLIC_KEY_FILE", _file),
        compression_level=reader.parsed("BB_OPS_COMPRESSION_LEVEL", _whole_number(1, 19)) or 3,
        compression_threads=reader.parsed("BB_OPS_COMPRESSION_THREADS", _whole_number(1, 64)) or 2,
        max_rate_mib=reader.parsed("BB_OPS_MAX_RATE_MIB", _whole_number(1, 1024)),
        part_size_bytes=(reader.parsed("BB_OPS_PART_SIZE_MIB", _whole_number(1, 65536)) or 256) << 20,
        fingerprint_budget_s=_budget(reader),
        incremental_depth=reader.parsed("BB_OPS_INCREMENTAL_DEPTH", _whole_number(1, 200)) or 24,
        pg_bindirs=reader.parsed("BB_OPS_PG_BINDIR", _paths) or (),
        server_user=reader.text("BB_OPS_SERVER_USER"),
        scratch_directory=reader.parsed("BB_OPS_SCRATCH_DIRECTORY", _directory),
        invariants_file=reader.parsed("BB_OPS_INVARIANTS_FILE", _file),
        cache_directory=_cache(reader),
        wal_partial_interval_s=float(reader.parsed("BB_OPS_WAL_PARTIAL_INTERVAL_S", _whole_number(1, 3600)) or 2),
        wal_both_regions=reader.parsed("BB_OPS_WAL_BOTH_REGIONS", _switch) or False,
        wal_retained_limit_bytes=(reader.parsed("BB_OPS_WAL_RETAINED_LIMIT_MIB", _whole_number(16, 1 << 30)) or 4096)
        << 20,
        elsewhere=_access(reader, "BB_OPS_S3", "AWS_DEFAULT_REGION", ""),
    )
    if settings.repository and settings.replica:
        reader.check_two_places(settings.repository, settings.replica)
        if settings.repository.region == settings.replica.region:
            settings = replace(settings, replica=replace(settings.replica, region="replica"))
    reader.raise_faults()
    return settings


def file_settings(file: Path) -> dict[str, str]:
    """Return the settings that a file holds, by name."""
    values = dotenv_values(file, interpolate=False)
    return {name: value for name, value in values.items() if value is not None}


def process_environment(directory: Path | None = None) -> dict[str, str]:
    """Return all that is set here, unchecked: the process environment, and what the ``.env`` files add to it."""
    return {**_env_files(directory or Path.cwd()), **os.environ}


def environment_with(file: Path) -> dict[str, str]:
    """Return the process environment with the settings of a file added, which win."""
    return {**os.environ, **file_settings(file)}


class _Reader:
    """Reads values and remembers every fault, so that all of them are reported together."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._faults: list[str] = []

    def text(self, name: str) -> str | None:
        """Return a value, None where it is unset or blank."""
        return self._environment.get(name, "").strip() or None

    def secret(self, name: str) -> str | None:
        """Return a secret, from ``NAME`` or from the file that ``NAME_FILE`` names."""
        path = self.text(f"{name}_FILE")
        if path is None:
            return self.text(name)
        if self.text(name) is not None:
            self._faults.append(f"{name} and {name}_FILE are both set: keep one")
        try:
            return Path(path).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            self._faults.append(f"{name}_FILE names a file that cannot be read")
            return None

    def parsed(self, name: str, parse: Callable[[str], _T], *, secret: bool = False) -> _T | None:
        """Return a parsed value; a ValueError from ``parse`` becomes a fault."""
        value = self.secret(name) if secret else self.text(name)
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError as error:
            self._faults.append(f"{name}: {error}")
            return None

    def check_two_places(self, first: RepositorySettings, second: RepositorySettings) -> None:
        """Note a fault where both repositories are the same place or bear the same name."""
        if _place(first) == _place(second):
            self._faults.append(
                "BB_OPS_REPOSITORY and BB_OPS_REPLICA are the same place: a copy must be somewhere else"
            )

    def note(self, fault: str) -> None:
        """Remember a fault, in words without any value."""
        self._faults.append(fault)

    def raise_faults(self) -> None:
        """Raise one error with every fault found."""
        if self._faults:
            raise SettingsError("settings: " + "; ".join(dict.fromkeys(self._faults)))


def _repository(  # noqa: PLR0913 - the predecessor's names follow no pattern
    reader: _Reader, role: str, s3: str, bucket_variable: str, region_variable: str, default_region: str
) -> RepositorySettings | None:
    bucket = reader.text(bucket_variable)
    url = reader.parsed(f"BB_OPS_{role}", _repository_url) or (f"s3://{bucket}/{_BUCKET_PREFIX}" if bucket else None)
    if url is None:
        return None
    found = _access(reader, s3, region_variable, url)
    aws_region = found.aws_region if url.startswith("s3://") else None
    return replace(found, region=aws_region or default_region, aws_region=aws_region)


def _access(reader: _Reader, s3: str, region_variable: str, url: str) -> RepositorySettings:
    access_key, secret_key = reader.text(f"{s3}_ACCESS_KEY_ID"), reader.secret(f"{s3}_SECRET_ACCESS_KEY")
    if bool(access_key) != bool(secret_key):
        reader.note(f"{s3}_ACCESS_KEY_ID and {s3}_SECRET_ACCESS_KEY belong together: set both or neither")
    return RepositorySettings(
        region="",
        url=url,
        aws_region=reader.text(region_variable),
        endpoint_url=reader.parsed(f"{s3}_ENDPOINT_URL", _http_url),
        access_key_id=access_key,
        secret_access_key=SecretStr(secret_key) if secret_key else None,
    )


def _env_files(directory: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _ENV_FILES:
        path = directory / name
        if path.is_file():
            found |= file_settings(path)
    return found


def _repository_url(value: str) -> str:
    """Return one form for each place: no slash at the end, none doubled at the beginning."""
    found = _S3_URL.fullmatch(value) or _FILE_URL.fullmatch(value)
    if found is None:
        raise ValueError("give s3://bucket/prefix or file:///absolute/directory")
    root, rest = found[1], found[2].strip("/")
    if root.startswith("s3://") and rest and not _NO_PART.isdisjoint(rest.split("/")):
        raise ValueError("no part of the prefix may be empty, . or ..")
    if root == "file:///" and not rest:
        raise ValueError("the root directory cannot be a repository: name a directory in it")
    return f"{root}{rest}".rstrip("/")


def _place(repository: RepositorySettings) -> tuple[str, str]:
    if repository.url.startswith("file://"):
        return str(Path(repository.url.removeprefix("file://")).resolve()), ""
    return repository.url, (repository.endpoint_url or "").rstrip("/").lower()


def _http_url(value: str) -> str:
    if re.fullmatch(r"https?://[^\s/@]+(/\S*)?", value):
        return value
    raise ValueError("give an http:// or https:// address without credentials")


def _cluster_name(value: str) -> str:
    if _CLUSTER_NAME.fullmatch(value):
        return value
    raise ValueError("give lower-case letters, digits, dots, dashes or underscores, at most 63")


def _encryption(value: str) -> Literal["age", "none"]:
    if value == "age":
        return "age"
    if value == "none":
        return "none"
    raise ValueError("give age or none")


def _file(value: str) -> Path:
    path = Path(value)
    if not path.is_file():
        raise ValueError("no such file")
    return path


def _directory(value: str) -> Path:
    path = Path(value)
    if not path.is_dir():
        raise ValueError("no such directory")
    return path


def _switch(value: str) -> bool:
    if value not in {"on", "off"}:
        raise ValueError("give on or off")
    return value == "on"


def _paths(value: str) -> tuple[Path, ...]:
    return tuple(Path(entry) for entry in value.split(os.pathsep) if entry)


def _whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not value.isdecimal() or not lowest <= int(value) <= highest:
            raise ValueError(f"give a whole number from {lowest} to {highest}")
        return int(value)

    return parse


def _budget(reader: _Reader) -> float:
    seconds = reader.parsed("BB_OPS_FINGERPRINT_BUDGET_S", _whole_number(0, 86400))
    return 120.0 if seconds is None else float(seconds)


def _cache(reader: _Reader) -> Path | None:
    """Return the folder for caches: the XDG Base Directory Specification's, unless another one or ``none`` is set."""
    value = reader.text("BB_OPS_CACHE_DIRECTORY")
    if value is not None:
        return None if value == "none" else Path(value)
    home, caches = reader.text("HOME"), reader.text("XDG_CACHE_HOME")
    if caches is None and home is None:
        return None
    return (Path(caches) if caches else Path(home or "") / ".cache") / "bb-ops"
