"""What content is, what a dump's script may hold, and what a tar may hold: decided without any program."""

import io
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bb_ops.errors import IntegrityError
from bb_ops.postgres.archive_header import Origin, read_archive_header
from bb_ops.postgres.sql_script import Kind, Splitter
from bb_ops.recovery.foreign.base import role_of
from bb_ops.recovery.foreign.dump import knows_restrict
from bb_ops.recovery.foreign.dump_script import Adaptation, DumpScript, Facts
from bb_ops.recovery.foreign.source import Form, detect, is_place, named_backup, refusal
from bb_ops.recovery.foreign.tar_survey import Survey, survey_tar, without_remarks

HEADER = b"--\n-- PostgreSQL database dump\n--\n\n\\restrict abc\n\n-- Dumped from database version 15.18 (Debian)\n"
TRAILER = b"--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n\n"
BODY = (
    b"SET client_encoding = 'UTF8';\nSET SESSION AUTHORIZATION 'it''s';\nSET default_tablespace = far;\n"
    b"CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_$ SELECT ';' || '\\! x' $_$;\n"
    b"/* \\! a /* nested ; */ ' */ CREATE TABLE t (a text); -- ' \\! b\n"
    b"GRANT ALL ON t TO \"'it' is\";\n"
    b'ALTER TABLE t OWNER TO "Odd; ""one""";\nGRANT SELECT ON TABLE t TO app, reader WITH GRANT OPTION;\n'
    b"REVOKE ALL ON TABLE t FROM PUBLIC;\nCOMMENT ON TABLE t IS E'it\\'s \\\\! c';\n"
    b"COPY t (a) FROM stdin;\n\\! not a command;\n\\\\.\n'\n\\.\n\nINSERT INTO t VALUES ('\\! d', 'x;''y');\n"
)
SCRIPT = HEADER + BODY + TRAILER
ARCHIVE_15 = bytes.fromhex(
    "5047444d5001 0e00 0408 01 01010000 00 0013000000 002c000000 0016000000 0018000000 000a000000 007e000000 0000000000"
    "00040000 0073686f70 000500000031352e3138 000500000031352e3138"
)


def judged(script: bytes, size: int = 1 << 20, key: str | None = None) -> tuple[bytes, Facts]:
    judge = DumpScript(Adaptation("postgres", key, {"far": "/new/it's"}))
    out = [piece for at in range(0, len(script), size) for piece in judge.feed(script[at : at + size])]
    return b"".join([*out, *judge.finish()]), judge.facts


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (b"PGDMP\x01\x0e\x00", Form.CUSTOM),
        (b"\x1f\x8b\x08\x00", Form.GZIP),
        (b"\x28\xb5\x2f\xfd", Form.ZSTD),
        (b"age-encryption.org/v1\n", Form.AGE),
        (bytes(257) + b"ustar\x0000", Form.TAR),
        (HEADER, Form.SCRIPT),
        (b"--\r\n-- PostgreSQL database cluster dump\r\n--\r\n", Form.SCRIPT),
        (b"\xef\xbb\xbf--\n-- PostgreSQL database dump\n", Form.SCRIPT),
        (b"SELECT 1; -- PostgreSQL database dump\n", None),
        (b"", None),
        (b"\x89PNG", None),
    ],
)
def test_content_is_known_by_its_first_bytes(head: bytes, form: Form | None) -> None:
    assert detect(head) == form


def test_what_is_unknown_is_shown_by_its_bytes() -> None:
    assert "starts with 89 50 4e 47" in str(refusal(b"\x89PNG\r\n", "x"))
    assert refusal(b"", "x").exit_code == 5


def test_an_address_of_a_backup_is_told_from_an_id() -> None:
    backup = "20261124T020000Z-full-1f3a9c0e"
    for tail in ("", "/", "/COMMIT.json"):
        found = named_backup(f"s3://bucket/some/prefix/main/71234/base/{backup}{tail}")
        assert found == ("s3://bucket/some/prefix", "main", "71234", backup)
    assert named_backup(f"/srv/main/71234/base/{backup}/base.0000.tar.zst.age") is None
    assert named_backup("/srv/main/71234/base/other") is None
    assert [is_place(word) for word in ("latest", backup, "./latest", "s3://b/k")] == [False, False, True, True]


