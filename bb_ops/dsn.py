"""Database addresses as people write them, turned into libpq parameters.

libpq refuses a URL whose password holds an unescaped ``@ / %``, and names part of the password while doing so.
We read such a URL the way its author meant it, and hand libpq keywords, never a URL.
"""

import re
from dataclasses import dataclass, field

_SCHEMES = re.compile(r"^(postgres|postgresql)(\+\w+)?://", re.ASCII)
_NAME = re.compile(r"\w+", re.ASCII)
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_KEYWORD = re.compile(r"\s*(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))", re.ASCII)


@dataclass(frozen=True)
class Dsn:
    """One database address: libpq parameters, with the password kept out of every printed form."""

    parameters: dict[str, str] = field(repr=False)
    password: str | None = field(repr=False)

    def __str__(self) -> str:
        """Say where the address points, without any secret."""
        host = self.parameters.get("host") or "local socket"
        return f"{self.parameters.get('user', '')}@{host}:{self.port}/{self.parameters.get('dbname', '')}"

    @property
    def port(self) -> str:
        """The port as written; libpq's default when there is none."""
        return self.parameters.get("port") or "5432"


def parse_dsn(text: str) -> Dsn:
    """Read a ``postgres://`` or ``postgresql://`` URL (SQLAlchemy's ``+driver`` included) or ``key=value`` pairs.

    Raises:
        ValueError: it is neither; the message holds no part of the text.
    """
    text = text.strip()
    scheme = _SCHEMES.match(text)
    if scheme is None:
        return _from_keywords(text)
    userinfo, location = _split_userinfo(text[scheme.end() :])
    location, _, query = location.partition("?")
    hosts, _, dbname = location.partition("/")
    parameters = _split_hosts(hosts)
    user, _, password = userinfo.partition(":")
    parameters |= {"user": _decode(user), "password": _decode(password), "dbname": _decode(dbname)}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if not _NAME.fullmatch(name):
            raise ValueError("what follows the ? is not name=value: write / and ? of a password as %2F and %3F")
        parameters[_decode(name)] = _decode(value)
    return _dsn(parameters)


def _split_userinfo(rest: str) -> tuple[str, str]:
    """Split at the last ``@`` before the query; a password may hold ``@``, ``/``, ``:`` and ``?`` unescaped."""
    before_query, question, _ = rest.partition("?")
    if "@" not in before_query and question and "@" in rest:
        userinfo, _, location = rest.rpartition("@")
        looks_like_query = re.match(r"[^/?]*/[^?]*\?", rest) or re.match(r"/?\?", rest)
        if not looks_like_query:
            return userinfo, location
    if "@" not in before_query:
        return "", rest
    userinfo, _, _ = before_query.rpartition("@")
    return userinfo, rest[len(userinfo) + 1 :]


def _split_hosts(text: str) -> dict[str, str]:
    hosts, ports = [], []
    for entry in text.split(",") if text else []:
        bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d*))?", entry)
        if bracketed:
            host, port = bracketed.group(1), bracketed.group(2) or ""
        else:
            host, _, port = entry.partition(":")
            if port and not port.isdigit():
                raise ValueError("the port is not a number")
        hosts.append(_decode(host))
        ports.append(port)
    found = {}
    if any(hosts):
        found["host"] = ",".join(hosts)
    if any(ports):
        found["port"] = ",".join(ports)
    return found


def _from_keywords(text: str) -> Dsn:
    parameters: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _KEYWORD.match(text, position)
        if match is None or match.end() == position:
            raise ValueError("it is neither a postgresql:// URL nor key=value pairs")
        value = match.group(2) if match.group(2) is not None else match.group(3)
        parameters[match.group(1)] = re.sub(r"\\(.)", r"\1", value)
        position = match.end() + (len(text[match.end() :]) - len(text[match.end() :].lstrip()))
    if not parameters:
        raise ValueError("it is empty")
    return _dsn(parameters)


def _dsn(parameters: dict[str, str]) -> Dsn:
    kept = {key: value for key, value in parameters.items() if value}
    password = kept.pop("password", None)
    return Dsn(kept, password)


def _decode(text: str) -> str:
    """Decode ``%XX`` runs that are UTF-8; leave a percent sign that begins no such run as it is."""

    def replace(match: re.Match[str]) -> str:
        raw = bytes.fromhex(match.group().replace("%", ""))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return match.group()

    return _PERCENT.sub(replace, text)
