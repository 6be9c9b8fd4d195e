"""Database addresses as people write them."""

from urllib.parse import quote

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.dsn import Dsn, parse_dsn

SECRET = "kanarienvogel"

# address, libpq parameters, password
FORMS: dict[str, tuple[str, dict[str, str], str | None]] = {
    "plain": (
        "postgresql://app:secret@db.example:5433/booking",
        {"user": "app", "host": "db.example", "port": "5433", "dbname": "booking"},
        "secret",
    ),
    "postgres scheme": (
        "postgres://app:secret@db/booking",
        {"user": "app", "host": "db", "dbname": "booking"},
        "secret",
    ),
    "SQLAlchemy driver": (
        "postgresql+psycopg2://app:secret@db/booking",
        {"user": "app", "host": "db", "dbname": "booking"},
        "secret",
    ),
    "no port": ("postgresql://app@db/booking", {"user": "app", "host": "db", "dbname": "booking"}, None),
    "no database": ("postgresql://app@db", {"user": "app", "host": "db"}, None),
    "no user": ("postgresql://db/booking", {"host": "db", "dbname": "booking"}, None),
    "nothing but the scheme": ("postgresql://", {}, None),
    "empty password": ("postgresql://app:@db/booking", {"user": "app", "host": "db", "dbname": "booking"}, None),
    "parameters": (
        "postgresql://app:secret@db/booking?sslmode=verify-full&application_name=a%20b",
        {"user": "app", "host": "db", "dbname": "booking", "sslmode": "verify-full", "application_name": "a b"},
        "secret",
    ),
    "password as parameter": (
        "postgresql://db/booking?user=app&password=se%40cret",
        {"host": "db", "dbname": "booking", "user": "app"},
        "se@cret",
    ),
    "at sign in a parameter": (
        "postgresql://db/booking?application_name=a@b",
        {"host": "db", "dbname": "booking", "application_name": "a@b"},
        None,
    ),
    "at sign in a parameter behind a user": (
        "postgresql://app:secret@db/booking?application_name=a@b",
        {"user": "app", "host": "db", "dbname": "booking", "application_name": "a@b"},
        "secret",
    ),
    "percent-encoded password": (
        "postgresql://app:%40%3A%2F%25%3F%23%20@db/booking",
        {"user": "app", "host": "db", "dbname": "booking"},
        "@:/%?# ",
    ),
    "raw @ in the password": ("postgresql://app:a@b@db/x", {"user": "app", "host": "db", "dbname": "x"}, "a@b"),
    "raw : in the password": ("postgresql://app:a:b@db/x", {"user": "app", "host": "db", "dbname": "x"}, "a:b"),
    "raw / in the password": ("postgresql://app:a/b@db/x", {"user": "app", "host": "db", "dbname": "x"}, "a/b"),
    "raw % in the password": ("postgresql://app:100%@db/x", {"user": "app", "host": "db", "dbname": "x"}, "100%"),
    "raw % before two letters": ("postgresql://app:a%zzb@db/x", {"user": "app", "host": "db", "dbname": "x"}, "a%zzb"),
    "raw % before hexadecimal that is no UTF-8": (
        "postgresql://app:a%ffb@db/x",
        {"user": "app", "host": "db", "dbname": "x"},
        "a%ffb",
    ),
    "raw # in the password": ("postgresql://app:a#b@db/x", {"user": "app", "host": "db", "dbname": "x"}, "a#b"),
    "raw ? in the password": ("postgresql://app:a?b@db/x", {"user": "app", "host": "db", "dbname": "x"}, "a?b"),
    "everything raw at once": (
        "postgresql://app:p@ss:w/rd%!@db:5433/x?sslmode=require",
        {"user": "app", "host": "db", "port": "5433", "dbname": "x", "sslmode": "require"},
        "p@ss:w/rd%!",
    ),
    "raw unicode password": (
        "postgresql://app:pässwörd→€@db/x",
        {"user": "app", "host": "db", "dbname": "x"},
        "pässwörd→€",
    ),
    "encoded unicode password": (
        "postgresql://app:p%C3%A4ss%E2%82%AC@db/x",
        {"user": "app", "host": "db", "dbname": "x"},
        "päss€",
    ),
    "unicode user and database": (
        "postgresql://b%C3%BCro@db/%D0%B1%D0%B0%D0%B7%D0%B0",
        {"user": "büro", "host": "db", "dbname": "база"},
        None,
    ),
    "user with an at sign": (
        "postgresql://app%40server:secret@db/x",
        {"user": "app@server", "host": "db", "dbname": "x"},
        "secret",
    ),
    "IPv6": (
        "postgresql://app:secret@[::1]:5433/x",
        {"user": "app", "host": "::1", "port": "5433", "dbname": "x"},
        "secret",
    ),
    "IPv6 without port": (
        "postgresql://app@[2001:db8::7]/x",
        {"user": "app", "host": "2001:db8::7", "dbname": "x"},
        None,
    ),
    "several hosts": (
        "postgresql://app:secret@a:5433,b:5434,[::1]:5435/x?target_session_attrs=primary",
        {
            "user": "app",
            "host": "a,b,::1",
            "port": "5433,5434,5435",
            "dbname": "x",
            "target_session_attrs": "primary",
        },
        "secret",
    ),
    "several hosts, one port": (
        "postgresql://app@a,b:5434/x",
        {"user": "app", "host": "a,b", "port": ",5434", "dbname": "x"},
        None,
    ),
    "socket as parameter": (
        "postgresql://app@/x?host=/run/postgresql&port=5433",
        {"user": "app", "dbname": "x", "host": "/run/postgresql", "port": "5433"},
        None,
    ),
    "socket in the host's place": (
        "postgresql://app:secret@%2Frun%2Fpostgresql:5433/x",
        {"user": "app", "host": "/run/postgresql", "port": "5433", "dbname": "x"},
        "secret",
    ),
    "nothing but a database": ("postgresql:///x", {"dbname": "x"}, None),
    "white space around": ("  postgresql://app@db/x\n", {"user": "app", "host": "db", "dbname": "x"}, None),
    "keywords": (
        "host=db port=5433 user=app password=secret dbname=x",
        {"host": "db", "port": "5433", "user": "app", "dbname": "x"},
        "secret",
    ),
    "keywords, quoted": (
        r"host=db password='it\'s a \\ secret' dbname = 'my db'",
        {"host": "db", "dbname": "my db"},
        r"it's a \ secret",
    ),
    "keywords, escaped": (r"host=db password=a\ b\'c", {"host": "db"}, "a b'c"),
    "keywords, empty quoted": ("host=db password='' user=app", {"host": "db", "user": "app"}, None),
    "keywords, a URL as password": ("host=db password=postgresql://x:y@z", {"host": "db"}, "postgresql://x:y@z"),
}

