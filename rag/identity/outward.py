"""Keys for what we say to the outside: agent cards and notifications are signed with them, and never a token.

    certs/outward-<kid>.pem    P-256 private key, 0600; the first of outward-jwks.json signs
    certs/outward-jwks.json    RFC 7517 set of the public keys, at most two; the A2A server publishes this file as it is

Above: the card, the deliveries of webhooks. Below: `keys`, for writing files. They are not the keys of access tokens:
whoever gets hold of one can lie about us to others, and enters nowhere.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from jwt.algorithms import ECAlgorithm

from rag.errors import Misconfigured
from rag.identity.keys import turn, write_private

__all__ = ["ALGORITHM", "OutwardKey", "ensure_outward_keys", "load_outward_key", "rotate_outward"]

ALGORITHM = "ES256"
JWKS_NAME = "outward-jwks.json"
MAX_KEYS = 2
"""The one that signs, and the one before it: what that one signed was read minutes later, or is fetched again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutwardKey:
    """The key that signs, and the set that verifies."""

    kid: str
    key: EllipticCurvePrivateKey = field(repr=False)
    jwks: bytes
    """JSON, to be published."""
    published_at: float
    """When it was written, in Unix seconds."""

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Return `claims` as a signed JWT."""
        return jwt.encode(dict(claims), self.key, algorithm=ALGORITHM, headers={"kid": self.kid})


def ensure_outward_keys(certs_dir: Path) -> None:
    """Make a first key unless there is one. In a folder that cannot be written to, it is somebody else's to make."""
    certs_dir.mkdir(parents=True, exist_ok=True)
    if (certs_dir / JWKS_NAME).exists() or not os.access(certs_dir, os.W_OK):
        return
    with turn(certs_dir):
        if not (certs_dir / JWKS_NAME).exists():
            _add_key(certs_dir)


def rotate_outward(certs_dir: Path) -> str:
    """Add a key, make it the one that signs and return its kid. The one before stays published, older ones go."""
    certs_dir.mkdir(parents=True, exist_ok=True)
    with turn(certs_dir):
        return _add_key(certs_dir)


def load_outward_key(certs_dir: Path) -> OutwardKey | None:
    """Return the key that signs; None where none was made: then nothing is signed.

    Raises:
        Misconfigured: There is a set, but it is malformed, or its first key is missing, readable by others or not of
            P-256.
    """
    path = certs_dir / JWKS_NAME
    if not path.exists():
        return None
    keys = _read_jwks(path)
    kid = str(keys[0]["kid"])
    private = _key_path(certs_dir, kid)
    try:
        mode = private.stat().st_mode
        pem = private.read_bytes()
    except OSError as exc:
        raise Misconfigured(f"the key {private.name} cannot be read") from exc
    if mode & 0o077:
        raise Misconfigured(f"{private.name} is readable by others; run: chmod 600 {private}")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as exc:
        raise Misconfigured(f"{private.name} is not a private key in PEM without a password") from exc
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise Misconfigured(f"{private.name} is not a P-256 key")
    jwks = json.dumps({"keys": keys}).encode()
    return OutwardKey(kid=kid, key=key, jwks=jwks, published_at=path.stat().st_mtime)


def _add_key(certs_dir: Path) -> str:
    kid = secrets.token_urlsafe(9)
    key = generate_private_key(SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(_key_path(certs_dir, kid), pem)
    path = certs_dir / JWKS_NAME
    before = _read_jwks(path) if path.exists() else []
    public = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    entry = {**public, "kid": kid, "use": "sig", "alg": ALGORITHM}
    entry.pop("key_ops", None)
    write_private(path, json.dumps({"keys": [entry, *before][:MAX_KEYS]}, indent=2).encode())
    for gone in before[MAX_KEYS - 1 :]:
        _key_path(certs_dir, str(gone["kid"])).unlink(missing_ok=True)
    return kid


def _key_path(certs_dir: Path, kid: str) -> Path:
    return certs_dir / f"outward-{kid}.pem"


def _read_jwks(path: Path) -> list[dict[str, Any]]:
    try:
        parsed: Any = json.loads(path.read_text(encoding="utf-8"))
        keys = cast("list[dict[str, Any]]", parsed["keys"])
        if not keys or any("d" in key or not isinstance(key["kid"], str) for key in keys):
            raise Misconfigured(f"{path.name} needs public keys with a kid, and no others")
    except OSError as exc:
        raise Misconfigured(f"{path.name} cannot be read") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise Misconfigured(f"{path.name} is not a JSON Web Key Set") from exc
    return keys
