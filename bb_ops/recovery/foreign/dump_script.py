"""Judges a dump's script and adapts it to a new cluster, as it goes by. Pure.

What is refused may run programs on this host: psql's own commands except those that pg_dump writes, and COPY … PROGRAM.
psql itself is told to refuse its commands too, where it knows how (restrict, since August 2025): then even a script
that made us misread it runs none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from bb_ops.errors import IntegrityError
from bb_ops.postgres.archive_header import Origin, major_of
from bb_ops.postgres.sql_script import MOST_CODE_BYTES, Kind, Piece, Splitter

_NAME = r'(?:"(?:[^"]|"")+"|[^\s";,()]+)'
_BEGUN = re.compile(rb"^-- PostgreSQL database (?:cluster )?dump\r?$", re.MULTILINE)
_COMPLETE = re.compile(rb"^-- PostgreSQL database (?:cluster )?dump complete\r?$", re.MULTILINE)
_CLUSTER = re.compile(rb"^-- PostgreSQL database cluster dump\r?$", re.MULTILINE)
_VERSION = re.compile(rb"^-- Dumped (from database|by pg_dump) version ([^\r\n]*)", re.MULTILINE)
_CONNECT = re.compile(
    rb"""\\(?:connect|c)[ \t]+(?:
        -reuse-previous=on[ \t]+"dbname='(?:[^'\\"\r\n]|\\[^\r\n]|"")*'"
      | "(?:[^"=:/\r\n]|"")+"
      | [^\s"'`\\=:/-][^\s"'`\\=:/]*
    )\s*\Z""",
    re.VERBOSE,
)
"""A database and nothing else: more words, or an address, would lead to another server."""
_SESSION = re.compile(rb"SET\s+SESSION\s+AUTHORIZATION\s+'((?:[^']|'')+)'", re.IGNORECASE)
_CLIENT_ENCODING = re.compile(rb"\\encoding[ \t]+'?[A-Za-z0-9_]+'?\s*\Z")
_RESTRICT = re.compile(rb"\\(?:un)?restrict\s+[A-Za-z0-9]+\s*\Z")
_PROGRAM = re.compile(rb"COPY\b.*\bPROGRAM\b", re.IGNORECASE | re.DOTALL)
_ENCODING = re.compile(rb"SET client_encoding = '([^']*)'")
_CREATE = re.compile(r"CREATE\s+(?!ROLE\b|DATABASE\b|TABLESPACE\b)", re.IGNORECASE)
_CREATE_DATABASE = re.compile(rf"CREATE\s+DATABASE\s+({_NAME})", re.IGNORECASE)
_DROP_DATABASE = re.compile(rf"DROP\s+DATABASE\s+(?:IF\s+EXISTS\s+)?({_NAME})", re.IGNORECASE)
_CREATE_ROLE = re.compile(rf"CREATE\s+(?:ROLE|USER|GROUP)\s+({_NAME})\s*;", re.IGNORECASE)
_DROP_ROLE = re.compile(rf"DROP\s+ROLE\s+(?:IF\s+EXISTS\s+)?({_NAME})", re.IGNORECASE)
_CREATE_SPACE = re.compile(rf"(CREATE\s+TABLESPACE\s+({_NAME})\b.*\sLOCATION\s+)'", re.IGNORECASE | re.DOTALL)
_SPACE = re.compile(rf"SET\s+default_tablespace\s*=\s*({_NAME})|\bTABLESPACE\s*=\s*({_NAME})", re.IGNORECASE)
_CLEANING = re.compile(
    r"DROP\s|ALTER\s.*\s(?:DROP|DETACH)\s|SELECT\s+pg_catalog\.lo_unlink\b", re.IGNORECASE | re.DOTALL
)
_DROP_WITHOUT_IF = re.compile(r"DROP\s+(DATABASE|ROLE|SCHEMA|TABLESPACE)\s+(?!IF\s)", re.IGNORECASE)
_OBSOLETE = re.compile(r"SET\s+default_with_oids\s*=\s*false\s*;", re.IGNORECASE)
_ROLES = tuple(
    re.compile(pattern.replace("NAMES", rf"({_NAME}(?:\s*,\s*{_NAME})*)"), re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"ALTER\s.*\sOWNER\s+TO\s+NAMES\s*;",
        r"GRANT\s.*\sTO\s+(?:GROUP\s+)?NAMES(?:\s+WITH\s.*)?(?:\s+GRANTED\s+BY\s.*)?\s*;",
        r"GRANT\s.*\sGRANTED\s+BY\s+NAMES\s*;",
        r"REVOKE\s.*\sFROM\s+(?:GROUP\s+)?NAMES(?:\s+(?:CASCADE|RESTRICT))?\s*;",
        r"ALTER\s+DEFAULT\s+PRIVILEGES\s+FOR\s+ROLE\s+NAMES",
        r"ALTER\s+DEFAULT\s+PRIVILEGES\s.*\sGRANT\s.*\sTO\s+NAMES(?:\s+WITH\s.*)?\s*;",
        r"ALTER\s+DEFAULT\s+PRIVILEGES\s.*\sREVOKE\s.*\sFROM\s+NAMES\s*;",
        r"CREATE\s+POLICY\s.*?\sTO\s+NAMES(?:\s+(?:USING|WITH)\s.*)?\s*[;(]",
        r"CREATE\s+SCHEMA\s.*\bAUTHORIZATION\s+NAMES",
        r"CREATE\s+USER\s+MAPPING\s.*FOR\s+NAMES\s+SERVER",
        r"ALTER\s+ROLE\s+NAMES\s+(?:IN\s+DATABASE|SET)\s",
    )
)
_STARTS = ("ALTER", "GRANT", "REVOKE", "CREATE POLICY", "CREATE SCHEMA", "CREATE USER")
_NO_ROLES = {"public", "current_user", "session_user", "current_role", "default", "''"}
_ALL_NAMES = re.compile(_NAME)


@dataclass
class Facts:
    """What a script says of itself, complete once all of it went by.

    Attributes:
        is_cluster: It is of pg_dumpall: it makes roles.
        makes: Databases that it makes.
        drops: Databases that it drops first.
        roles: Roles that it names and does not make.
        tablespaces: Tablespaces that it makes, in order.
        missing_tablespaces: Those that it names and does not make.
        size_bytes: Bytes of the whole script.
    """

    is_cluster: bool = False
    server_major: int | None = None
    client_major: int | None = None
    encoding: str = "UTF8"
    makes: set[str] = field(default_factory=set)
    drops: set[str] = field(default_factory=set)
    connects: bool = False
    tablespaces: list[str] = field(default_factory=list)
    size_bytes: int = 0
    statements: int = 0
    begun: int = 0
    complete: int = 0
    named_roles: set[str] = field(default_factory=set)
    made_roles: set[str] = field(default_factory=set)
    named_tablespaces: set[str] = field(default_factory=set)

    @property
    def roles(self) -> list[str]:
        """Roles that it names and does not make; PostgreSQL's own are there already."""
        return sorted(name for name in self.named_roles - self.made_roles if not name.startswith("pg_"))

    @property
    def missing_tablespaces(self) -> list[str]:
        """Tablespaces that it names and does not make."""
        own = {"pg_default", "pg_global", "''"}
        return sorted(self.named_tablespaces - set(self.tablespaces) - own)

    @property
    def origin(self) -> Origin:
        """Where it comes from."""
        return Origin(None, self.server_major, self.client_major)

    def require_end(self) -> None:
        """Prove that no part of it is missing at its end.

        Raises:
            IntegrityError: one is.
        """
        if not self.begun or self.complete < self.begun:
            raise IntegrityError("the dump is cut short: its last line, '… dump complete', is missing")


