"""What the page beside a backup says, and when it is written. That it works is shown by executing it (drills)."""

import subprocess
from pathlib import Path

import pytest

from bb_ops.cross_region.transfer import copy_backup
from bb_ops.errors import IntegrityError
from bb_ops.repository import layout
from bb_ops.repository.catalog import read_catalog
from bb_ops.repository.ids import BackupKind
from bb_ops.repository.manifest import LocaleFacts, LogicalCommit, PhysicalCommit, StoredDatabase, StoredTablespace
from bb_ops.repository.recovery_page import Place, render_page
from bb_ops.repository.repository import Repository
from bb_ops_tests.support.commits import commit
from bb_ops_tests.support.page import blocks
from bb_ops_tests.unit.builders import NOON, new_commit, new_repository, stored_backup

BUCKET = Place("s3://bucket/bb_ops", "https://store.example.org", "eu")
HOSTILE = "it's `a`\n```\n```sh\nrm -rf /\n``` | x"


def page_of(repository: Repository, backup: PhysicalCommit) -> bytes | None:
    return repository.store.read(layout.page_key(backup.cluster, backup.system_id, backup.id))


def dump_of(name: str) -> LogicalCommit:
    shared = new_commit().model_dump(include=set(LogicalCommit.model_fields) - {"schema_id", "kind", "engine", "id"})
    database = StoredDatabase(
        name=name,
        oid=5,
        dump="5.dump.zst.age",
        contents=None,
        size_bytes=1,
        snapshot="s",
        anchor_lsn=new_commit().end_lsn,
        as_of=NOON,
    )
    locale = LocaleFacts(encoding="UTF8", collate="C", ctype="C", provider="i", locale="de-x-icu")
    facts = {**shared, "tablespaces": (), "superuser": HOSTILE, "locale": locale, "databases": (database,)}
    ours = {"id": "20261124T120000Z-logical-00000001", "kind": BackupKind.LOGICAL}
    return LogicalCommit(**facts, **ours, client_version="18.1", client_major=18)


def test_a_page_names_its_bucket_its_chain_and_every_hash(repository: Repository) -> None:
    full = stored_backup(repository)
    page = render_page([full], BUCKET)
    assert "aws --endpoint-url https://store.example.org s3 cp --recursive" in page
    assert f"s3://bucket/bb_ops/main/{full.system_id}/" in page
    assert all(f"{entry.sha256}  {entry.name}\n" in page for entry in full.objects)
    assert all(f"`{key}`" in page for key in full.recipients)
    assert "pg_combinebackup" not in page
    assert page == render_page([full], BUCKET)
    chain = (
        commit(0),
        one := commit(1, commit(0)),
        commit(2, one, tablespaces=(StoredTablespace(oid=7, location="/x"),)),
    )
    joined = render_page(chain, BUCKET)
    assert 'pg_combinebackup -T "$WORK/2.spaces/7=$SPACES/7" -o "$DIR" "$WORK/0" "$WORK/1" "$WORK/2"' in joined
    assert joined.index(chain[0].id) < joined.index(f'open_backup "$SYSTEM/base/{chain[2].id}"')


def test_a_page_of_a_backup_without_encryption_asks_for_no_age() -> None:
    page = render_page([new_commit(encryption="none", recipients=())], BUCKET)
    assert 'unseal "$base/backup_manifest.zst"' in page
    assert "apt-get install age" not in page
    assert "| encryption | none |" in page


@pytest.mark.parametrize("name", ["shop", HOSTILE])
def test_no_name_ends_a_block_or_a_word(tmp_path: Path, name: str) -> None:
    page = render_page([dump_of(name)], Place(f"file://{tmp_path}/it's here", None, "a|b`c"))
    assert [line for line in page.splitlines() if line.startswith("```")] == ["```sh", "```"] * 5
    assert "rm -rf /\n" not in page
    script = "".join(blocks(page))
    checked = subprocess.run(["/bin/sh", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    (line,) = [line for line in script.splitlines() if line.startswith("PGHOST=")]
    told = subprocess.run(
        ["/bin/sh", "-c", f'DIR=d PORT=1; {line}; printf %s "$PGUSER"'], capture_output=True, text=True, check=True
    )
    assert told.stdout == HOSTILE


def test_the_page_lies_there_before_the_commit_and_a_copy_has_its_own(
    repository: Repository, tmp_path: Path, keys: Path
) -> None:
    backup = stored_backup(repository)
    replica = new_repository(tmp_path, keys=keys, name="replica")
    key = layout.page_key(backup.cluster, backup.system_id, backup.id)
    replica.store.create(key, b"of a copy that was killed, by an older version")
    copy_backup(repository, replica, backup, lambda *_: None)
    here, there = page_of(repository, backup), page_of(replica, backup)
    assert here is not None
    assert there == here.replace(b"/primary", b"/replica").replace(b"`primary`", b"`replica`")
    catalog = read_catalog(replica)
    assert ([entry.commit for entry in catalog.entries], catalog.leftovers) == ([backup], [])
    assert catalog.entries[0].problems == ()


def test_the_page_of_a_backup_that_was_never_committed_is_part_of_its_leftover(repository: Repository) -> None:
    backup = new_commit()
    repository.write_page(backup)
    (leftover,) = read_catalog(repository).leftovers
    assert leftover.keys == (layout.page_key(backup.cluster, backup.system_id, backup.id),)
    repository.write_page(backup)
    repository.commit(backup)
    before = page_of(repository, backup)
    repository.write_page(backup.model_copy(update={"server_version": "18.2"}))
    assert page_of(repository, backup) == before, "never changed once committed"


def test_an_increment_whose_chain_is_not_here_gets_no_page_and_no_commit(repository: Repository) -> None:
    lost = new_commit(
        id="20261124T130000Z-incremental-00000001",
        kind=BackupKind.INCREMENTAL,
        parent_id="20261124T120000Z-full-00000001",
        depth=1,
    )
    with pytest.raises(IntegrityError, match="which is missing in primary"):
        repository.commit(lost)
    assert page_of(repository, lost) is None
