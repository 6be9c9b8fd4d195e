"""Splits a script for psql into what psql sees in it, as it arrives: statements, rows of COPY, commands of its own.

It follows psql's own lexer (psqlscan.l) in what matters here: where strings, names and comments begin and end. Where a
function's body holds semicolons it cuts more often than psql does; the bytes and their order are the same.
"""

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from bb_ops.errors import IntegrityError

_TOKEN = re.compile(
    rb"""['";\\] | -- | /\* | (?<![A-Za-z0-9_$\x80-\xff])\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$""",
    re.VERBOSE,
)
_SIMPLE = re.compile(
    rb"""\s*[A-Za-z][^'";\\$/-]* (?: (?: '[^'\\]*' | "[^"]*" | -(?!-) | /(?!\*) ) [^'";\\$/-]* )* ;""",
    re.VERBOSE,
)
"""A whole statement that nothing in it makes hard to read: it is taken at once, which is ten times as fast.

Every repeated part begins with a character that the part before cannot hold, so that a failure costs no more than a
success. Possessive quantifiers would say that shorter, and are wrong in Python up to 3.11.4 (gh-106052).
"""
_QUOTED = re.compile(rb"""("[^"]*"?)|'[^']*'?""")
_COMMENT_EDGE = re.compile(rb"/\*|\*/")
_COPY = re.compile(rb"COPY\b", re.IGNORECASE)
_FROM_STDIN = re.compile(rb"\bFROM\s+STDIN\b", re.IGNORECASE)
_END_OF_ROWS = b"\\.\n", b"\\.\r\n"
_PLAIN_STRINGS_OFF = re.compile(rb"SET\s+standard_conforming_strings\s*(?:=|TO)\s*'?off", re.IGNORECASE)
_PLAIN_STRINGS_ON = re.compile(rb"SET\s+standard_conforming_strings\s*(?:=|TO)\s*'?on", re.IGNORECASE)
_ESCAPING_QUOTE = re.compile(rb"(?<![A-Za-z0-9_$\x80-\xff])[eE]$")
_INSERT = re.compile(rb"\s*INSERT\b", re.IGNORECASE)
_INSERT_BYTES = 256
MOST_CODE_BYTES = 1 << 20
"""How much of a statement outside of strings and comments is kept: more than the longest list of columns takes."""


class Kind(Enum):
    """What a piece of a script is."""

    STATEMENT = auto()
    COMMENT = auto()
    ROWS = auto()
    COMMAND = auto()


@dataclass(frozen=True)
class Piece:
    """One piece of a script.

    Attributes:
        data: Its bytes.
        code: Of a statement: its beginning, quoted strings replaced by ``''``, comments left out; names are kept.
    """

    kind: Kind
    data: bytes
    code: bytes = b""


