"""What must always be true of the application's data, as its owners declare it in a file. Evaluated in ``postgres/``.

The file is TOML: ``database`` for all, and for each an ``[[invariant]]`` with ``name``, ``sql`` (one SELECT) and
``expect`` (``no rows`` or ``true``), and where wanted a ``database`` and a ``severity`` of its own.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bb_ops.errors import SettingsError
from bb_ops.findings import Outcome, Severity, Value, worst

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)
_QUERY = re.compile(r"(select|with|values|table)\b", re.IGNORECASE)
_KEYS = frozenset({"name", "database", "sql", "expect", "severity"})
_MOST_NAMED = 5
INVARIANTS_DEADLINE_S = 900.0
"""For all of a file together, on a restored copy that nobody waits for."""


class Expectation(StrEnum):
    """What the query of an invariant gives where the invariant holds."""

    NO_ROWS = "no rows"
    TRUE = "true"


@dataclass(frozen=True)
class Invariant:
    """One declared invariant.

    Attributes:
        database: Where it is evaluated.
        sql: One query, without a semicolon at its end.
    """

    name: str
    database: str
    sql: str
    expect: Expectation
    severity: Severity = Severity.HIGH


class InvariantResult(Value):
    """One invariant's answer; nothing of any row is in it but their number.

    Attributes:
        outcome: It holds, it is violated, or it could not be measured.
        rows: How many rows violate it; None where a single truth was expected or nothing was measured.
        evidence: What was seen, or why nothing was.
    """

    name: str
    database: str
    severity: Severity
    outcome: Outcome
    rows: int | None
    evidence: str
    duration_s: float


@dataclass(frozen=True)
class InvariantResults:
    """The answers of all declared invariants, in the order of the file."""

    results: tuple[InvariantResult, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst answer; not applicable where none is declared."""
        return worst(one.outcome for one in self.results) if self.results else Outcome.NOT_APPLICABLE

    @property
    def evidence(self) -> str:
        """What was seen, in one line."""
        if not self.results:
            return "no invariants are declared"
        count = Counter(one.outcome for one in self.results)
        said = [f"{count[Outcome.PASS]} of {len(self.results)} invariants hold"]
        for outcome, word in ((Outcome.FAIL, "violated"), (Outcome.NOT_MEASURED, "not measured")):
            if found := [f"{one.name} ({one.evidence})" for one in self.results if one.outcome == outcome]:
                more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
                said.append(f"{word}: {', '.join(found[:_MOST_NAMED])}{more}")
        return "; ".join(said)


def read_invariants(path: Path) -> tuple[Invariant, ...]:
    """Read the file of invariants.

    Raises:
        SettingsError: names every fault of it, and the invariant that has it, in one line.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"invariants: {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"invariants: {path} is no TOML: {error}") from error
    found, faults = _parse(document)
    if faults:
        raise SettingsError(f"invariants: {path}: {'; '.join(faults)}")
    return found


def _parse(document: Mapping[str, object]) -> tuple[tuple[Invariant, ...], list[str]]:
    entries, database = document.get("invariant", []), document.get("database")
    faults = [f"unknown key {key!r}" for key in document if key not in {"database", "invariant"}]
    if not isinstance(entries, list) or not entries:
        return (), [*faults, "it declares no [[invariant]]: declare one, or unset BB_OPS_INVARIANTS_FILE"]
    found = [_entry(number, entry, database, faults) for number, entry in enumerate(entries, 1)]
    names = Counter(one.name for one in found if one is not None)
    faults += [f"{name}: declared {count} times" for name, count in names.items() if count > 1]
    return tuple(one for one in found if one is not None), faults


def _entry(number: int, entry: object, database: object, faults: list[str]) -> Invariant | None:
    """Read one invariant; what is wrong with it is added to ``faults``."""
    values = entry if isinstance(entry, dict) else {}
    name = values.get("name")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        faults.append(f"invariant {number}: give it a name of lower-case letters, digits, dots, dashes or underscores")
        return None
    sql, where = values.get("sql"), values.get("database", database)
    wrong = [f"unknown key {key!r}" for key in values if key not in _KEYS]
    if not isinstance(sql, str) or _QUERY.match(sql.strip()) is None:
        wrong.append("sql must be one SELECT")
    if not isinstance(where, str) or not where:
        wrong.append("no database: give one to it, or one to all at the top of the file")
    if values.get("expect") not in list(Expectation):
        wrong.append(f"expect must be one of: {', '.join(Expectation)}")
    if values.get("severity", Severity.HIGH) not in list(Severity):
        wrong.append(f"severity must be one of: {', '.join(Severity)}")
    faults += [f"{name}: {fault}" for fault in wrong]
    if wrong:
        return None
    severity = Severity(values.get("severity", Severity.HIGH))
    return Invariant(name, str(where), str(sql).strip().rstrip(";").strip(), Expectation(values["expect"]), severity)
