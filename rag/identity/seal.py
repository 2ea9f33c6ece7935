"""The sealed tenant context: what a transaction carries to the database instead of a claim (tenancy.md 1).

    <kid>.<hex HMAC-SHA256 of payload>.<payload JSON>

The database verifies the same mac with precomputed pads (sql/migrations/0001_create_seal.sql). Below: `principal`.
Above: `rag.db`, which is the only place that sends a seal anywhere, always as a bound parameter.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rag.clock import Clock, system_clock
from rag.errors import Misconfigured
from rag.identity.keys import turn, write_private
from rag.identity.principal import Principal

__all__ = ["SealKeys", "Sealer", "ensure_seal_keys", "hmac_pads", "load_seal_keys"]

SEAL_LIFETIME_S = 60.0
"""A seal is made per transaction; a minute outlives any statement timeout."""
_BLOCK = 64
_IPAD, _OPAD = 0x36, 0x5C


@dataclass(frozen=True, slots=True, kw_only=True)
class SealKeys:
    """Secret keys by id; `active` seals, the other (during a rotation) only verifies."""

    active: str
    keys: dict[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealer:
    """Seals a principal for one transaction."""

    keys: SealKeys
    clock: Clock = system_clock

    def seal(self, principal: Principal) -> str:
        """Return the context that proves `principal` to the database for SEAL_LIFETIME_S seconds."""
        payload = json.dumps(
            {
                "tenant": str(principal.tenant_id),
                "sub": principal.subject,
                "groups": list(principal.groups),
                "jti": list(principal.token_ids),
                "iat": principal.issued_at,
                "exp": self.clock() + SEAL_LIFETIME_S,
            },
            separators=(",", ":"),
        )
        mac = hmac.digest(self.keys.keys[self.keys.active], payload.encode(), "sha256").hex()
        return f"{self.keys.active}.{mac}.{payload}"


def hmac_pads(key: bytes) -> tuple[bytes, bytes]:
    """Return the inner and outer pad of HMAC-SHA256 for `key` (RFC 2104), so that SQL needs only sha256()."""
    if len(key) > _BLOCK:
        raise ValueError("seal keys are at most 64 bytes")
    padded = key.ljust(_BLOCK, b"\0")
    return bytes(byte ^ _IPAD for byte in padded), bytes(byte ^ _OPAD for byte in padded)


def ensure_seal_keys(path: Path) -> SealKeys:
    """Return the keys of `path`, making a first one if there is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with turn(path.parent):
        if not path.exists():
            kid = secrets.token_hex(4)
            key = base64.b64encode(secrets.token_bytes(32)).decode()
            write_private(path, json.dumps({"active": kid, "keys": {kid: key}}, indent=2).encode())
    return load_seal_keys(path)


def load_seal_keys(path: Path) -> SealKeys:
    """Return the keys of the JSON file {"active": kid, "keys": {kid: base64 of 32 bytes}}.

    Raises:
        Misconfigured: The file is missing, malformed, or holds more than two keys.
    """
    try:
        parsed: Any = json.loads(path.read_text(encoding="utf-8"))
        keys = {str(kid): base64.b64decode(text, validate=True) for kid, text in parsed["keys"].items()}
        active = cast("str", parsed["active"])
    except OSError as exc:
        raise Misconfigured(f"the seal keys file {path.name} cannot be read; `bulkhead migrate` makes one") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Misconfigured(f'{path.name} is not of the form {{"active": kid, "keys": {{kid: base64}}}}') from exc
    if active not in keys or not 1 <= len(keys) <= 2 or any(len(key) < 32 for key in keys.values()):
        raise Misconfigured(f"{path.name} needs one or two keys of 32 bytes or more, the active one among them")
    return SealKeys(active=active, keys=keys)
