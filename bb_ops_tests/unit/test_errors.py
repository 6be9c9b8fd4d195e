"""The error tree, as its docstring draws it."""

import re

import pytest

from bb_ops import errors
from bb_ops.errors import BbOpsError

CLASSES = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, BbOpsError)
}
DRAWN = re.compile(r"^ {4}(?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<code>\d+) ", re.MULTILINE)


def drawn() -> dict[str, tuple[int, int]]:
    """Return each drawn class with its depth and exit code."""
    return {
        match["name"]: (len(match["branch"]) // 4, int(match["code"])) for match in DRAWN.finditer(errors.__doc__ or "")
    }


def test_every_class_is_drawn_and_nothing_else() -> None:
    assert set(drawn()) == set(CLASSES)


def test_every_class_has_the_drawn_exit_code() -> None:
    assert {name: code for name, (_, code) in drawn().items()} == {name: cls.exit_code for name, cls in CLASSES.items()}


def test_every_class_stands_below_the_drawn_one() -> None:
    path: list[str] = []
    for name, (depth, _) in drawn().items():
        del path[depth:]
        if path:
            assert CLASSES[name].__bases__ == (CLASSES[path[-1]],)
        path.append(name)


def test_what_a_retry_can_help_is_drawn_so() -> None:
    text = errors.__doc__ or ""
    helped = {match.group(1) for match in re.finditer(r"(\w+) +\d+ .*\(a retry can help\)", text)}
    assert helped | {"Locked"} == {name for name, cls in CLASSES.items() if cls.retryable}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("BbOpsError", 1),
        ("UsageError", 2),
        ("SettingsError", 2),
        ("ServerUnusable", 2),
        ("TargetRefused", 2),
        ("PartlyDone", 3),
        ("FindingsPresent", 4),
        ("IntegrityError", 5),
        ("RepositoryMissing", 10),
        ("Locked", 11),
        ("KeyRejected", 12),
        ("NotMeasured", 13),
        ("StoreFailed", 1),
        ("AlreadyExists", 1),
        ("ProgramFailed", 1),
        ("BackupFailed", 1),
    ],
)
def test_exit_codes_are_the_promised_ones(name: str, code: int) -> None:
    assert CLASSES[name].exit_code == code


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_a_message_is_one_line(cls: type[BbOpsError]) -> None:
    assert str(cls("a\nb\r\n  c\t\td ")) == "a b c d"