@given(st.integers(1, 200))
def test_a_script_is_judged_alike_however_it_arrives(size: int) -> None:
    out, facts = judged(SCRIPT, size)
    assert (out, facts) == judged(SCRIPT)
    assert out == SCRIPT.replace(b"\\restrict abc\n", b"").replace(b"\\unrestrict abc\n", b"")
    assert facts.roles == ["'it' is", 'Odd; "one"', "app", "it's", "reader"]
    assert (facts.missing_tablespaces, facts.server_major, facts.makes) == (["far"], 15, set())


@given(st.binary(max_size=300), st.integers(1, 50))
def test_a_splitter_loses_nothing(data: bytes, size: int) -> None:
    splitter, out = Splitter(), b""
    try:
        for at in range(0, len(data), size):
            out += b"".join(piece.data for piece in splitter.feed(data[at : at + size]))
        out += b"".join(piece.data for piece in splitter.finish())
    except IntegrityError:
        assert data.startswith(out)
    else:
        assert out == data


@example(["'", ";\n"])
@example(['"', ";\n", "a "])
@given(st.lists(st.sampled_from(["a ", "'", '"', "''", "x''y", "-", "/", "*", "$$", "\\", "E'", ";\n", "\n", "1"])))
def test_the_quick_way_sees_what_the_thorough_one_sees(tokens: list[str]) -> None:
    def seen(start: bytes) -> list[tuple[Kind, bytes]]:
        splitter, found = Splitter(), list[tuple[Kind, bytes]]()
        pieces = splitter.feed(start + b"SELECT " + "".join(tokens).encode() + b"\n")
        found += [(piece.kind, piece.code) for piece in pieces]
        return found

    assert seen(b"/**/ ") == seen(b"")


@pytest.mark.parametrize(
    "words",
    [
        b"\\! id\n",
        b"SELECT 1 \\gexec\n",
        b"SELECT 'a' \\g |id\n",
        b"\\i /etc/passwd\n",
        b"\\copy t from program 'id'\n",
        b"  \\o |id\n",
        b"\\connect `id`\n",
        b"\\connect db user host\n",
        b"\\connect postgresql://elsewhere/\n",
        b'\\connect "host=elsewhere"\n',
        b"\\connect -reuse-previous=on \"dbname='x' host='y'\"\n",
        b"/* ' */ \\! id\n",
        b"SELECT $a$ ' $a$; \\! id\n",
        b"SELECT a$b$ FROM t; \\! id $b$\n",
        b"COPY t FROM PROGRAM 'id';\n",
        b"COPY t FROM/**/PROGRAM 'id';\n",
        b"COPY t (" + b", ".join(b'"%060d"' % n for n in range(1600)) + b") FROM PROGRAM 'id';\n",
        b"copy (SELECT 1) TO -- x\n program 'id';\n",
        b"SET standard_conforming_strings = off;\nSELECT 'a\\'; \\! id\n",
        b"SELECT E'\\\\'; \\! id\n",
    ],
)
def test_what_could_run_a_program_is_refused(words: bytes) -> None:
    with pytest.raises(IntegrityError):
        judged(HEADER + words + BODY + TRAILER)


@pytest.mark.parametrize("end", [len(HEADER), len(SCRIPT) - len(TRAILER), SCRIPT.index(b"not a command"), -40])
def test_a_script_without_its_end_is_cut_short(end: int) -> None:
    with pytest.raises(IntegrityError, match="cut short"):
        judged(SCRIPT[:end])


def test_psql_is_let_out_of_its_restriction_to_connect_alone() -> None:
    out, facts = judged(HEADER + b"CREATE DATABASE shop;\n\\connect shop\n" + TRAILER, key="K")
    assert b"\\unrestrict K\n\\connect shop\n\n\\restrict K\n" in out
    assert (facts.makes, facts.connects) == ({"shop"}, True)


def test_a_script_is_adapted_to_a_new_cluster() -> None:
    script = (
        b"CREATE ROLE postgres;\nCREATE ROLE app;\nDROP ROLE old;\nDROP DATABASE shop;\nDROP TABLE t;\n"
        b"ALTER TABLE t DROP CONSTRAINT c;\nCREATE TABLESPACE far OWNER app LOCATION '/old';\nCREATE TABLE t ();\n"
        b"DROP TABLE t;\nSET default_with_oids = false;\n"
    )
    out, facts = judged(HEADER + script + TRAILER)
    statements = [line for line in out.decode().splitlines() if line.endswith(";")]
    assert statements == [
        "CREATE ROLE app;",
        "DROP ROLE IF EXISTS old;",
        "DROP DATABASE IF EXISTS shop;",
        "CREATE TABLESPACE far OWNER app LOCATION '/new/it''s';",
        "CREATE TABLE t ();",
        "DROP TABLE t;",
    ]
    assert (facts.tablespaces, facts.drops) == (["far"], {"shop"})


