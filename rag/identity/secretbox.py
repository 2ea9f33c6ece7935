"""Secrets of tenants at rest: authenticated encryption under keys that are derived from the seal keys, one per purpose.

    version (1 byte) | length of kid (1 byte) | kid | nonce (12 bytes) | AES-256-GCM ciphertext and tag

Above: what stores credentials of push receivers and external servers. Below: `seal`, for the keys. A stolen dump of the
database opens none of them; copied to another place they do not open there, since what they are bound to differs.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rag.errors import InvalidInput, Unavailable
from rag.identity.seal import SealKeys

__all__ = ["MAX_SECRET_CHARS", "SecretBox"]

MAX_SECRET_CHARS = 8192
_VERSION = 1
_NONCE_BYTES = 12
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretBox:
    """Closes and opens secrets of one purpose."""

    active: str
    keys: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def derive(cls, keys: SealKeys, *, purpose: str) -> SecretBox:
        """Return the box of `purpose`, such as "push": nothing that another box has closed opens in it."""
        info = f"bulkhead secret box v1 {purpose}".encode()
        derived = {
            kid: HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(key)
            for kid, key in keys.keys.items()
        }
        return cls(active=keys.active, keys=derived)

    def seal(self, secret: str, *, bound_to: Sequence[str]) -> bytes:
        """Return `secret` encrypted under the active key, for this place only.

        Args:
            secret: 1 to MAX_SECRET_CHARS characters.
            bound_to: Where it is stored: tenant, row and whatever else must not change under it.

        Raises:
            InvalidInput: The secret is empty or too long.
        """
        if not 0 < len(secret) <= MAX_SECRET_CHARS:
            raise InvalidInput(f"a secret is 1 to {MAX_SECRET_CHARS} characters")
        head = _head(self.active)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        closed = AESGCM(self.keys[self.active]).encrypt(nonce, secret.encode(), _bound(head, bound_to))
        return head + nonce + closed

    def open(self, sealed: bytes, *, bound_to: Sequence[str]) -> str:
        """Return the secret that `seal` closed for this place.

        Raises:
            Unavailable: Its key is gone, or the bytes or their place are not what was stored.
        """
        kid = sealed[2 : 2 + sealed[1]].decode("ascii", "replace") if len(sealed) > 1 else ""
        key = self.keys.get(kid)
        if key is None or sealed[0] != _VERSION:
            raise Unavailable("a stored secret was encrypted under a key that is gone; it must be set again")
        head, rest = sealed[: 2 + sealed[1]], sealed[2 + sealed[1] :]
        try:
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], _bound(head, bound_to)).decode()
        except (InvalidTag, ValueError) as exc:
            raise Unavailable("a stored secret does not verify; it must be set again") from exc

    def is_current(self, sealed: bytes) -> bool:
        """Tell whether `sealed` is under the active key: another one's goes with the next rotation but one."""
        return sealed.startswith(_head(self.active))


def _head(kid: str) -> bytes:
    return bytes((_VERSION, len(kid))) + kid.encode("ascii")


def _bound(head: bytes, bound_to: Sequence[str]) -> bytes:
    # lengths keep ("ab", "c") and ("a", "bc") apart
    return head + b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in bound_to)
