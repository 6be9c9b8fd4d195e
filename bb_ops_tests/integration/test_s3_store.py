"""An S3 bucket as object store: credentials, checksums, and a network that breaks at the worst moment."""

import base64
import hashlib
import re
import threading
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr

from bb_ops.errors import AlreadyExists, IntegrityError, RepositoryMissing, SettingsError, StoreFailed
from bb_ops.storage.s3 import S3Store
from bb_ops_tests.support.postgres import wait_until
from bb_ops_tests.support.proxy import FaultyProxy
from bb_ops_tests.support.s3 import REGION, S3Server, running_s3
from bb_ops_tests.support.stores import MIB, keys_of, noise, run_python, write_all


def test_a_missing_bucket_is_a_missing_repository_for_every_operation(s3_server: S3Server) -> None:
    store = s3_server.store("never-made")
    for operation in (
        store.check,
        lambda: store.create("key", b"x"),
        lambda: store.read("key"),
        lambda: list(store.objects("")),
        lambda: store.children(""),
        lambda: list(store.unfinished()),
    ):
        with pytest.raises(RepositoryMissing) as missing:
            operation()
        assert missing.value.exit_code == 10
        assert "never-made" in str(missing.value)
        assert s3_server.endpoint_url in str(missing.value)


class TestCredentials:
    @pytest.mark.parametrize("wrong", ["key", "secret"])
    def test_wrong_ones_are_a_wrong_setting(self, s3_server: S3Server, bucket: str, wrong: str) -> None:
        secret = "canary-secret-0123456789" if wrong == "secret" else s3_server.secret_access_key
        store = S3Store(
            bucket,
            "",
            endpoint_url=s3_server.endpoint_url,
            region=REGION,
            access_key_id="unknown" if wrong == "key" else s3_server.access_key_id,
            secret_access_key=SecretStr(secret),
        )
        for operation in (store.check, lambda: store.create("key", b"x"), lambda: list(store.objects(""))):
            with pytest.raises(SettingsError) as refused:
                operation()
            assert refused.value.exit_code == 2
            assert "credentials" in str(refused.value)
            assert secret not in str(refused.value)

    def test_none_at_all_is_a_missing_setting(self, s3_server: S3Server, bucket: str, room: Path) -> None:
        script = (
            "from bb_ops.storage.s3 import S3Store\n"
            f"S3Store({bucket!r}, '', endpoint_url={s3_server.endpoint_url!r}).check()"
        )
        nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(room)}
        answer = run_python(script, nowhere)
        assert answer.returncode == 1
        assert answer.stderr.splitlines()[-1].startswith("bb_ops.errors.SettingsError: s3://")

    def test_no_printed_form_of_a_store_holds_the_secret(self, s3_server: S3Server, bucket: str) -> None:
        store = s3_server.store(bucket, "prefix")
        assert store.url == f"s3://{bucket}/prefix"
        assert s3_server.secret_access_key not in f"{store!r} {store} {vars(store)}"


