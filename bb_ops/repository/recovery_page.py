"""``RECOVERY.md``: how to bring one backup back with stock tools alone, with its real names filled in. Pure.

Every ``sh`` block of the page runs as it stands, one after the other, once the few names at its top are set.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import BackupCommit, Commit, LogicalCommit, ObjectRole, PhysicalCommit, StoredDatabase

_PAGES = Path(__file__).with_name("pages")
_MARK = re.compile(r"@([A-Z_]+)@")
_PROVIDERS = {"i": "icu", "b": "builtin"}
_GIB = 1 << 30
_TEMPLATE, _MAINTENANCE = "template1", "postgres"
_AGE = "`age` (<https://github.com/FiloSottile/age>, `apt-get install age`), "


@dataclass(frozen=True)
class Place:
    """The repository that a page is written for.

    Attributes:
        url: ``s3://bucket/prefix`` or ``file:///directory``.
        endpoint_url: The server that must be named to reach a bucket; None for AWS and for directories.
        region: Its name in reports.
    """

    url: str
    endpoint_url: str | None
    region: str


def render_page(chain: Sequence[Commit], place: Place) -> str:
    """Return the page of the last backup of a chain; equal arguments give equal text.

    Args:
        chain: All that a restore needs: the full first, the wanted backup last; a dump alone.
        place: Where all of it lies.
    """
    last = chain[-1]
    if isinstance(last, LogicalCommit):
        return _fill("logical.md", {**_shared(chain, place), **_logical(last)})
    members = [one for one in chain if isinstance(one, PhysicalCommit)]
    return _fill("physical.md", {**_shared(chain, place), **_physical(members)})


def _fill(template: str, values: Mapping[str, str]) -> str:
    text = (_PAGES / template).read_text(encoding="utf-8")
    return _MARK.sub(lambda mark: values[mark[1]], text)


def _shared(chain: Sequence[Commit], place: Place) -> dict[str, str]:
    last = chain[-1]
    return {
        "ID": last.id,
        "KIND": str(last.kind),
        "AS_OF": f"{last.as_of:%Y-%m-%d %H:%M:%S}Z",
        "SYSTEM": f"{last.cluster}/{last.system_id}",
        "SUPERUSER": _word(last.superuser),
        "FOLDERS": " ".join(f"base/{one.id}" for one in chain),
        "FETCH": _fetch(last, place),
        "HASHES": "\n".join(_hashes(one) for one in chain),
        "SUFFIX": ".zst.age" if last.encryption == "age" else ".zst",
        "AGE": _AGE if any(one.encryption == "age" for one in chain) else "",
        "FACTS": "\n".join(f"| {name} | {value} |" for name, value in _facts(chain, place)),
        "STORED": _size(sum(one.stored_bytes for one in chain)),
    }


def _facts(chain: Sequence[Commit], place: Place) -> list[tuple[str, str]]:
    last = chain[-1]
    facts = [
        ("backup", f"`{last.id}` ({last.kind}, slot {last.slot})"),
        ("repository", f"{_shown(place.url)} (region {_shown(place.region)})"),
        *([("endpoint", _shown(place.endpoint_url))] if place.endpoint_url else []),
        ("cluster, system id", f"`{last.cluster}`, `{last.system_id}`"),
        ("shows", f"the state at {last.as_of:%Y-%m-%d %H:%M:%S.%f}Z"),
        ("server", f"PostgreSQL {last.server_version}"),
        ("superuser", _shown(last.superuser)),
        ("encryption", last.encryption),
        *(("opens with", f"the secret key of `{key}`") for key in last.recipients),
    ]
    if isinstance(last, LogicalCommit):
        facts.append(("programs", f"of PostgreSQL {last.client_version} or newer"))
        facts += [(f"database {one.oid}", f"{_shown(one.name)} in `{one.dump}`") for one in last.databases]
        facts += [(f"tablespace {one.oid}", f"was at {_shown(one.location)}") for one in last.tablespaces]
        return [*facts, *(("left out", _shown(line)) for line in last.left_out)]
    facts += [(f"chain, {number}", f"`{one.id}`") for number, one in enumerate(chain)] if len(chain) > 1 else []
    facts += [
        ("timeline", str(last.timeline)),
        ("WAL", f"replay from {last.start_lsn}; inside the backup up to {last.wal_end_lsn}"),
        ("archived WAL", _shown(f"{place.url}/{last.cluster}/{last.system_id}/wal/")),
    ]
    return [*facts, *((f"tablespace {one.oid}", f"was at {_shown(one.location)}") for one in last.tablespaces)]


def _physical(chain: Sequence[PhysicalCommit]) -> dict[str, str]:
    last, programs = chain[-1], ["pg_verifybackup"] + (["pg_combinebackup"] if len(chain) > 1 else [])
    needed = last.cluster_bytes or last.size_bytes
    if len(chain) > 1:
        needed = sum(one.size_bytes for one in chain) + max(one.cluster_bytes or one.size_bytes for one in chain)
    return {
        "MAJOR": str(last.server_major),
        "PROGRAMS": " and ".join(f"`{name}`" for name in programs),
        "NEEDED": _size(needed),
        "SEGMENT_BYTES": str(last.wal_segment_bytes),
        "OPEN": "\n".join(_open_chain(chain) if len(chain) > 1 else _open_full(last)),
    }


def _open_full(commit: PhysicalCommit) -> list[str]:
    return [_open(commit, "$DIR", "$SPACES"), 'pg_verifybackup "$DIR"', *_tablespace_map(commit)]


def _open_chain(chain: Sequence[PhysicalCommit]) -> list[str]:
    """Open every backup beside the others, check each, and join them."""
    last, count = chain[-1], len(chain)
    members = " ".join(f'"$WORK/{number}"' for number in range(count))
    moved = "".join(f' -T "$WORK/{count - 1}.spaces/{one.oid}=$SPACES/{one.oid}"' for one in last.tablespaces)
    return [
        *(_open(one, f"$WORK/{number}", f"$WORK/{number}.spaces") for number, one in enumerate(chain)),
        f'for data in {members}; do pg_verifybackup --no-parse-wal "$data"; done',
        *(['mkdir -p "$SPACES"'] if last.tablespaces else []),
        f'pg_combinebackup{moved} -o "$DIR" {members}',
        'pg_verifybackup --no-parse-wal "$DIR"',
        *_tablespace_map(last),
    ]


def _open(commit: PhysicalCommit, data: str, spaces: str) -> str:
    oids = "".join(f" {one.oid}" for one in commit.tablespaces)
    return f'open_backup "$SYSTEM/base/{commit.id}" "{data}" "{spaces}"{oids}'


def _tablespace_map(commit: PhysicalCommit) -> list[str]:
    """Tell the server where the tablespaces are now; it reads this at its first start."""
    if not commit.tablespaces:
        return []
    oids = " ".join(str(one.oid) for one in commit.tablespaces)
    return [f'for oid in {oids}; do echo "$oid $SPACES/$oid"; done > "$DIR/tablespace_map"']


def _logical(commit: LogicalCommit) -> dict[str, str]:
    locale = commit.locale
    options = [f"--encoding={locale.encoding}", f"--lc-collate={locale.collate}", f"--lc-ctype={locale.ctype}"]
    if locale.provider in _PROVIDERS:
        provider = _PROVIDERS[locale.provider]
        options += [f"--locale-provider={provider}", f"--{provider}-locale={locale.locale}"]
    return {
        "MAJOR": str(commit.client_major),
        "LOCALE": " ".join(_word(option) for option in options),
        "NEEDED": _size(sum(one.size_bytes for one in commit.databases) * 2),
        "LOAD": "\n".join([*_load_globals(commit), *(line for one in commit.databases for line in _load(commit, one))]),
    }


def _load_globals(commit: LogicalCommit) -> list[str]:
    """Load what belongs to no database; the first role exists already, and tablespaces go where we have made room."""
    folder = f"$SYSTEM/base/{commit.id}"
    lines = []
    for entry in commit.with_role(ObjectRole.GLOBALS):
        quoted = '"' + commit.superuser.replace('"', '""') + '"'
        made = " ".join(f"-e {_word(f'CREATE ROLE {form};')}" for form in (commit.superuser, quoted))
        lines += [f'unseal "{folder}/{entry.name}"', f'grep -v -x -F {made} "$WORK/plain" > "$WORK/globals"']
        if commit.tablespaces:
            oids = " ".join(str(one.oid) for one in commit.tablespaces)
            lines += [
                f'for oid in {oids}; do mkdir -p -m 700 "$SPACES/$oid"; done',
                f'awk -v spaces="$SPACES" -v oids="{oids}" \'BEGIN {{ split(oids, oid, " ") }}',
                '  /^CREATE TABLESPACE / { sub(/ LOCATION .*/, " LOCATION \\047" spaces "/" oid[++n] "\\047;") }',
                '  { print }\' "$WORK/globals" > "$WORK/plain" && mv "$WORK/plain" "$WORK/globals"',
            ]
        lines.append('psql -X -q -v ON_ERROR_STOP=1 -d template1 -f "$WORK/globals"')
    return lines


def _load(commit: LogicalCommit, database: StoredDatabase) -> list[str]:
    inside = _MAINTENANCE if database.name == _TEMPLATE else _TEMPLATE
    lines = [f'unseal "$SYSTEM/base/{commit.id}/{database.dump}"']
    if database.name in {_TEMPLATE, _MAINTENANCE}:
        lines.append(f"drop {database.name} {inside}")
    if commit.kind == BackupKind.SCHEMA:
        return [*lines, f'psql -X -q -v ON_ERROR_STOP=1 -d {inside} -f "$WORK/plain"']
    return [*lines, f'pg_restore --create --exit-on-error -d {inside} "$WORK/plain"']


def _hashes(commit: BackupCommit) -> str:
    lines = "\n".join(f"{entry.sha256}  {entry.name}" for entry in commit.objects)
    return f"(cd \"$SYSTEM/base/{commit.id}\" && sha256sum --check --strict --quiet -) <<'EOF'\n{lines}\nEOF"


def _fetch(commit: BackupCommit, place: Place) -> str:
    """Copy one folder; one that is not there, as ``wal`` where nobody streams, is empty afterwards."""
    url = urlparse(place.url)
    below = f"{commit.cluster}/{commit.system_id}"
    if url.scheme == "file":
        source = _word(f"{unquote(place.url.removeprefix('file://'))}/{below}")
        return f'[ ! -d {source}/"$name" ] || cp -R {source}/"$name"/. "$SYSTEM/$name.partial"'
    endpoint = f" --endpoint-url {_word(place.endpoint_url)}" if place.endpoint_url else ""
    source = _word(f"{place.url}/{below}/")
    return f'aws{endpoint} s3 cp --recursive --only-show-errors {source}"$name/" "$SYSTEM/$name.partial"'


def _word(text: str) -> str:
    """Return one word of a shell, on one line, that cannot end the block that it stands in."""
    if text.isprintable() and "`" not in text:
        return shlex.quote(text)
    octal = "".join(f"\\{byte:03o}" for byte in text.encode("utf-8", "surrogateescape"))
    return f"\"$(printf '{octal}')\""


def _shown(text: str) -> str:
    """Return a text as a cell of a table shows it, on one line."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1] if not text.isprintable() else text
    return f"`{plain.replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"
