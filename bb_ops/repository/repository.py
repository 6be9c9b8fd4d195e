"""One repository: a store, the keys that we have, and what may be done with them."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyrage
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ValidationError

from bb_ops.clock import Clock
from bb_ops.errors import AlreadyExists, IntegrityError, RepositoryMissing, SettingsError, StoreFailed
from bb_ops.findings import Value
from bb_ops.repository import keys, layout
from bb_ops.repository import lock as locks
from bb_ops.repository.manifest import BackupCommit, Commit, PhysicalCommit, StoredObject, parse_commit
from bb_ops.repository.recovery_page import Place, render_page
from bb_ops.repository.reports import Proof
from bb_ops.repository.signing import load_public_key, load_signing_key, open_document, sign_document
from bb_ops.storage.base import ObjectStore
from bb_ops.storage.sealed import Expected, Seal, Sink, open_sealed


class Marker(Value):
    """What makes a place a repository."""

    schema_id: Literal["bb-ops/repository/1"] = "bb-ops/repository/1"
    repository_id: str
    created_at: datetime


@dataclass(frozen=True)
class KeyFiles:
    """Where the keys are; each is read when it is first needed."""

    encryption: Literal["age", "none"]
    recipients: Path | None
    identity: Path | None
    signing: Path | None
    signing_public: Path | None


class Repository:
    """Backups, proofs and locks of one cluster in one store. Nothing is contacted before the first use."""

    def __init__(self, store: ObjectStore, region: str, cluster: str, keys: KeyFiles, clock: Clock) -> None:
        """Name the place; ``region`` is its name in reports."""
        self.store = store
        self.region = region
        self.cluster = cluster
        self._keys = keys
        self._clock = clock
        self._ancestors: dict[str, Commit] = {}  # for pages; commits never change

    @property
    def encryption(self) -> Literal["age", "none"]:
        """How new backups are sealed."""
        return self._keys.encryption

    @cached_property
    def recipients(self) -> tuple[pyrage.x25519.Recipient, ...]:
        """The public keys that new backups are encrypted to; empty where encryption is off.

        Raises:
            SettingsError: there are fewer than two: a working key and an offline one.
        """
        if self._keys.encryption == "none":
            return ()
        return keys.read_recipients(_given(self._keys.recipients, "BB_OPS_AGE_RECIPIENTS_FILE", "to encrypt"))

    @cached_property
    def identities(self) -> tuple[pyrage.x25519.Identity, ...]:
        """The secret keys that open backups."""
        return keys.read_identities(_given(self._keys.identity, "BB_OPS_AGE_IDENTITY_FILE", "to open a backup"))

    @cached_property
    def signing_key(self) -> Ed25519PrivateKey:
        """The secret key that signs commits and proofs."""
        return load_signing_key(_given(self._keys.signing, "BB_OPS_SIGNING_KEY_FILE", "to sign"))

    @property
    def can_sign(self) -> bool:
        """Whether a signing key is set."""
        return self._keys.signing is not None

    @cached_property
    def public_key(self) -> Ed25519PublicKey:
        """The public key that commits and proofs are checked with."""
        if self._keys.signing_public is None and self._keys.signing is not None:
            return self.signing_key.public_key()
        return load_public_key(
            _given(self._keys.signing_public, "BB_OPS_SIGNING_PUBLIC_KEY_FILE", "to check signatures")
        )

    def open(self) -> Marker:
        """Prove that the repository exists.

        Raises:
            RepositoryMissing: there is no such place, or no repository in it.
        """
        self.store.check()
        data = self.store.read(layout.MARKER)
        if data is None:
            raise RepositoryMissing(f"{self.store.url} holds no repository yet: take a backup or copy into it first")
        try:
            return Marker.model_validate(json.loads(data))
        except ValueError as error:
            raise IntegrityError(f"{self.store.url}/{layout.MARKER} is damaged or of a newer format") from error

    def initialise(self) -> Marker:
        """Open the repository, and create it in an existing bucket or a new directory. Safe to repeat.

        Raises:
            StoreFailed: the store ignores conditional writes, so that two writers could overwrite each other.
        """
        marker = Marker(repository_id=secrets.token_hex(8), created_at=self._clock.now())
        try:
            return self.open()
        except RepositoryMissing:
            data = marker.model_dump_json().encode()
        try:
            self.store.create(layout.MARKER, data)
        except AlreadyExists:
            return self.open()
        try:
            self.store.create(layout.MARKER, data)
        except AlreadyExists:
            return marker
        raise StoreFailed(
            f"{self.store.url} ignores conditional writes (If-None-Match): bb_ops cannot keep backups safe there"
        )

    def seal(self, level: int, threads: int) -> Seal:
        """Return how new objects are sealed."""
        return Seal(self.recipients, level, threads)

    @contextmanager
    def lock(self, name: str, purpose: str) -> Iterator[locks.HeldLock]:
        """Hold a lock of this cluster during a block."""
        with locks.lock(self.store, self.cluster, name, self._clock, purpose) as held:
            yield held

    def lock_holder(self, name: str) -> str | None:
        """Say who holds a lock of this cluster at this moment; None where nobody does."""
        return locks.holder_of(self.store, self.cluster, name, self._clock)

    def system_ids(self) -> list[str]:
        """Return the systems that have anything in this cluster's part of the repository."""
        return [name for name in self.store.children(layout.cluster_prefix(self.cluster)) if name.isdigit()]

    def commit(self, commit: Commit) -> None:
        """Make a backup exist: write how to bring it back without us, then its signed commit, once.

        Raises:
            AlreadyExists: the backup is committed already.
            IntegrityError: what an increment builds on is missing or damaged.
        """
        self.write_page(commit)
        document = sign_document(commit.model_dump(mode="json"), self.signing_key)
        self.store.create(layout.commit_key(commit.cluster, commit.system_id, commit.id), document)

    def read_commit(self, system_id: str, backup_id: str) -> Commit | None:
        """Read and authenticate a backup's commit; None where there is none.

        Raises:
            IntegrityError: it is damaged.
            KeyRejected: it is not signed by our key.
        """
        key = layout.commit_key(self.cluster, system_id, backup_id)
        data = self.store.read(key)
        return None if data is None else self.parse_commit(data, key)

    def write_page(self, commit: Commit) -> None:
        """Write ``RECOVERY.md`` beside a backup that is about to be committed here, with this repository's own names.

        Safe to repeat: one that a killed run left is replaced while the backup is not committed, never afterwards.

        Raises:
            IntegrityError: what an increment builds on is missing or damaged.
        """
        place = Place(self.store.url, self.store.endpoint_url, self.region)
        page = render_page(self._with_ancestors(commit), place).encode()
        key = layout.page_key(commit.cluster, commit.system_id, commit.id)
        try:
            self.store.create(key, page)
        except AlreadyExists:
            committed = self.store.stat(layout.commit_key(commit.cluster, commit.system_id, commit.id)) is not None
            if not committed and self.store.read(key) != page:
                self.store.delete(key)
                self.store.create(key, page)

    def _with_ancestors(self, commit: Commit) -> tuple[Commit, ...]:
        chain = [commit]
        while isinstance(chain[0], PhysicalCommit) and (parent_id := chain[0].parent_id) is not None:
            parent = self._ancestors.get(parent_id) or self.read_commit(commit.system_id, parent_id)
            if parent is None or parent.id in {one.id for one in chain}:
                raise IntegrityError(f"{chain[0].id} builds on {parent_id}, which is missing in {self.region}")
            self._ancestors[parent_id] = parent
            chain.insert(0, parent)
        return tuple(chain)

    def parse_commit(self, data: bytes, key: str) -> Commit:
        """Authenticate the bytes of the commit stored at ``key``."""
        where = f"{self.store.url}/{key}"
        body = open_document(data, where, self.public_key)
        try:
            commit = parse_commit(body)
        except ValidationError as error:
            raise IntegrityError(f"{where} is signed but not a commit of a format that we know") from error
        if key != layout.commit_key(commit.cluster, commit.system_id, commit.id):
            raise IntegrityError(f"{where} is the commit of another backup, {commit.id}: it was moved")
        return commit

    def object_key(self, commit: BackupCommit, entry: StoredObject) -> str:
        """Return the key of a backup's object."""
        return layout.backup_prefix(commit.cluster, commit.system_id, commit.id) + entry.name

    def expected(self, commit: BackupCommit, entry: StoredObject) -> Expected:
        """Return what the signed commit says of an object."""
        return Expected(self.object_key(commit, entry), entry.size_bytes, entry.raw_size_bytes, entry.sha256)

    def open_object(self, commit: BackupCommit, entry: StoredObject, sink: Sink) -> int:
        """Decrypt, decompress and verify an object into ``sink``; returns its raw bytes."""
        identities = self.identities if entry.name.endswith(".age") else ()
        return open_sealed(self.store, self.expected(commit, entry), identities, sink)

    def record_proof(self, commit: BackupCommit, proof: Proof) -> Proof:
        """Store a signed proof, once, bound to this repository; return it as stored."""
        proof = proof.model_copy(update={"repository_id": self.open().repository_id})
        key = layout.proof_key(commit.cluster, commit.system_id, commit.id, proof.id)
        self.store.create(key, sign_document(proof.model_dump(mode="json"), self.signing_key))
        return proof

    def parse_proof(self, data: bytes, key: str) -> Proof:
        """Authenticate the bytes of the proof stored at ``key``."""
        where = f"{self.store.url}/{key}"
        try:
            return Proof.model_validate(open_document(data, where, self.public_key))
        except ValidationError as error:
            raise IntegrityError(f"{where} is signed but not a proof of a format that we know") from error


def _given(path: Path | None, setting: str, purpose: str) -> Path:
    if path is None:
        raise SettingsError(
            f"{setting} is not set and is needed {purpose}: make keys with `bb-ops keys init DIR`"
            + (", or set BB_OPS_ENCRYPTION=none to go without" if "RECIPIENTS" in setting else "")
        )
    return path
