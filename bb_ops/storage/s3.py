"""An S3 bucket as object store: conditional writes, multipart uploads with bounded memory, checksums kept.

Every write is conditional (``If-None-Match: *``), decided by the server; a server that ignores the condition is refused
when a repository is made there. The SDK repeats a request whose answer was lost, and the repetition finds the key taken
by the first one: a mark in the object's metadata tells our own write from another's. Every request carries a checksum,
which the SDK verifies when it reads an object whole that was stored by one request.
"""

import io
import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from pydantic import SecretStr

from bb_ops.errors import AlreadyExists, BbOpsError, IntegrityError, RepositoryMissing, SettingsError, StoreFailed
from bb_ops.storage.base import ObjectInfo, ObjectReader, Unfinished, check_key, check_prefix
from bb_ops.storage.multipart import S3Writer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_T = TypeVar("_T")
_MISSING = {"NoSuchKey", "404", "NotFound"}
_NO_BUCKET = {"NoSuchBucket"}
_TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}
_BEHIND_THE_END = {"InvalidRange", "416"}
_WRITER = "bb-ops-writer"
"""The metadata that marks whose write an object is."""


class S3Store:
    """Objects in a bucket, below a prefix."""

    def __init__(  # noqa: PLR0913 - one property of the endpoint each
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: SecretStr | None = None,
    ) -> None:
        """Name the bucket; nothing is contacted before the first use."""
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._endpoint_url = endpoint_url
        self._region = region
        self._access_key_id = access_key_id
        self._secret_access_key = secret_access_key

    @property
    def url(self) -> str:
        """Where it is."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def endpoint_url(self) -> str | None:
        """The S3-compatible server; None for AWS."""
        return self._endpoint_url

    @cached_property
    def _client(self) -> "S3Client":
        secret = self._secret_access_key.get_secret_value() if self._secret_access_key else None
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._endpoint_url,
            region_name=self._region or "us-east-1",
            aws_access_key_id=self._access_key_id,
            aws_secret_access_key=secret,
            config=Config(
                signature_version="s3v4",
                retries={"mode": "standard", "max_attempts": 5},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=16,
                s3={"addressing_style": "path" if self._endpoint_url else "auto"},
            ),
        )

    def check(self) -> None:
        """Prove that the bucket exists and lets us list it."""
        self._holds_any(self._prefix)

    def create(self, key: str, data: bytes) -> ObjectInfo:
        """Store a small object, if its key is free."""
        mark = secrets.token_hex(8)
        self._write_once(
            key,
            mark,
            lambda: self._client.put_object(
                Bucket=self._bucket,
                Key=self._full(key),
                Body=data,
                IfNoneMatch="*",
                ChecksumAlgorithm="SHA256",
                Metadata={_WRITER: mark},
            ),
        )
        return ObjectInfo(key, len(data))

    def writer(self, key: str) -> S3Writer:
        """Begin a new object."""
        return S3Writer(self, check_key(key))

    def read(self, key: str) -> bytes | None:
        """Return a small object whole."""
        reader = self.reader(key)
        if reader is None:
            return None
        try:
            return reader.read()
        finally:
            reader.close()

    def reader(self, key: str, start: int = 0, length: int | None = None) -> ObjectReader | None:
        """Open a stream."""
        if length == 0:
            return None if self.stat(key) is None else io.BytesIO()
        end = "" if length is None else str(start + length - 1)
        ranged: dict[str, Any] = {"Range": f"bytes={start}-{end}"} if start or length is not None else {}
        full = self._full(key)
        try:
            answer = self._call_or_none(lambda: self._client.get_object(Bucket=self._bucket, Key=full, **ranged))
        except StoreFailed as error:
            if isinstance(error.__cause__, ClientError) and _code(error.__cause__) in _BEHIND_THE_END:
                return io.BytesIO()
            raise
        return None if answer is None else _S3Reader(self, key, answer["Body"])

    def stat(self, key: str) -> ObjectInfo | None:
        """Describe an object."""
        answer = self._call_or_none(lambda: self._client.head_object(Bucket=self._bucket, Key=self._full(key)))
        return None if answer is None else ObjectInfo(key, answer["ContentLength"])

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every object whose key begins with ``prefix``.

        S3 sorts; some servers of its kind sort folder by folder, which differs where a name begins with another one.
        """
        found = (
            ObjectInfo(entry["Key"].removeprefix(self._prefix), entry["Size"])
            for page in self._pages("list_objects_v2", Prefix=self._full_prefix(prefix))
            for entry in page.get("Contents", ())
        )
        yield from sorted(found, key=lambda info: info.key.encode())

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below ``prefix``."""
        full = f"{self._full(prefix.removesuffix('/'))}/" if prefix else self._prefix
        found = (
            entry["Prefix"]
            for page in self._pages("list_objects_v2", Prefix=full, Delimiter="/")
            for entry in page.get("CommonPrefixes", ())
        )
        return sorted(below.removeprefix(full).rstrip("/") for below in found if self._holds_any(below))

    def marks(self, keys: Sequence[str]) -> None:
        """Give none: a bucket has no folders that change."""

    def delete(self, key: str) -> None:
        """Remove an object."""
        full = self._full(key)
        self._call(lambda: self._client.delete_object(Bucket=self._bucket, Key=full))

    def unfinished(self) -> Iterator[Unfinished]:
        """Yield multipart uploads that were neither completed nor aborted."""
        for page in self._pages("list_multipart_uploads", Prefix=self._prefix):
            for upload in page.get("Uploads", ()):
                key, reference = upload["Key"], upload["UploadId"]
                yield Unfinished(key.removeprefix(self._prefix), reference, self._uploaded_bytes(key, reference))

    def remove_unfinished(self, leftover: Unfinished) -> None:
        """Abort one of them."""
        self.abort(leftover.key, leftover.reference)

    def abort(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload; one that is gone is no error."""
        try:
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._full(key), UploadId=upload_id)
        except ClientError as error:
            if _code(error) not in {"NoSuchUpload", *_MISSING}:
                raise self.failed(error) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise self.failed(error) from error

    def begin_upload(self, key: str, mark: str) -> str:
        """Begin a multipart upload and return its id."""
        answer = self._call(
            lambda: self._client.create_multipart_upload(
                Bucket=self._bucket, Key=self._full(key), ChecksumAlgorithm="CRC32", Metadata={_WRITER: mark}
            )
        )
        return answer["UploadId"]

    def upload_part(self, key: str, upload_id: str, number: int, data: bytes) -> "CompletedPartTypeDef":
        """Upload one part and return what the completion must say of it."""
        answer = self._call(
            lambda: self._client.upload_part(
                Bucket=self._bucket,
                Key=self._full(key),
                UploadId=upload_id,
                PartNumber=number,
                Body=data,
                ChecksumAlgorithm="CRC32",
            )
        )
        part: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            part["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return part

    def complete_upload(self, key: str, upload_id: str, mark: str, parts: "list[CompletedPartTypeDef]") -> None:
        """Complete a multipart upload, if its key is free."""
        self._write_once(
            key,
            mark,
            lambda: self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=self._full(key),
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            ),
        )

    def failed(self, error: Exception) -> BbOpsError:
        """Turn the SDK's error into ours: one line, with what to do."""
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return SettingsError(f"{self.url}: no complete credentials for {self._where()}: set key and secret")
        if not isinstance(error, ClientError):
            return StoreFailed(f"{self.url}: {type(error).__name__}: no usable answer from {self._where()}")
        code = _code(error)
        if code in _NO_BUCKET:
            return RepositoryMissing(f"{self.url}: bucket {self._bucket} does not exist at {self._where()}: create it")
        if code in _TAKEN:
            return AlreadyExists(f"{self.url}: the key is taken and is never overwritten")
        if code in _DENIED:
            return SettingsError(f"{self.url}: {self._where()} refuses our credentials ({code}): check key and policy")
        return StoreFailed(f"{self.url}: {error.operation_name}: {code}: {error.response['Error'].get('Message', '')}")

    def _holds_any(self, full_prefix: str) -> bool:
        """Ask for one key: some servers list folders that were emptied among the common prefixes."""
        answer = self._call(lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=full_prefix, MaxKeys=1))
        return bool(answer.get("Contents"))

    def _where(self) -> str:
        return self._endpoint_url or f"AWS {self._region or ''}".strip()

    def _full(self, key: str) -> str:
        return f"{self._prefix}{check_key(key)}"

    def _full_prefix(self, prefix: str) -> str:
        return f"{self._prefix}{check_prefix(prefix)}"

    def _write_once(self, key: str, mark: str, write: Callable[[], object]) -> None:
        """Make a conditional write; where the SDK had to repeat it, see whether the first attempt had succeeded."""
        try:
            self._call(write)
        except StoreFailed as error:
            if not (_was_repeated(error.__cause__) and self._is_ours(key, mark)):
                raise

    def _is_ours(self, key: str, mark: str) -> bool:
        full = self._full(key)
        answer = self._call_or_none(lambda: self._client.head_object(Bucket=self._bucket, Key=full))
        return answer is not None and answer["Metadata"].get(_WRITER) == mark

    def _uploaded_bytes(self, full_key: str, upload_id: str) -> int:
        answer = self._call_or_none(
            lambda: self._client.list_parts(Bucket=self._bucket, Key=full_key, UploadId=upload_id)
        )
        return sum(part["Size"] for part in answer.get("Parts", ())) if answer else 0

    def _pages(self, operation: Any, **arguments: str) -> Iterator[Any]:  # noqa: ANN401 - boto3's own page types
        pages = iter(self._client.get_paginator(operation).paginate(Bucket=self._bucket, **arguments))
        while (page := self._call(lambda: next(pages, None))) is not None:
            yield page

    def _call(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except (BotoCoreError, ClientError) as error:
            raise self.failed(error) from error

    def _call_or_none(self, action: Callable[[], _T]) -> _T | None:
        try:
            return action()
        except ClientError as error:
            if _code(error) in {*_MISSING, "NoSuchUpload"}:
                return None
            raise self.failed(error) from error
        except BotoCoreError as error:
            raise self.failed(error) from error


class _S3Reader:
    def __init__(self, store: S3Store, key: str, body: Any) -> None:  # noqa: ANN401 - botocore's StreamingBody
        self._store = store
        self._key = key
        self._body = body

    def read(self, size: int = -1, /) -> bytes:
        try:
            return bytes(self._body.read(None if size < 0 else size))
        except FlexibleChecksumError as error:
            raise IntegrityError(f"{self._store.url}/{self._key} differs from the checksum that it bears") from error
        except (BotoCoreError, HTTPClientError, OSError) as error:
            raise StoreFailed(
                f"{self._store.url}/{self._key}: the stream broke off ({type(error).__name__})"
            ) from error

    def close(self) -> None:
        self._body.close()


def _was_repeated(error: BaseException | None) -> bool:
    return isinstance(error, ClientError) and error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