@dataclass
class Adaptation:
    """How a script is changed for a new cluster.

    Attributes:
        superuser: The role that initdb made: it is not made again.
        key: What psql's restriction is lifted by; None where psql knows none.
        locations: Where tablespaces go, by name.
    """

    superuser: str
    key: str | None
    locations: dict[str, str]


class DumpScript:
    """Takes a script, judges every piece before it gives it out, and gathers facts."""

    def __init__(self, adaptation: Adaptation) -> None:
        """Begin."""
        self.facts = Facts()
        self._adaptation = adaptation
        self._splitter = Splitter()
        self._fresh = True

    def opening(self) -> bytes:
        """Return what psql must be told first."""
        key = self._adaptation.key
        return b"" if key is None else f"\\restrict {key}\n".encode()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes; yield what may be loaded.

        Raises:
            IntegrityError: the script would run a program, or is cut short.
        """
        self.facts.size_bytes += len(data)
        for piece in self._splitter.feed(data):
            yield self._pass(piece)

    def finish(self) -> Iterator[bytes]:
        """Yield the rest, and prove that it is the end.

        Raises:
            IntegrityError: it is not.
        """
        for piece in self._splitter.finish():
            yield self._pass(piece)
        self.facts.require_end()

    def _pass(self, piece: Piece) -> bytes:
        if piece.kind == Kind.ROWS:
            return piece.data
        if b"-- " in piece.data and piece.kind != Kind.STATEMENT:
            self._read_comments(piece.data)
        if piece.kind == Kind.COMMAND:
            return self._command(piece.data)
        if piece.kind == Kind.STATEMENT:
            return self._statement(piece)
        return piece.data

    def _read_comments(self, data: bytes) -> None:
        head = data[: len(data) - len(data.lstrip())] + data.lstrip()
        self.facts.begun += len(_BEGUN.findall(head))
        self.facts.complete += len(_COMPLETE.findall(head))
        self.facts.is_cluster = self.facts.is_cluster or _CLUSTER.search(head) is not None
        for what, version in _VERSION.findall(head):
            major = major_of(version.decode("utf-8", "replace"))
            if what == b"from database":
                self.facts.server_major = max(major or 0, self.facts.server_major or 0) or None
            else:
                self.facts.client_major = max(major or 0, self.facts.client_major or 0) or None

    def _command(self, data: bytes) -> bytes:
        """Let psql's own commands pass that pg_dump writes; the words before one are comments and space."""
        start = data.rfind(b"\n", 0, data.rfind(b"\\")) + 1
        line = data[start:]
        if _RESTRICT.match(line):
            return data[:start]
        connects = _CONNECT.match(line) is not None
        if not (connects or _CLIENT_ENCODING.match(line)):
            shown = line.strip()[:60].decode("utf-8", "replace")
            raise IntegrityError(f"the dump holds psql's command {shown!r}, which no dump needs: refused")
        if connects:
            self._fresh = self.facts.connects = True
        key = self._adaptation.key
        if key is None:
            return data
        return data[:start] + f"\\unrestrict {key}\n".encode() + line + f"\n\\restrict {key}\n".encode()

    def _statement(self, piece: Piece) -> bytes:
        self.facts.statements += 1
        if piece.code[:6].upper() == b"INSERT":
            self._fresh = False
            return piece.data
        code = piece.code.decode("utf-8", "surrogateescape")
        word = code[:16].upper()
        if _PROGRAM.match(piece.code) or (word.startswith("COPY") and len(code) >= MOST_CODE_BYTES):
            raise IntegrityError("the dump holds a COPY that runs a program: refused")
        if found := _SESSION.match(piece.data.lstrip()):
            self.facts.named_roles.add(found[1].decode("utf-8", "surrogateescape").replace("''", "'"))
        if word.startswith("SET"):
            found = _ENCODING.search(piece.data)
            self.facts.encoding = found[1].decode("ascii", "replace") if found else self.facts.encoding
        if word.startswith(_STARTS):
            self._note_roles(code)
        if "TABLESPACE" in code.upper():
            self.facts.named_tablespaces |= {unquoted(a or b) for a, b in _SPACE.findall(code)}
        return self._adapted(piece.data, code)

    def _adapted(self, data: bytes, code: str) -> bytes:
        if found := _CREATE_SPACE.match(data.decode("utf-8", "surrogateescape").lstrip()):
            return self._space(found)
        if self._is_superuser(code) or _OBSOLETE.match(code):
            return b""
        for pattern, names in ((_CREATE_DATABASE, self.facts.makes), (_DROP_DATABASE, self.facts.drops)):
            if found := pattern.match(code):
                names.add(unquoted(found[1]))
        if _DROP_WITHOUT_IF.match(code):
            text = data.decode("utf-8", "surrogateescape")
            return _DROP_WITHOUT_IF.sub(r"DROP \1 IF EXISTS ", text, count=1).encode("utf-8", "surrogateescape")
        if self._fresh and _CLEANING.match(code):
            return b""  # a new database holds nothing that could be dropped
        if _CREATE.match(code):
            self._fresh = False
        return data

    def _is_superuser(self, code: str) -> bool:
        """Note a role that is made; say whether it is the one that is there already, or is to be dropped."""
        made, dropped = _CREATE_ROLE.match(code), _DROP_ROLE.match(code)
        if made:
            self.facts.made_roles.add(unquoted(made[1]))
        found = made or dropped
        return found is not None and unquoted(found[1]) == self._adaptation.superuser

    def _space(self, found: re.Match[str]) -> bytes:
        name = unquoted(found[2])
        self.facts.tablespaces.append(name)
        location = self._adaptation.locations.get(name, "")
        quoted = location.replace("'", "''")
        return f"\n{found[1]}'{quoted}';".encode("utf-8", "surrogateescape")

    def _note_roles(self, code: str) -> None:
        for pattern in _ROLES:
            if found := pattern.match(code):
                names = (unquoted(name) for name in _ALL_NAMES.findall(found[1]))
                self.facts.named_roles |= {name for name in names if name not in _NO_ROLES}


def unquoted(name: str) -> str:
    """Return a name as PostgreSQL understands it."""
    if name.startswith('"'):
        return name[1:-1].replace('""', '"')
    return name.lower()
