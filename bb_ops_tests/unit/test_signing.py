"""Signed documents: damage and forgery are told apart, and neither is ever accepted."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from bb_ops.errors import IntegrityError, KeyRejected, SettingsError
from bb_ops.repository.signing import (
    canonical,
    key_id,
    load_public_key,
    load_signing_key,
    open_document,
    sign_document,
)
from bb_ops_tests.unit.builders import new_commit

OURS = Ed25519PrivateKey.generate()
THEIRS = Ed25519PrivateKey.generate()
WHERE = "file:///backups/main/1/base/x/COMMIT.json"
BODY = new_commit().model_dump(mode="json") | {"superuser": "büro€"}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: not any(0xD800 <= ord(letter) <= 0xDFFF for letter in json.dumps(value, ensure_ascii=False)))
bodies = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=5)


def opened(document: bytes) -> dict[str, Any]:
    return open_document(document, WHERE, OURS.public_key())


def redone(document: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Change a document and give it a right SHA-256, as a forger would."""
    members = json.loads(document)
    change(members)
    rest = {name: value for name, value in members.items() if name != "sha256"}
    return canonical({**rest, "sha256": hashlib.sha256(canonical(rest)).hexdigest()}) + b"\n"


@given(bodies)
def test_what_was_signed_opens_to_itself(body: dict[str, Any]) -> None:
    assert opened(sign_document(body, OURS)) == body


@pytest.mark.parametrize("bit", [0, 1, 3, 5, 7])
def test_no_byte_can_be_changed_without_notice(bit: int) -> None:
    document = sign_document(BODY, OURS)
    for at in range(len(document)):
        changed = document[:at] + bytes([document[at] ^ 1 << bit]) + document[at + 1 :]
        with pytest.raises(IntegrityError) as found:
            opened(changed)
        assert WHERE in str(found.value), at


def test_no_byte_can_be_taken_away_or_added() -> None:
    document = sign_document({"id": "x", "n": 1.5}, OURS)
    for at in range(len(document)):
        for changed in (document[:at], document[:at] + document[at + 1 :], document[:at] + b" " + document[at:]):
            with pytest.raises(IntegrityError):
                opened(changed)


@given(st.binary(max_size=200))
def test_whatever_is_no_document_is_damage(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        opened(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null\n",
        b"[]\n",
        b'{"body":{},"key_id":"x","sha256":"y","signature":NaN}\n',
        b'{"body":{},"key_id":"x","sha256":"y","signature":1e999}\n',
        b'{"body":{},"key_id":"x","sha256":"y","signature":"\\ud800"}\n',
        b'{"body":{"n":' + b"9" * 5000 + b'},"key_id":"x","sha256":"y","signature":"z"}\n',
        b"[" * 100_000,
        b'{"body":{},"body":{},"key_id":"x","sha256":"y","signature":"z"}\n',
    ],
    ids=["empty", "null", "list", "NaN", "infinite", "half a character", "endless number", "endless depth", "twice"],
)
def test_what_json_can_be_made_to_hold_is_damage_and_no_crash(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        opened(data)


def test_a_document_of_another_key_is_refused_and_both_keys_named() -> None:
    with pytest.raises(KeyRejected) as refused:
        opened(sign_document(BODY, THEIRS))
    assert refused.value.exit_code == 12
    assert key_id(OURS.public_key()) in str(refused.value)
    assert key_id(THEIRS.public_key()) in str(refused.value)
    assert WHERE in str(refused.value)


def other_signature(members: dict[str, Any]) -> None:
    members["signature"] = base64.b64encode(THEIRS.sign(canonical(members["body"]))).decode()


FORGERIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "garbage": lambda members: members.update(signature=base64.b64encode(bytes(64)).decode()),
    "short": lambda members: members.update(signature="AAAA"),
    "empty": lambda members: members.update(signature=""),
    "no base64": lambda members: members.update(signature="é"),
    "another key's, under our name": other_signature,
    "another body": lambda members: members["body"].update(id="20261125T020000Z-full-00000000"),
    "one more member in the body": lambda members: members["body"].update(extra=1),
    "one size changed": lambda members: members["body"].update(duration_s=90.5),
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forgery_with_a_right_hash_is_refused(forge: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(KeyRejected) as refused:
        opened(redone(sign_document(BODY, OURS), forge))
    assert refused.value.exit_code == 12
    assert WHERE in str(refused.value)


MISSHAPEN: dict[str, Callable[[dict[str, Any]], None]] = {
    "a member more": lambda members: members.update(extra=1),
    "no signature": lambda members: members.pop("signature"),
    "body is a list": lambda members: members.update(body=[]),
    "signature is a number": lambda members: members.update(signature=1),
}


@pytest.mark.parametrize("change", MISSHAPEN.values(), ids=MISSHAPEN.keys())
def test_another_shape_with_a_right_hash_is_damage(change: Callable[[dict[str, Any]], None]) -> None:
    with pytest.raises(IntegrityError):
        opened(redone(sign_document(BODY, OURS), change))


def test_the_document_is_one_line_of_canonical_json() -> None:
    document = sign_document({"b": 1, "a": "ü"}, OURS)
    assert document.count(b"\n") == 1
    assert document.endswith(b"}\n")
    assert document == canonical(json.loads(document)) + b"\n"
    assert document.startswith('{"body":{"a":"ü","b":1},"key_id":'.encode())


def test_the_same_body_gives_the_same_document() -> None:
    assert sign_document({"a": 1, "b": 2}, OURS) == sign_document({"b": 2, "a": 1}, OURS)


@given(bodies)
def test_the_canonical_form_is_one_for_each_value(body: dict[str, Any]) -> None:
    turned = dict(reversed(body.items()))
    assert canonical(turned) == canonical(body)
    assert canonical(json.loads(canonical(body))) == canonical(body)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_form_for_is_never_written(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"n": value})


def test_only_an_ed25519_key_is_a_key(keys: Path, tmp_path: Path) -> None:
    wrong = {
        "empty": b"",
        "text": b"no key",
        "age": (keys / "working.agekey").read_bytes(),
        "public": (keys / "signing.pub").read_bytes(),
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    for name in (*wrong, "missing"):
        with pytest.raises(SettingsError, match="BB_OPS_SIGNING_KEY_FILE"):
            load_signing_key(tmp_path / name)
    (tmp_path / "secret").write_bytes((keys / "signing.key").read_bytes())
    for name in ("empty", "text", "age", "secret", "missing"):
        with pytest.raises(SettingsError, match="BB_OPS_SIGNING_PUBLIC_KEY_FILE"):
            load_public_key(tmp_path / name)
    assert key_id(load_signing_key(keys / "signing.key").public_key()) == key_id(load_public_key(keys / "signing.pub"))
