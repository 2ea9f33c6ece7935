"""Signing keys and the JWKS that verifies them: files in the certificates folder, made on first start, never committed.

    certs/signing-<kid>.pem   RSA private key, 0600; the newest by `active` in jwks.json signs
    certs/jwks.json           RFC 7517 set of public keys; verifiers read this and nothing else

Above: `tokens`. Rotation: `rotate` adds a key and makes it active; the old public key
stays until it is removed by hand.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key
from jwt.algorithms import RSAAlgorithm

from rag.errors import Misconfigured

__all__ = ["SigningKey", "ensure_keys", "load_public_keys", "load_signing_key", "rotate", "turn", "write_private"]

KEY_BITS = 2048
"""NIST SP 800-57 accepts RSA-2048 to 2030; 4096 costs six times the signature check (mcp.md 3)."""
JWKS_NAME = "jwks.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """The active private key and its id."""

    kid: str
    key: RSAPrivateKey


def write_private(path: Path, data: bytes) -> None:
    """Write `data` so that only this user can ever read it, and so that a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextmanager
def turn(directory: Path) -> Generator[None]:
    """Let one process at a time look into `directory` and write; held for the milliseconds that making a key takes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def ensure_keys(certs_dir: Path) -> None:
    """Make a first signing key and its JWKS unless `certs_dir` already holds them."""
    certs_dir.mkdir(parents=True, exist_ok=True)
    with turn(certs_dir):
        if not (certs_dir / JWKS_NAME).exists():
            _add_key(certs_dir)


def rotate(certs_dir: Path) -> str:
    """Add a signing key, make it the active one and return its kid. Tokens of the older keys stay valid."""
    certs_dir.mkdir(parents=True, exist_ok=True)
    with turn(certs_dir):
        return _add_key(certs_dir)


def _add_key(certs_dir: Path) -> str:
    kid = secrets.token_urlsafe(9)
    key = generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(_key_path(certs_dir, kid), pem)
    keys = _read_jwks(certs_dir)["keys"] if (certs_dir / JWKS_NAME).exists() else []
    public = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    entry = {**public, "kid": kid, "use": "sig", "alg": "RS256"}
    entry.pop("key_ops", None)
    write_private(certs_dir / JWKS_NAME, json.dumps({"keys": [entry, *keys]}, indent=2).encode())
    return kid


def load_signing_key(certs_dir: Path) -> SigningKey:
    """Return the active key: the first of the JWKS.

    Raises:
        Misconfigured: There is no key, its file is readable by others, or it is no RSA key.
    """
    keys = _read_jwks(certs_dir)["keys"]
    if not keys:
        raise Misconfigured("the JWKS holds no key; remove it and start again to have one made")
    kid = str(keys[0]["kid"])
    path = _key_path(certs_dir, kid)
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as exc:
        raise Misconfigured(f"the signing key {path.name} cannot be read") from exc
    if mode & 0o077:
        raise Misconfigured(f"{path.name} is readable by others; run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as exc:
        raise Misconfigured(f"{path.name} is not a private key in PEM without a password") from exc
    if not isinstance(key, RSAPrivateKey):
        raise Misconfigured(f"{path.name} is not an RSA key")
    return SigningKey(kid=kid, key=key)


def load_public_keys(certs_dir: Path) -> Mapping[str, RSAPublicKey]:
    """Return the verifying keys by kid.

    Raises:
        Misconfigured: The JWKS is missing, malformed, or holds a key that is not RSA for RS256 or is too short for it.
    """
    keys: dict[str, RSAPublicKey] = {}
    for entry in _read_jwks(certs_dir)["keys"]:
        try:
            if entry["kty"] != "RSA" or entry.get("alg", "RS256") != "RS256":
                raise Misconfigured("the JWKS holds a key that is not for RS256")
            key = RSAAlgorithm.from_jwk(entry)
        except (KeyError, TypeError, ValueError, jwt.InvalidKeyError) as exc:
            raise Misconfigured("the JWKS holds a malformed key") from exc
        if not isinstance(key, RSAPublicKey):
            raise Misconfigured("the JWKS holds a private key; only public keys belong there")
        if key.key_size < KEY_BITS:
            raise Misconfigured(f"the JWKS holds a key of less than {KEY_BITS} bits")
        keys[str(entry["kid"])] = key
    return keys


def _key_path(certs_dir: Path, kid: str) -> Path:
    return certs_dir / f"signing-{kid}.pem"


def _read_jwks(certs_dir: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        parsed = json.loads((certs_dir / JWKS_NAME).read_text(encoding="utf-8"))
    except OSError as exc:
        raise Misconfigured(f"{JWKS_NAME} is missing; `bulkhead migrate` or `bulkhead up` makes one") from exc
    except ValueError as exc:
        raise Misconfigured(f"{JWKS_NAME} is not JSON") from exc
    if not isinstance(parsed, dict) or not isinstance(parsed.get("keys"), list):
        raise Misconfigured(f"{JWKS_NAME} is not a JSON Web Key Set")
    return cast("dict[str, list[dict[str, Any]]]", parsed)
