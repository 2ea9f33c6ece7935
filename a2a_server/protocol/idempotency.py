"""Which requests are the same request: the caller's own key for one, and a digest of what it asks for. Pure.

Above: the handler, for SendMessage and SendStreamingMessage on every binding. Below: `incoming`, the SDK's types.

The key is opt-in. It comes as the header `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header; gRPC: metadata
of that name), or in the metadata of the message or of the request under EXTENSION. A messageId is no key: clients and
the protocol's compatibility kit send one id many times and mean as many tasks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from a2a.types.a2a_pb2 import SendMessageRequest
from google.protobuf.json_format import MessageToDict

from a2a_server.protocol.incoming import json_of
from rag.errors import InvalidInput

__all__ = ["EXTENSION", "HEADER", "MAX_KEY_CHARS", "IdempotencyKey", "header_key", "idempotency_key", "without_key"]

HEADER = "idempotency-key"
EXTENSION = "urn:bulkhead:a2a:idempotency:v1"
MAX_KEY_CHARS = 128
"""As the database bounds it."""
# RFC 8941, section 3.3.3: visible ASCII and spaces, with " and \ escaped
_QUOTED = re.compile(r'"(?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"')
_BARE = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
"""What most clients send: the key without quotes. A comma would make it a list: two keys, joined by a proxy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """The caller's own name for one request, and what that request asks for."""

    key: str
    body_hash: bytes
    """SHA-256; equal for requests that ask for the same."""


def idempotency_key(headers: Mapping[str, str], request: SendMessageRequest) -> IdempotencyKey | None:
    """Return the key that the caller gave for this request; None without one.

    Two requests ask for the same if they agree in the message's parts, context, task, references and metadata, and in
    the request's metadata. Which id the message has, whether the answer is waited for, and how, makes no difference: a
    client that tries again builds its message anew.

    Args:
        headers: Names in lower case.
        request: As it was received.

    Raises:
        InvalidInput: The key is not 1 to 128 visible characters, or header and metadata name two.
    """
    named = [
        found
        for found in (
            header_key(headers),
            _metadata_key(request.message.metadata),
            _metadata_key(request.metadata),
        )
        if found is not None
    ]
    if not named:
        return None
    if len(set(named)) > 1:
        raise InvalidInput(f"the request has two idempotency keys; send the header, or metadata {EXTENSION}")
    return IdempotencyKey(key=named[0], body_hash=_body_hash(request))


def header_key(headers: Mapping[str, str]) -> str | None:
    """Return the key of the header alone, quoted as the draft has it or bare; None without one.

    Raises:
        InvalidInput: It is not 1 to 128 visible characters.
    """
    value = headers.get(HEADER)
    if value is None:
        return None
    value = value.strip()
    if _QUOTED.fullmatch(value):
        return _checked(re.sub(r"\\(.)", r"\1", value[1:-1]))
    if _BARE.fullmatch(value) and not value.startswith('"'):
        return _checked(value)
    raise InvalidInput("Idempotency-Key is one string of visible ASCII characters, in double quotes or without any")


def without_key(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without the key: it names a request, and is no part of what is asked."""
    return {name: value for name, value in metadata.items() if name != EXTENSION}


def _metadata_key(metadata: Any) -> str | None:
    if EXTENSION not in metadata.fields:
        return None
    value = json_of(metadata)[EXTENSION]
    if not isinstance(value, str):
        raise InvalidInput(f"metadata {EXTENSION} is a string: the idempotency key")
    if any(not "\x20" <= character <= "\x7e" for character in value):
        raise InvalidInput(f"metadata {EXTENSION} holds characters that are not visible ASCII")
    return _checked(value)


def _checked(key: str) -> str:
    if not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidInput(f"an idempotency key is 1 to {MAX_KEY_CHARS} characters long")
    return key


def _body_hash(request: SendMessageRequest) -> bytes:
    message = MessageToDict(request.message)
    asked = {
        "parts": message.get("parts", []),
        "context": request.message.context_id,
        "task": request.message.task_id,
        "references": list(request.message.reference_task_ids),
        "metadata": without_key(message.get("metadata", {})),
        "request": without_key(json_of(request.metadata)),
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).digest()
