"""Paging cursors that only this installation can mint, each good for one list of one tenant.

Beside `seal`: both faces use these for their lists. A cursor names a position and grants nothing; the signature is
there so that a forged or borrowed one is refused instead of paging over values that a caller chose.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from typing import Any, cast
from uuid import UUID

from rag.errors import InvalidCursor

__all__ = ["MAX_CURSOR_CHARS", "mint", "read"]

MAX_CURSOR_CHARS = 8192
"""Holds the longest position: a source of 1024 characters at four bytes each."""
_MAC_BYTES = 16
"""HMAC-SHA256 cut to 128 bits, as RFC 2104 section 5 allows."""


def mint(key: bytes, kind: str, tenant_id: UUID, position: list[Any]) -> str:
    """Return the cursor for `position`, a list of JSON values, in the list `kind` of this tenant."""
    payload = json.dumps(position, separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(_mac(key, kind, tenant_id, payload) + payload).rstrip(b"=").decode()


def read(key: bytes, kind: str, tenant_id: UUID, text: str) -> list[Any]:
    """Return the position that `mint` was given.

    Raises:
        InvalidCursor: The text was not minted with this key for this kind and tenant.
    """
    if len(text) > MAX_CURSOR_CHARS:
        raise InvalidCursor
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidCursor from exc
    given, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
    if not hmac.compare_digest(given, _mac(key, kind, tenant_id, payload)):
        raise InvalidCursor
    return cast("list[Any]", json.loads(payload))


def _mac(key: bytes, kind: str, tenant_id: UUID, payload: bytes) -> bytes:
    signed = kind.encode() + b"\0" + tenant_id.bytes + b"\0" + payload
    return hmac.digest(key, signed, "sha256")[:_MAC_BYTES]