@dataclass
class Splitter:
    """Takes a script piece by piece. Everything that is fed comes out again, in order."""

    _rest: bytearray = field(default_factory=bytearray)
    _statement: bytearray = field(default_factory=bytearray)
    _code: bytearray = field(default_factory=bytearray)
    _inside: bytes = b""
    _escaping: bool = False
    _depth: int = 0
    _rows: bool = False
    _plain_strings: bool = True

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Take the next bytes; yield what is whole."""
        self._rest += data
        end = self._rest.rfind(b"\n") + 1
        if end:
            lines = bytes(self._rest[:end])
            del self._rest[:end]
            yield from self._lines(lines)

    def finish(self) -> Iterator[Piece]:
        """Yield the rest.

        Raises:
            IntegrityError: the script ends inside something.
        """
        last = bytes(self._rest)
        self._rest.clear()
        yield from self._lines(last)
        if self._rows or self._inside or self._code.strip():
            where = "the rows of a table" if self._rows else "a statement"
            raise IntegrityError(f"the script ends inside {where}: it is cut short")
        if self._statement:
            yield Piece(Kind.COMMENT, bytes(self._statement))
            self._statement.clear()

    def _lines(self, data: bytes) -> Iterator[Piece]:
        at = 0
        while at < len(data):
            if self._rows:
                end = self._end_of_rows(data, at)
                yield Piece(Kind.ROWS, data[at:end])
                at = end
                continue
            if self._inside:
                at = self._to_end_of_inside(data, at)
                continue
            if not self._statement and (simple := _SIMPLE.match(data, at)):
                self._statement += simple.group()
                kept = _INSERT_BYTES if _INSERT.match(simple.group()) else MOST_CODE_BYTES
                self._code += _QUOTED.sub(_without_string, simple.group()[:kept])
                yield from self._end_statement()
                at = simple.end()
                if self._rows:
                    at = yield from self._begin_rows(data, at)
                continue
            found = _TOKEN.search(data, at)
            if found is None:
                self._take(data[at:], code=True)
                return
            self._take(data[at : found.start()], code=True)
            at = yield from self._token(data, found)

    def _token(self, data: bytes, found: re.Match[bytes]) -> Generator[Piece, None, int]:
        """Take what begins with a token; return where to go on."""
        token, after = found.group(), found.end()
        if token == b";":
            self._take(token, code=True)
            yield from self._end_statement()
            return (yield from self._begin_rows(data, after)) if self._rows else after
        if token == b"--":
            return (yield from self._line_comment(data, found.start()))
        if token == b"\\":
            end = data.find(b"\n", after) + 1 or len(data)
            yield Piece(Kind.COMMAND, bytes(self._statement) + data[found.start() : end])
            self._statement.clear()
            self._code.clear()
            return end
        self._inside, self._depth = token, 1
        if token == b"'":
            self._escaping = not self._plain_strings or _ESCAPING_QUOTE.search(self._code[-2:]) is not None
        self._take(token, code=token == b'"')
        if token == b"'" or token.startswith(b"$"):
            self._note(b"''")
        return after

    def _begin_rows(self, data: bytes, at: int) -> Generator[Piece, None, int]:
        """Pass to the next line, with which rows begin."""
        end = data.find(b"\n", at) + 1 or len(data)
        if data[at:end].strip():
            raise IntegrityError("the script has text behind a COPY, where rows must begin")
        yield Piece(Kind.ROWS, data[at:end])
        return end

    def _end_of_rows(self, data: bytes, at: int) -> int:
        """Return where the rows in ``data``, which are whole lines, end; note whether that is their end."""
        if data.startswith(_END_OF_ROWS, at):
            found = at
        else:
            found = min(data.find(b"\n" + mark, at) + 1 or len(data) for mark in _END_OF_ROWS)
        self._rows = found == len(data)
        return found if self._rows else data.index(b"\n", found) + 1

    def _line_comment(self, data: bytes, start: int) -> Generator[Piece, None, int]:
        end = data.find(b"\n", start) + 1 or len(data)
        self._take(data[start:end])
        self._note(b"\n")
        if not self._code.strip():
            self._code.clear()
            yield Piece(Kind.COMMENT, bytes(self._statement))
            self._statement.clear()
        return end

    def _to_end_of_inside(self, data: bytes, at: int) -> int:
        """Pass over a string, a quoted name or a block comment; return where its part in ``data`` ends."""
        if self._inside == b"/*":
            edge = _COMMENT_EDGE.search(data, at)
            end = edge.end() if edge else len(data)
            if edge:
                self._depth += 1 if edge.group() == b"/*" else -1
                self._inside = self._inside if self._depth else b""
                self._note(b"" if self._inside else b" ")
            self._take(data[at:end])
            return end
        if self._inside == b"'" and self._escaping:
            return self._to_end_of_escaping(data, at)
        found = data.find(self._inside, at)
        end = found + len(self._inside) if found >= 0 else len(data)
        self._take(data[at:end], code=self._inside == b'"')
        if found >= 0:
            self._inside = b""
        return end

    def _to_end_of_escaping(self, data: bytes, at: int) -> int:
        end = at
        while end < len(data):
            byte = data[end : end + 1]
            end += 2 if byte == b"\\" else 1
            if byte == b"'":
                self._inside = b""
                break
        self._take(data[at:end])
        return end

    def _end_statement(self) -> Iterator[Piece]:
        code = bytes(self._code).strip()
        self._rows = _COPY.match(code) is not None and _FROM_STDIN.search(code) is not None
        if _PLAIN_STRINGS_OFF.match(code) or (b"standard_conforming_strings" in code and b"''" in code):
            self._plain_strings = _PLAIN_STRINGS_ON.match(bytes(self._statement).strip()) is not None
        elif _PLAIN_STRINGS_ON.match(code):
            self._plain_strings = True
        yield Piece(Kind.STATEMENT, bytes(self._statement), code)
        self._statement.clear()
        self._code.clear()

    def _take(self, data: bytes, *, code: bool = False) -> None:
        self._statement += data
        if code:
            self._note(data)

    def _note(self, data: bytes) -> None:
        if len(self._code) < MOST_CODE_BYTES:
            self._code += data


def _without_string(found: re.Match[bytes]) -> bytes:
    """Keep a quoted name, replace a string."""
    return found[1] or b"''"