class TestNetwork:
    def test_nobody_listening_is_a_failed_store(self, s3_server: S3Server, bucket: str) -> None:
        with FaultyProxy(s3_server.port) as proxy:
            proxy.break_now()
            with pytest.raises(StoreFailed) as failed:
                s3_server.store(bucket, port=proxy.port).check()
        assert failed.value.retryable
        assert str(proxy.port) in str(failed.value)

    @pytest.mark.parametrize("size_bytes", [4 * MIB, 40 * MIB])
    def test_a_server_gone_in_the_middle_of_a_read_is_a_failure_and_never_a_short_object(
        self, s3_server: S3Server, bucket: str, size_bytes: int
    ) -> None:
        with s3_server.store(bucket).writer("key") as writer:
            writer.write(noise(size_bytes))
        with FaultyProxy(s3_server.port, download_bytes=2 * MIB) as proxy:
            store = s3_server.store(bucket, port=proxy.port)
            reader = store.reader("key")
            assert reader is not None
            assert reader.read(MIB)
            with pytest.raises(StoreFailed, match="broke off"):
                list(iter(lambda: reader.read(MIB), b""))
            with pytest.raises(StoreFailed, match="broke off"):
                reader.read(MIB)
            reader.close()

    def test_a_whole_read_that_breaks_off_is_a_failure(self, s3_server: S3Server, bucket: str) -> None:
        s3_server.store(bucket).create("key", noise(4 * MIB))
        with FaultyProxy(s3_server.port, download_bytes=MIB) as proxy, pytest.raises(StoreFailed):
            s3_server.store(bucket, port=proxy.port).read("key")

    def test_a_server_gone_in_the_middle_of_a_write_fails_it_and_shows_nothing(
        self, s3_server: S3Server, bucket: str
    ) -> None:
        before = set(threading.enumerate())
        with FaultyProxy(s3_server.port, upload_bytes=20 * MIB) as proxy:
            store = s3_server.store(bucket, port=proxy.port)
            with pytest.raises(StoreFailed, match="no usable answer"):
                write_all(store, "key", bytes(50 * MIB))
        assert set(threading.enumerate()) <= before
        direct = s3_server.store(bucket)
        assert keys_of(direct) == []
        (leftover,) = direct.unfinished()
        direct.remove_unfinished(leftover)
        assert list(direct.unfinished()) == []

    def test_the_reason_for_abandoning_is_not_hidden_by_a_server_that_is_gone(
        self, s3_server: S3Server, bucket: str
    ) -> None:
        with FaultyProxy(s3_server.port) as proxy:
            store = s3_server.store(bucket, port=proxy.port)

            def lose_the_server() -> None:
                with store.writer("key") as writer:
                    writer.write(bytes(20 * MIB))
                    wait_until(lambda: any(each.size_bytes for each in store.unfinished()), "nothing was uploaded")
                    proxy.break_now()
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                lose_the_server()

    def test_a_connection_that_breaks_once_is_survived(self, s3_server: S3Server, bucket: str) -> None:
        data = noise(50 * MIB)
        with FaultyProxy(s3_server.port, upload_bytes=20 * MIB, comes_back=True) as proxy:
            write_all(s3_server.store(bucket, port=proxy.port), "key", data)
            assert proxy.connections > 1
        assert s3_server.store(bucket).read("key") == data

    def test_a_write_whose_answer_was_lost_counts_as_ours(self, s3_server: S3Server, bucket: str) -> None:
        """The SDK repeats it, and the repetition finds the key taken: by us."""
        with FaultyProxy(s3_server.port) as proxy:
            proxy.lose_answer_to = b"PUT /"
            info = s3_server.store(bucket, port=proxy.port).create("COMMIT.json", b"bytes")
            assert proxy.connections > 1
        assert info.size_bytes == 5
        assert s3_server.store(bucket).read("COMMIT.json") == b"bytes"

    def test_a_repeated_write_does_not_count_as_ours_where_another_was_first(
        self, s3_server: S3Server, bucket: str
    ) -> None:
        s3_server.store(bucket).create("COMMIT.json", b"bytes")
        with FaultyProxy(s3_server.port) as proxy:
            proxy.lose_answer_to = b"PUT /"
            with pytest.raises(AlreadyExists):
                s3_server.store(bucket, port=proxy.port).create("COMMIT.json", b"bytes")
            assert proxy.connections > 1

    def test_a_completion_whose_answer_was_lost_counts_as_ours(self, s3_server: S3Server, bucket: str) -> None:
        data = noise(20 * MIB)
        with FaultyProxy(s3_server.port) as proxy:
            store = s3_server.store(bucket, port=proxy.port)
            writer = store.writer("key")
            writer.write(data)
            wait_until(lambda: any(each.size_bytes for each in store.unfinished()), "nothing was uploaded")
            proxy.lose_answer_to = b"<CompleteMultipartUpload"
            assert writer.commit().size_bytes == len(data)
            assert proxy.answers_to_lose == 0
        direct = s3_server.store(bucket)
        assert direct.read("key") == data
        assert list(direct.unfinished()) == []


class TestChecksums:
    def test_a_small_object_bears_its_sha256(self, s3_server: S3Server, bucket: str) -> None:
        s3_server.store(bucket).create("key", b"bytes")
        head = s3_server.client.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
        assert head["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(b"bytes").digest()).decode()

    def test_a_large_object_bears_a_checksum_of_its_parts(self, s3_server: S3Server, bucket: str) -> None:
        with s3_server.store(bucket).writer("key") as writer:
            writer.write(noise(33 * MIB))
        head = s3_server.client.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
        assert re.fullmatch(r"[A-Za-z0-9+/]{6}==-[2-9]", head["ChecksumCRC32"])
        assert head["ContentLength"] == 33 * MIB

    def test_an_upload_that_does_not_match_its_checksum_is_refused(self, s3_server: S3Server, bucket: str) -> None:
        wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
        with pytest.raises(ClientError) as refused:
            s3_server.client.put_object(Bucket=bucket, Key="key", Body=b"bytes", ChecksumSHA256=wrong)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        assert s3_server.store(bucket).stat("key") is None

    def test_bytes_changed_on_their_way_to_us_are_noticed(self, s3_server: S3Server, bucket: str) -> None:
        s3_server.store(bucket).create("key", b"a long text, and a byte that will change")
        with FaultyProxy(s3_server.port) as proxy:
            proxy.flip_in = b"a long text"
            with pytest.raises(IntegrityError) as damaged:
                s3_server.store(bucket, port=proxy.port).read("key")
        assert damaged.value.exit_code == 5
        assert f"s3://{bucket}/key" in str(damaged.value)

    def test_two_prefixes_of_one_bucket_do_not_see_each_other(self, s3_server: S3Server, bucket: str) -> None:
        first, second = s3_server.store(bucket, "a"), s3_server.store(bucket, "ab")
        first.create("key", b"1")
        second.create("key", b"2")
        assert (keys_of(first), keys_of(second)) == (["key"], ["key"])
        assert (first.read("key"), second.read("key")) == (b"1", b"2")
        assert keys_of(s3_server.store(bucket)) == ["a/key", "ab/key"]


def test_a_server_that_was_killed_and_started_again_has_every_object(room: Path) -> None:
    """What was acknowledged is durable: the store's own promise, on the server that the demo and these tests use."""
    objects = {f"key-{number}": noise(number * 1000) for number in range(20)}
    with running_s3(room) as server:
        bucket = server.make_bucket()
        for key, data in objects.items():
            server.store(bucket).create(key, data)
        server.stop()
        server.start()
        again = server.store(bucket)
        assert {key: again.read(key) for key in objects} == objects


def test_nothing_remains_of_a_server_that_was_stopped(room: Path) -> None:
    with running_s3(room) as server:
        pid, ports = server.pid, [server.base_port + offset for offset in (*range(5), *range(10_000, 10_005))]
    assert not Path(f"/proc/{pid}").exists()
    assert [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock")] == []
