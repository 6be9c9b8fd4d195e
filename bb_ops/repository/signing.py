"""Signed documents: Ed25519 over canonical JSON.

age proves that content is whole, not who wrote it: whoever may write to the bucket could put an archive there that is
encrypted to our public key. The signature on the commit, which binds the hash of every object, closes that.

A document is one line of canonical JSON with four members: ``body``, ``key_id``, ``signature`` (over the body) and
``sha256`` (over the other three). The hash tells damage (exit 5) from forgery (exit 12).
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from bb_ops.errors import IntegrityError, KeyRejected, SettingsError

_MEMBERS = {"body", "key_id", "sha256", "signature"}


def canonical(value: object) -> bytes:
    """Return the one JSON form of a value: sorted members, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a PEM secret key.

    Raises:
        SettingsError: the file holds no Ed25519 secret key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{path} is not an Ed25519 secret key in PEM form (BB_OPS_SIGNING_KEY_FILE)") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"{path} is not an Ed25519 secret key (BB_OPS_SIGNING_KEY_FILE)")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a PEM public key.

    Raises:
        SettingsError: the file holds no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(
            f"{path} is not an Ed25519 public key in PEM form (BB_OPS_SIGNING_PUBLIC_KEY_FILE)"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"{path} is not an Ed25519 public key (BB_OPS_SIGNING_PUBLIC_KEY_FILE)")
    return key


def sign_document(body: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Return the signed document of a body."""
    document = {
        "body": body,
        "key_id": key_id(key.public_key()),
        "signature": base64.b64encode(key.sign(canonical(body))).decode(),
    }
    return canonical({**document, "sha256": hashlib.sha256(canonical(document)).hexdigest()}) + b"\n"


def open_document(data: bytes, where: str, key: Ed25519PublicKey) -> dict[str, Any]:
    """Check a signed document and return its body.

    Raises:
        IntegrityError: it is damaged: any byte differs from what was written.
        KeyRejected: it is whole, but not signed by ``key``.
    """
    document = _undamaged(data, where)
    signer = document["key_id"]
    if signer != key_id(key):
        raise KeyRejected(f"{where} is signed by key {signer}, ours is {key_id(key)}: it is refused")
    try:
        key.verify(base64.b64decode(document["signature"]), canonical(document["body"]))
    except (InvalidSignature, ValueError) as error:
        raise KeyRejected(f"{where} bears a forged signature: it is refused") from error
    body: dict[str, Any] = document["body"]
    return body


def _undamaged(data: bytes, where: str) -> dict[str, Any]:
    damaged = IntegrityError(f"{where} is damaged: it differs from its own SHA-256")
    try:
        document = json.loads(data)
        same = canonical(document) + b"\n" == data  # also a ValueError, for numbers and text that JSON cannot hold
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not same or not isinstance(document, dict) or set(document) != _MEMBERS:
        raise damaged
    rest = {name: value for name, value in document.items() if name != "sha256"}
    if document["sha256"] != hashlib.sha256(canonical(rest)).hexdigest():
        raise damaged
    if not isinstance(document["body"], dict) or not isinstance(document["signature"], str):
        raise damaged
    return document
