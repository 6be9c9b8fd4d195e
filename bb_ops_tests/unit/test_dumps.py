"""Rules of dumps: which programs, what counts as complete, what is compared, and the level that does not apply."""

from pathlib import Path

import pytest

from bb_ops import process
from bb_ops.engines.logical import refuse_smaller
from bb_ops.errors import BackupFailed, IntegrityError, ProgramFailed, ServerUnusable
from bb_ops.findings import Outcome, worst
from bb_ops.postgres import dump
from bb_ops.postgres.programs import Programs, choose_clients
from bb_ops.recovery.ladder import Climb
from bb_ops.recovery.load import comparable_globals, local_globals
from bb_ops.recovery.target import Target
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import LogicalCommit, NamedTablespace
from bb_ops.repository.reports import Level
from bb_ops_tests.unit.test_commits import commit

SCRIPT = b"""\\restrict k
COPY public.a (x, y) FROM stdin;
1\tCOPY public.b (x) FROM stdin;
2\t\\\\.

\\.


COPY "public"."b ""c"" d" (x) FROM stdin;
\\.
"""
CONTENTS = b""";
; Archive created at 2026-11-24 17:38:09 UTC
;
2; 3079 16390 EXTENSION - pg_trgm
225; 1259 16500 TABLE public visits postgres
3344; 0 16500 TABLE DATA public visits postgres
3345; 0 0 SEQUENCE SET public ticket postgres
3346; 0 4711 BLOB - 4711 postgres
3347; 0 0 COMMENT - LARGE OBJECT 4711 postgres
"""


def installed(*majors: int) -> list[Programs]:
    """Return installations in an order of preference."""
    return [Programs(Path(f"/opt/{number}/{major}"), major) for number, major in enumerate(majors)]


@pytest.mark.parametrize(
    ("server", "majors", "chosen"),
    [(15, (18, 15, 17), 15), (16, (18, 15, 17), 17), (18, (15, 18, 18), 18), (15, (17, 18), 17)],
)
def test_the_servers_own_programs_are_chosen_else_the_nearest_newer(
    server: int, majors: tuple[int, ...], chosen: int
) -> None:
    found = installed(*majors)
    assert choose_clients(server, found) == next(entry for entry in found if entry.major == chosen)


@pytest.mark.parametrize("majors", [(15, 17), ()])
def test_programs_older_than_the_server_are_refused(majors: tuple[int, ...]) -> None:
    with pytest.raises(ServerUnusable, match="install postgresql-client-18") as refused:
        choose_clients(18, installed(*majors))
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


def test_a_dump_without_the_rows_of_a_table_is_refused() -> None:
    refuse_smaller("main", {16500: "public.visits"}, CONTENTS)
    with pytest.raises(BackupFailed, match=r"no rows of 1 of its tables \(public.gone\)"):
        refuse_smaller("main", {16500: "public.visits", 16501: "public.gone"}, CONTENTS)


def test_definitions_are_compared_without_numbers_and_rows() -> None:
    other = CONTENTS.replace(b"16500", b"99").replace(b"225;", b"7;").replace(b"4711", b"1")
    assert dump.definitions(dump.entries(CONTENTS)) == dump.definitions(dump.entries(other))
    assert dict(dump.definitions(dump.entries(CONTENTS))) == {
        "EXTENSION - pg_trgm": 1,
        "TABLE public visits postgres": 1,
    }


def test_only_what_always_differs_is_taken_out_of_a_script() -> None:
    script = b"\\restrict abc\n-- Dumped by pg_dump version 18.1\n-- Name: t\nSELECT '-- Dumped';\n\\unrestrict abc\n"
    assert dump.stable_script(script) == b"-- Name: t\nSELECT '-- Dumped';\n"


@pytest.mark.parametrize("superuser", ["postgres", "The 'Boss' \"x\""])
def test_globals_are_adapted_to_the_new_cluster_and_nothing_else_changes(superuser: str) -> None:
    quoted = superuser if superuser == "postgres" else '"' + superuser.replace('"', '""') + '"'
    script = f"CREATE ROLE {quoted};\nALTER ROLE {quoted} WITH SUPERUSER;\nCREATE ROLE postgres2;\n"
    script += "CREATE TABLESPACE fast OWNER a LOCATION '/old/it''s';\n"
    made = _with_tablespaces(superuser, NamedTablespace(oid=7, name="fast", location="/old/it's"))
    target = Target(Path("/new"), Path("/new's.tablespaces"), None)
    assert local_globals(script.encode(), made, target) == (
        f"ALTER ROLE {quoted} WITH SUPERUSER;\nCREATE ROLE postgres2;\n"
        "CREATE TABLESPACE fast OWNER a LOCATION '/new''s.tablespaces/7';\n"
    )
    assert b"CREATE TABLESPACE" not in b"".join(comparable_globals(script.encode()))


