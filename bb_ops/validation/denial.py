"""Declare a region dead: the whole environment of a process that knows the other region and the offline key alone.

What is not listed here is not handed on. Nothing of the dead region is read but its name, so its settings may be
unset, wrong or out of date.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime

from bb_ops.errors import BbOpsError, KeyRejected, NotMeasured, RepositoryMissing, SettingsError
from bb_ops.findings import Value
from bb_ops.repository.keys import read_identities

OFFLINE_KEY = "BB_OPS_OFFLINE_IDENTITY_FILE"
_IDENTITY = "BB_OPS_AGE_IDENTITY_FILE"
_SIGNING, _SIGNING_PUBLIC = "BB_OPS_SIGNING_KEY_FILE", "BB_OPS_SIGNING_PUBLIC_KEY_FILE"
_FIRST = {
    "BB_OPS_REPOSITORY": "BB_OPS_REPOSITORY",
    "AWS_S3_BACKUP_BUCKET": "AWS_S3_BACKUP_BUCKET",
    "AWS_DEFAULT_REGION": "AWS_DEFAULT_REGION",
    "BB_OPS_S3_ENDPOINT_URL": "BB_OPS_S3_ENDPOINT_URL",
    "BB_OPS_S3_ACCESS_KEY_ID": "BB_OPS_S3_ACCESS_KEY_ID",
    "BB_OPS_S3_SECRET_ACCESS_KEY": "BB_OPS_S3_SECRET_ACCESS_KEY",
    "BB_OPS_S3_SECRET_ACCESS_KEY_FILE": "BB_OPS_S3_SECRET_ACCESS_KEY_FILE",
}
_SECOND = {
    "BB_OPS_REPLICA": "BB_OPS_REPOSITORY",
    "AWS_S3_CROSS_REGION_BUCKET": "AWS_S3_BACKUP_BUCKET",
    "AWS_BACKUP_REGION": "AWS_DEFAULT_REGION",
    "BB_OPS_REPLICA_S3_ENDPOINT_URL": "BB_OPS_S3_ENDPOINT_URL",
    "BB_OPS_REPLICA_S3_ACCESS_KEY_ID": "BB_OPS_S3_ACCESS_KEY_ID",
    "BB_OPS_REPLICA_S3_SECRET_ACCESS_KEY": "BB_OPS_S3_SECRET_ACCESS_KEY",
    "BB_OPS_REPLICA_S3_SECRET_ACCESS_KEY_FILE": "BB_OPS_S3_SECRET_ACCESS_KEY_FILE",
}
"""A region's settings, by the names that they bear for a process to which it is the only one."""
_OF_BOTH = (
    "BB_OPS_CLUSTER",
    "BB_OPS_ENCRYPTION",
    "BB_OPS_PG_BINDIR",
    "BB_OPS_SERVER_USER",
    "BB_OPS_SCRATCH_DIRECTORY",
    "BB_OPS_INVARIANTS_FILE",
    _SIGNING_PUBLIC,
    "PATH",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "AWS_CA_BUNDLE",
    "SSL_CERT_FILE",
)
_SDK_CHAIN = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "HOME",
)
"""What a surviving region that has no keys of its own is reached with."""
_FORBIDDEN = frozenset({"DATABASE_URL", "DATABASE_URL_FILE", *_SECOND})


class Declaration(Value):
    """What the process that recovers is told; it holds no secret.

    Attributes:
        region: The name of the region that lives.
        dead: The name of the one that is declared dead.
        working_recipient: The working key's public half, which none of the keys at hand may have; None where the
            working key could not be read, and so was not there for anybody.
        shared: Settings of the dead region's credentials that open the living one too.
    """

    declared_at: AwareDatetime
    region: str
    dead: str
    working_recipient: str | None
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Denial:
    """What is left when a region is dead.

    Attributes:
        region: The one that lives.
        dead: The one that does not.
        environment: All that the process that recovers may see.
        signing: The setting that names the signing key, which only the process that records the result is given.
        working_recipient: See ``Declaration``.
        shared: Likewise.
    """

    region: str
    dead: str
    environment: Mapping[str, str]
    signing: Mapping[str, str]
    working_recipient: str | None
    shared: tuple[str, ...]