def test_the_rows_of_a_copy_are_rows() -> None:
    pieces = [(piece.kind, piece.data) for piece in Splitter().feed(b"COPY t FROM stdin;\n\\.\n\\x\n")]
    assert pieces[-1] == (Kind.COMMAND, b"\\x\n")


def test_a_wide_table_has_rows_too() -> None:
    columns = b", ".join(b'"%060d"' % number for number in range(1600))
    judged(HEADER + b"COPY t (" + columns + b") FROM stdin;\n\\! a row\n\\.\n" + TRAILER)


def test_an_archive_says_where_it_comes_from() -> None:
    assert read_archive_header(ARCHIVE_15) == Origin("shop", 15, 15)
    for end in range(5, len(ARCHIVE_15)):
        with pytest.raises(IntegrityError):
            read_archive_header(ARCHIVE_15[:end])


def test_psql_knows_restrict_since_august_2025() -> None:
    known = {
        "15.14": True,
        "15.13": False,
        "17.6 (x)": True,
        "16.9": False,
        "18.1": True,
        "12.22": False,
        "19beta1": True,
    }
    assert {version: knows_restrict(f"psql (PostgreSQL) {version}") for version in known} == known


def archive(*members: tuple[str, bytes], end: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, 3 if kind == tarfile.REGTYPE else 0
            out.addfile(info, io.BytesIO(b"15\n"))
    data = buffer.getvalue()
    return data if end else data[: 1024 * len(members)]


def test_a_tar_is_surveyed_whole() -> None:
    survey = survey_tar([archive(("./base/1", tarfile.REGTYPE), ("PG_VERSION", tarfile.REGTYPE))], "x")
    assert (survey.files, survey.kept) == ({"base/1": 3, "PG_VERSION": 3}, {"PG_VERSION": b"15\n"})
    with pytest.raises(IntegrityError, match="cut short"):
        survey_tar([archive(("a", tarfile.REGTYPE), end=False)], "x")
    for second in (("a", tarfile.REGTYPE), ("a/b", tarfile.REGTYPE), ("a", tarfile.DIRTYPE)):
        with pytest.raises(IntegrityError, match="refused"):
            survey_tar([archive(("a", tarfile.REGTYPE), second)], "x")


def test_remarks_of_other_tars_are_passed_over_unless_they_rename() -> None:
    def made(name: str) -> bytes:
        info, buffer = tarfile.TarInfo(name), io.BytesIO()
        info.size, info.mtime = 3, 1.5  # as a file's own is, which makes a header
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as out:
            out.addfile(info, io.BytesIO(b"15\n"))
        return buffer.getvalue()

    assert survey_tar([made("PG_VERSION")], "x").kept == {"PG_VERSION": b"15\n"}
    plain = b"".join(without_remarks([made("PG_VERSION")]))
    assert (plain[:10], plain[512:515], len(plain)) == (b"PG_VERSION", b"15\n", 2048)
    with pytest.raises(IntegrityError, match="renames"):
        survey_tar([made("ü" * 150)], "x")


@pytest.mark.parametrize(
    ("files", "name", "role"),
    [
        (["toc.dat", "1.dat"], "x", "dump"),
        (["PG_VERSION", "global/pg_control"], "x", "base"),
        (["000000010000000000000002", "archive_status/000000010000000000000002.done"], "x", "wal"),
        (["PG_15_202209061/5/16390"], "16385.tar.gz", "16385"),
        (["PG_15_202209061/5/16390"], "space.tar", None),
        (["readme"], "16385", None),
    ],
)
def test_an_archive_of_a_base_backup_is_known_by_what_is_in_it(files: list[str], name: str, role: str | None) -> None:
    survey = Survey()
    for file in files:
        survey.files[file] = 1
        survey.folders |= {file.rpartition("/")[0]} - {""}
    assert role_of(survey, name) == role