WRONG = {
    "empty": "",
    "blank": "  \n",
    "another database": f"mysql://app:{SECRET}@db/x",
    "no address": f"just words {SECRET}",
    "a port that is no number": f"postgresql://app:{SECRET}@db:fifty/x",
    "a password that looks like address and parameters": f"postgresql://app:12/{SECRET}?x@db/y",
    "a parameter without a name": f"postgresql://app:{SECRET}@db/x?=1",
    "keywords and rubbish": f"host=db password={SECRET} rubbish",
    "an open quote": f"host=db password='{SECRET}",
    "a keyword without name": f"=db password={SECRET}",
}


@pytest.mark.parametrize(("address", "parameters", "password"), FORMS.values(), ids=FORMS.keys())
def test_every_form_is_read_as_its_author_meant_it(
    address: str, parameters: dict[str, str], password: str | None
) -> None:
    dsn = parse_dsn(address)
    assert (dsn.parameters, dsn.password) == (parameters, password)


@pytest.mark.parametrize(("address", "parameters", "password"), FORMS.values(), ids=FORMS.keys())
def test_libpq_accepts_what_was_read(address: str, parameters: dict[str, str], password: str | None) -> None:
    dsn = parse_dsn(address)
    conninfo = psycopg.conninfo.make_conninfo("", **dsn.parameters, **({"password": dsn.password} if password else {}))
    assert psycopg.conninfo.conninfo_to_dict(conninfo) == parameters | ({"password": password} if password else {})


@pytest.mark.parametrize("address", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_address_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        parse_dsn(address)
    assert SECRET not in f"{refused.value!r} {refused.value.__cause__!r}"


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://app:{SECRET}@db/x",
        f"postgresql://app:a@{SECRET}@db/x",
        f"postgresql://app:a/{SECRET}@db/x",
        f"postgresql://app:a:{SECRET}@db/x",
        f"postgresql://app:a%{SECRET}@db/x",
        f"postgresql://app:a?{SECRET}@db/x",
        f"postgresql://app:a#{SECRET}@db/x",
        f"postgresql://app@db/x?password={SECRET}",
        f"postgresql://app:{SECRET}@a,b/x",
        f"postgresql://app:{SECRET}@/x?host=/run",
        f"host=db password={SECRET}",
        f"host=db password='a {SECRET}'",
    ],
)
def test_no_printed_form_holds_the_password(address: str) -> None:
    dsn = parse_dsn(address)
    assert dsn.password is not None
    assert SECRET in dsn.password
    assert SECRET not in f"{dsn} {dsn!r} {[dsn]} {(dsn,)!s}"


@given(password=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_password_survives_being_percent_encoded(password: str) -> None:
    dsn = parse_dsn(f"postgresql://app:{quote(password, safe='')}@db:5433/x?sslmode=require")
    assert dsn.password == password
    assert dsn.parameters == {"user": "app", "host": "db", "port": "5433", "dbname": "x", "sslmode": "require"}


@given(
    user=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    dbname=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
)
def test_any_user_and_database_survive_being_percent_encoded(user: str, dbname: str) -> None:
    dsn = parse_dsn(f"postgresql://{quote(user, safe='')}:x@db/{quote(dbname, safe='')}")
    assert (dsn.parameters["user"], dsn.parameters["dbname"]) == (user, dbname)


@given(password=st.text(st.sampled_from("ab@:/%'\" \\=ä"), min_size=1))
def test_any_password_survives_in_keyword_form(password: str) -> None:
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    assert parse_dsn(f"host=db password='{quoted}' user=app") == Dsn({"host": "db", "user": "app"}, password)


@given(text=st.text(max_size=60))
def test_whatever_is_given_either_reads_or_is_a_value_error(text: str) -> None:
    for address in (text, f"postgresql://{text}", f"host={text}"):
        try:
            dsn = parse_dsn(address)
        except ValueError:
            continue
        assert isinstance(str(dsn), str)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://app:secret@db:5433/x", "app@db:5433/x"),
        ("postgresql://app:secret@db/x", "app@db:5432/x"),
        ("postgresql://app@/x?host=/run/postgresql", "app@/run/postgresql:5432/x"),
        ("postgresql:///x", "@local socket:5432/x"),
    ],
)
def test_it_says_where_it_points(address: str, said: str) -> None:
    assert str(parse_dsn(address)) == said