def test_globals_that_contradict_the_commit_are_refused() -> None:
    target = Target(Path("/new"), Path("/new.tablespaces"), None)
    space = NamedTablespace(oid=7, name="fast", location="/old")
    with pytest.raises(IntegrityError, match="do not make tablespace fast"):
        local_globals(b"", _with_tablespaces("postgres", space), target)
    with pytest.raises(IntegrityError, match="more tablespaces"):
        local_globals(b"CREATE TABLESPACE a OWNER b LOCATION '/c';", _with_tablespaces("postgres"), target)


def test_a_level_that_does_not_apply_is_neither_reached_nor_in_the_way() -> None:
    climb = Climb(Level.L4)
    for level in (Level.L0, Level.L1, Level.L2):
        climb.measure(level, lambda: (Outcome.PASS, ""))
    climb.step_over(Level.L3, "no WAL")
    assert climb.reached == Level.L2
    assert climb.outcome == Outcome.NOT_MEASURED
    climb.measure(Level.L4, lambda: (Outcome.PASS, ""))
    assert (climb.reached, climb.outcome) == (Level.L4, Outcome.PASS)
    assert [step.outcome for step in climb.close()][3] == Outcome.NOT_APPLICABLE


def test_what_does_not_apply_counts_neither_for_nor_against() -> None:
    assert worst([Outcome.NOT_APPLICABLE, Outcome.PASS]) == Outcome.PASS
    assert worst([Outcome.NOT_APPLICABLE, Outcome.FAIL]) == Outcome.FAIL
    assert worst([Outcome.NOT_APPLICABLE]) == Outcome.NOT_MEASURED


def test_output_is_read_piece_by_piece_and_a_bad_end_is_an_error() -> None:
    with process.reading(["/bin/sh", "-c", "head -c 1000000 /dev/zero"], timeout_s=30) as pieces:
        assert sum(map(len, pieces)) == 1_000_000
    with (
        pytest.raises(ProgramFailed, match="sh ended with code 3: no more"),
        process.reading(["/bin/sh", "-c", "echo some; echo no more >&2; exit 3"], timeout_s=30) as pieces,
    ):
        assert b"".join(pieces) == b"some\n"


def test_a_program_that_runs_over_its_time_is_stopped() -> None:
    with (
        pytest.raises(ProgramFailed, match="did not finish within"),
        process.reading(["/bin/sleep", "30"], timeout_s=0.2) as pieces,
    ):
        list(pieces)


def test_a_reader_that_leaves_early_leaves_no_program_behind() -> None:
    with process.reading(["/bin/sh", "-c", "echo $$; exec sleep 60"], timeout_s=30) as pieces:
        pid = int(next(pieces))
    assert process.start_ticks(pid) is None


def test_a_fed_program_gets_everything_and_its_output_is_kept() -> None:
    with process.feeding(["/usr/bin/wc", "-c"], timeout_s=30) as fed:
        for _ in range(100):
            fed.write(bytes(100_000))
    assert int(fed.stdout) == 10_000_000


def test_a_fed_program_that_ends_early_is_an_error_unless_it_may() -> None:
    with process.feeding(["/usr/bin/head", "-c", "3"], timeout_s=30, may_end_early=True) as fed:
        for _ in range(50):
            fed.write(b"x" * 100_000)
    assert fed.stdout == b"xxx"
    with (
        pytest.raises(ProgramFailed, match="code 5: cannot"),
        process.feeding(["/bin/sh", "-c", "echo cannot >&2; exit 5"], timeout_s=30) as fed,
    ):
        fed.write(bytes(5_000_000))


def _with_tablespaces(superuser: str, *spaces: NamedTablespace) -> LogicalCommit:
    made = commit(BackupKind.LOGICAL)
    assert isinstance(made, LogicalCommit)
    return made.model_copy(update={"tablespaces": spaces, "superuser": superuser})


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_rows_of_a_script_are_counted_however_it_is_cut(size: int) -> None:
    assert dump.count_copied(SCRIPT[at : at + size] for at in range(0, len(SCRIPT), size)) == 3
