"""Where things are. Documented in docs/repository-format.md; stable for a format version.

bb-ops-repository.json                                  the marker of a repository
{cluster}/{system_id}/base/{backup_id}/COMMIT.json      written last: without it there is no backup
{cluster}/{system_id}/base/{backup_id}/RECOVERY.md      how to bring it back with stock tools; no object of the commit
{cluster}/{system_id}/base/{backup_id}/{archive}.{n}.tar.zst.age
{cluster}/{system_id}/base/{backup_id}/backup_manifest.zst.age
{cluster}/{system_id}/base/{backup_id}/fingerprints.json.zst.age
{cluster}/{system_id}/base/{backup_id}/{database oid}.dump.zst.age       of a logical backup
{cluster}/{system_id}/base/{backup_id}/{database oid}.contents.zst.age   what the dump must hold
{cluster}/{system_id}/base/{backup_id}/{database oid}.schema.zst.age     of a schema backup
{cluster}/{system_id}/base/{backup_id}/globals.sql.zst.age               of both
{cluster}/{system_id}/evidence/{backup_id}/{proof_id}.json
{cluster}/{system_id}/recoveries/{recovery_id}.json     what a recovery measured
{cluster}/drills/{drill_id}.json                        what a drill from this region showed
{cluster}/locks/{name}/{fence}.json
"""

MARKER = "bb-ops-repository.json"
COMMIT_NAME = "COMMIT.json"
PAGE_NAME = "RECOVERY.md"
_BASE = "/base/"


def cluster_prefix(cluster: str) -> str:
    """Return the prefix of everything of a cluster."""
    return f"{cluster}/"


def base_prefix(cluster: str, system_id: str) -> str:
    """Return the prefix of a system's base backups."""
    return f"{cluster}/{system_id}{_BASE}"


def backup_prefix(cluster: str, system_id: str, backup_id: str) -> str:
    """Return the prefix of one backup's objects."""
    return f"{base_prefix(cluster, system_id)}{backup_id}/"


def commit_key(cluster: str, system_id: str, backup_id: str) -> str:
    """Return the key of the object that makes a backup exist."""
    return backup_prefix(cluster, system_id, backup_id) + COMMIT_NAME


def page_key(cluster: str, system_id: str, backup_id: str) -> str:
    """Return the key of the page that says how to bring a backup back with stock tools."""
    return backup_prefix(cluster, system_id, backup_id) + PAGE_NAME


def part_name(archive: str, number: int, suffix: str) -> str:
    """Return an archive part's name: ``base.0000.tar.zst.age``, or ``{tablespace oid}.0000.…``."""
    return f"{archive}.{number:04d}.tar{suffix}"


def manifest_name(suffix: str) -> str:
    """Return the name of PostgreSQL's own manifest of a backup."""
    return f"backup_manifest{suffix}"


def fingerprints_name(suffix: str) -> str:
    """Return the name of the source's fingerprints."""
    return f"fingerprints.json{suffix}"


def dump_name(database_oid: int, form: str, suffix: str) -> str:
    """Return the name of what a dump has of one database; ``form`` is dump, contents or schema."""
    return f"{database_oid}.{form}{suffix}"


def globals_name(suffix: str) -> str:
    """Return the name of what belongs to no database: roles, memberships, tablespaces."""
    return f"globals.sql{suffix}"


def evidence_prefix(cluster: str, system_id: str, backup_id: str = "") -> str:
    """Return the prefix of the proofs of one backup, or of all."""
    return f"{cluster}/{system_id}/evidence/" + (f"{backup_id}/" if backup_id else "")


def proof_key(cluster: str, system_id: str, backup_id: str, proof_id: str) -> str:
    """Return the key of one proof."""
    return f"{evidence_prefix(cluster, system_id, backup_id)}{proof_id}.json"


def recovery_prefix(cluster: str, system_id: str) -> str:
    """Return the prefix of what recoveries measured."""
    return f"{cluster}/{system_id}/recoveries/"


def recovery_key(cluster: str, system_id: str, recovery_id: str) -> str:
    """Return the key of one recovery's record."""
    return f"{recovery_prefix(cluster, system_id)}{recovery_id}.json"


def drill_prefix(cluster: str) -> str:
    """Return the prefix of the drills' reports."""
    return f"{cluster}/drills/"


def drill_key(cluster: str, drill_id: str) -> str:
    """Return the key of one drill's report."""
    return f"{drill_prefix(cluster)}{drill_id}.json"


def lock_prefix(cluster: str, name: str) -> str:
    """Return the prefix of a lock's leases."""
    return f"{cluster}/locks/{name}/"


def backup_id_of(key: str) -> str | None:
    """Return the backup that a key below ``base/`` belongs to; None for other keys."""
    _, found, rest = key.rpartition(_BASE)
    return rest.partition("/")[0] if found and "/" in rest else None
