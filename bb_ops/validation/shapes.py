"""Proves every shape of chain that exists, not only the latest backup: the choice (pure), and the climbs."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Literal

from bb_ops.clock import Clock
from bb_ops.errors import BbOpsError, RepositoryMissing
from bb_ops.findings import Outcome, Value, worst
from bb_ops.progress import Progress
from bb_ops.repository.catalog import Catalog, CatalogEntry, read_catalog
from bb_ops.repository.ids import BackupId
from bb_ops.repository.reports import Proof
from bb_ops.repository.repository import Repository
from bb_ops.repository.wal_reader import timelines
from bb_ops.validation.prove import prove
from bb_ops.validation.restore_test import RestoreTestOptions

_FIRST_TIMELINE = 1


class Shape(StrEnum):
    """What makes one restore different from another."""

    NEWEST = "newest"
    OLDEST = "oldest kept"
    DEEPEST = "deepest increment"
    COMBINED = "synthetic full"
    SWITCHED = "after a timeline switch"
    ELSEWHERE = "other region"


class ChosenBackup(Value):
    """A backup that stands for one shape or several."""

    region: str
    backup_id: BackupId
    shapes: tuple[Shape, ...]


class AbsentShape(Value):
    """A shape of which there is no backup, and why."""

    shape: Shape
    reason: str


class ShapeChoice(Value):
    """Which backups to prove.

    Attributes:
        chosen: In the order of the shapes.
        absent: What cannot be proven, because it does not exist.
    """

    chosen: tuple[ChosenBackup, ...]
    absent: tuple[AbsentShape, ...]


class ShapeProof(Value):
    """What one climb showed, and for which shapes it stands."""

    shapes: tuple[Shape, ...]
    proof: Proof


class ShapesReport(Value):
    """What proving every shape showed.

    Attributes:
        outcome: The worst of all.
        damaged: Commits and proofs that cannot be read; each could be the newest or the oldest of its shape.
    """

    schema_id: Literal["bb-ops/shape-proofs/1"] = "bb-ops/shape-proofs/1"
    outcome: Outcome
    proofs: tuple[ShapeProof, ...]
    absent: tuple[AbsentShape, ...]
    damaged: tuple[str, ...]


def choose_shapes(catalogs: Sequence[Catalog], archived: Mapping[str, int]) -> ShapeChoice:
    """Choose a backup for every shape. Pure. Damaged ones are chosen too: nothing stands in for them.

    Args:
        catalogs: Of the first region and of the others, which may be empty.
        archived: The newest timeline whose WAL is archived, by system identifier.
    """
    first, *others = catalogs
    found: list[tuple[Shape, str, CatalogEntry | str]] = [
        (shape, first.region, answer) for shape, answer in _in_first(first, archived)
    ]
    for other in others:
        newest = other.physical[-1] if other.physical else f"{other.region} holds no physical backup"
        found.append((Shape.ELSEWHERE, other.region, newest))
    if not others:
        found.append((Shape.ELSEWHERE, "", "no other region is set"))
    chosen: dict[tuple[str, str], list[Shape]] = {}
    for shape, region, answer in found:
        if isinstance(answer, CatalogEntry):
            chosen.setdefault((region, answer.commit.id), []).append(shape)
    return ShapeChoice(
        chosen=tuple(
            ChosenBackup(region=region, backup_id=backup_id, shapes=tuple(shapes))
            for (region, backup_id), shapes in chosen.items()
        ),
        absent=tuple(AbsentShape(shape=shape, reason=answer) for shape, _, answer in found if isinstance(answer, str)),
    )


def prove_shapes(
    repositories: Sequence[Repository], options: RestoreTestOptions, clock: Clock, progress: Progress
) -> tuple[ShapesReport, BbOpsError | None]:
    """Climb the ladder with a backup of every shape that exists; each proof is stored as it is made.

    Safe to kill and to repeat: what was proven stays recorded.

    Returns:
        What was measured, and the first error, for the exit code.

    Raises:
        RepositoryMissing: the first region holds no physical backup.
        SettingsError: no signing key is set.
        TargetRefused: there is no room for a throw-away copy; the shapes behind it were not proven.
    """
    places = {repository.region: repository for repository in repositories}
    catalogs = [read_catalog(repositories[0]), *(_read_other(repository) for repository in repositories[1:])]
    held = {catalog.region: catalog for catalog in catalogs}
    choice = choose_shapes(catalogs, _archived(repositories[0], catalogs[0]))
    damaged = [error for catalog in catalogs for error in catalog.damaged]
    if not choice.chosen and not damaged:
        raise RepositoryMissing(
            f"{catalogs[0].region} holds no physical backup yet: take one with `bb-ops backup full`"
        )
    errors, proofs = list(damaged), []
    for one in choice.chosen:
        result = prove(places[one.region], held[one.region].find(one.backup_id), options, clock, progress)
        proofs.append(ShapeProof(shapes=one.shapes, proof=result.proof))
        errors += [result.error] if result.error is not None else []
    report = ShapesReport(
        outcome=worst([*(one.proof.outcome for one in proofs), *(Outcome.FAIL for _ in damaged)]),
        proofs=tuple(proofs),
        absent=choice.absent,
        damaged=tuple(str(error) for error in damaged),
    )
    return report, next(iter(errors), None)


def _in_first(catalog: Catalog, archived: Mapping[str, int]) -> list[tuple[Shape, CatalogEntry | str]]:
    """Return for every shape within one region its backup, or why there is none."""
    held = catalog.physical
    if not held:
        shapes = [shape for shape in Shape if shape != Shape.ELSEWHERE]
        return [(shape, f"{catalog.region} holds no physical backup") for shape in shapes]
    increments = [entry for entry in held if entry.physical.depth]
    deepest = max(increments, key=lambda entry: (entry.physical.depth, held.index(entry)), default=None)
    combined = [entry for entry in held if entry.physical.combined_from]
    switched = [entry for entry in held if entry.physical.timeline > _FIRST_TIMELINE]
    return [
        (Shape.NEWEST, held[-1]),
        (Shape.OLDEST, held[0]),
        (Shape.DEEPEST, deepest or "no increment yet"),
        (Shape.COMBINED, combined[-1] if combined else "no synthetic full yet"),
        (Shape.SWITCHED, switched[-1] if switched else _unswitched(archived)),
    ]


def _unswitched(archived: Mapping[str, int]) -> str:
    newest = max(archived.values(), default=_FIRST_TIMELINE)
    if newest > _FIRST_TIMELINE:
        return f"no backup yet since the switch to timeline {newest}"
    return "no timeline switch yet"


def _archived(repository: Repository, catalog: Catalog) -> dict[str, int]:
    systems = {entry.commit.system_id for entry in catalog.physical}
    return {one: max(timelines(repository, one), default=_FIRST_TIMELINE) for one in systems}


def _read_other(repository: Repository) -> Catalog:
    """Read another region; one without a repository holds nothing, which is said where its backup would stand."""
    try:
        return read_catalog(repository)
    except RepositoryMissing:
        return Catalog(repository.region)