def deny(
    environment: Mapping[str, str], region: str | None, offline_key: Path | None, *, needs_key: bool = True
) -> Denial:
    """Decide what is left.

    Args:
        environment: Everything that is set here.
        region: The region that lives; None for the second.
        offline_key: Wins over the setting.
        needs_key: Whether anything must be opened, or only looked at.

    Raises:
        RepositoryMissing: no second region is set.
        SettingsError: there is no such region.
        NotMeasured: the offline key is not set, or not readable now.
        KeyRejected: it is the working key, so that nothing would be denied.
    """
    given = {name: value.strip() for name, value in environment.items() if value.strip()}
    first, second = _name(given, _FIRST, "primary"), _name(given, _SECOND, "replica")
    if second == first:
        second = "replica"
    if not given.keys() & {"BB_OPS_REPLICA", "AWS_S3_CROSS_REGION_BUCKET"}:
        raise RepositoryMissing("no second region is set, so a drill has nothing to recover from: set BB_OPS_REPLICA")
    if region not in {None, first, second}:
        raise SettingsError(f"there is no region {region!r}: known are {first}, {second}")
    living, names, others = (first, _FIRST, _SECOND) if region == first else (second, _SECOND, _FIRST)
    left = {new: _whole(new, given[old]) for old, new in names.items() if old in given}
    left |= {name: _whole(name, given[name]) for name in _OF_BOTH if name in given}
    if "BB_OPS_S3_ACCESS_KEY_ID" not in left and not left.get("BB_OPS_REPOSITORY", "").startswith("file:"):
        left |= {name: given[name] for name in _SDK_CHAIN if name in given}
    signing = {_SIGNING: _whole(_SIGNING, given[_SIGNING])} if _SIGNING in given else {}
    working = _working(given)
    if _SIGNING_PUBLIC not in left:
        left |= signing  # only its public half is used there
    if needs_key:
        key = offline_key or (Path(given[OFFLINE_KEY]) if OFFLINE_KEY in given else None)
        left[_IDENTITY] = _offline(key, working)
    left["BB_OPS_CACHE_DIRECTORY"] = "none"
    return Denial(
        region=living,
        dead=first if living == second else second,
        environment=left,
        signing=signing,
        working_recipient=working,
        shared=tuple(name for name in others if "_KEY" in name and given.get(name, "") in left.values()),
    )


def trespassers(names: frozenset[str]) -> list[str]:
    """Return which names must not be known to a process whose region is dead."""
    return sorted(_FORBIDDEN & names)


def _name(given: Mapping[str, str], names: Mapping[str, str], default: str) -> str:
    url, bucket, region = list(names)[:3]
    on_s3 = given.get(url, "s3:" if bucket in given else "").startswith("s3:")
    return given.get(region, default) if on_s3 else default


def _whole(name: str, value: str) -> str:
    """Return a value; a path independent of the working directory."""
    return str(Path(value).absolute()) if name.endswith(("_FILE", "_DIRECTORY")) else value


def _offline(path: Path | None, working: str | None) -> str:
    if path is None:
        raise NotMeasured(f"the offline key is not at hand: name its file in {OFFLINE_KEY} or with --offline-key")
    try:
        ours = [str(identity.to_public()) for identity in read_identities(path)]
    except BbOpsError as error:
        raise NotMeasured(f"the offline key cannot be read, so nothing was measured: {error}") from error
    if working in ours:
        raise KeyRejected(f"{path} holds the working key, which dies with its region: name the offline key's file")
    return str(path.absolute())


def _working(given: Mapping[str, str]) -> str | None:
    try:
        return str(read_identities(Path(given[_IDENTITY]))[0].to_public()) if _IDENTITY in given else None
    except BbOpsError:
        return None
