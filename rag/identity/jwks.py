"""The key set of an issuer that is not us: bytes from its JWKS URL in, RS256 keys by id out (RFC 7517).

Above: `remote_keys`. What comes over the network is looked at more strictly than our own file (`keys`): a set that
holds a secret, or an RSA key for RS256 that is too weak, was written by somebody who should not be trusted with the
rest of it, and is refused whole. Keys of other kinds and for other purposes are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import anyio
import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm

from rag.errors import Unavailable
from rag.identity.keys import KEY_BITS

__all__ = ["FETCH_BOUND_S", "MAX_KEY_SET_BYTES", "fetch_jwks", "parse_jwks"]

FETCH_BOUND_S = 5.0
"""Of the whole exchange: a start, and a caller with a new key, wait no longer."""
MAX_KEY_SET_BYTES = 256 * 1024
"""A hundred RSA keys with their certificates are some 200 KiB."""
MAX_KEYS = 100
MAX_KEY_BITS = 8192
"""A check of a signature costs the square of this."""
MAX_KID_CHARS = 512
_SECRETS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""RFC 7518, section 6: the members that only private and symmetric keys have."""


async def fetch_jwks(
    client: httpx.AsyncClient, url: str, *, bound_s: float = FETCH_BOUND_S
) -> Mapping[str, RSAPublicKey]:
    """Return the keys that `url` publishes.

    Raises:
        Unavailable: There is no whole answer within `bound_s`, it is no key set, it is too large, it redirects, or it
            is refused as `parse_jwks` says. The message says which.
    """
    # no encoding: a small compressed answer may be a huge one
    headers = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}
    body = bytearray()
    try:
        with anyio.fail_after(bound_s):
            request = client.stream("GET", url, headers=headers, follow_redirects=False, timeout=bound_s)
            async with request as response:
                if response.status_code != 200:
                    raise Unavailable(f"the key set's URL answers with HTTP {response.status_code}")
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise Unavailable("the key set is compressed, which was not asked for")
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_KEY_SET_BYTES:
                        raise Unavailable(f"the key set is larger than {MAX_KEY_SET_BYTES // 1024} KiB")
    except TimeoutError as exc:
        raise Unavailable(f"the key set's URL does not answer within {bound_s:g} s") from exc
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise Unavailable(f"the key set's URL cannot be reached ({type(exc).__name__})") from exc
    return parse_jwks(bytes(body))


def parse_jwks(document: bytes) -> Mapping[str, RSAPublicKey]:
    """Return the keys of a JSON Web Key Set that may verify RS256, by their id. There may be none.

    Raises:
        Unavailable: It is no key set, has too many keys, holds a secret, names two keys alike, or has a key for RS256
            that is malformed, shorter than KEY_BITS or longer than MAX_KEY_BITS.
    """
    try:
        parsed: Any = json.loads(document)
    except (ValueError, RecursionError) as exc:
        raise Unavailable("the key set is not JSON") from exc
    entries: Any = cast("dict[str, Any]", parsed).get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[object]", entries)):
        raise Unavailable("the answer is not a JSON Web Key Set")
    if len(cast("list[object]", entries)) > MAX_KEYS:
        raise Unavailable(f"the key set has more than {MAX_KEYS} keys")
    keys: dict[str, RSAPublicKey] = {}
    for entry in cast("list[dict[str, Any]]", entries):
        if entry.get("kty") == "oct" or not _SECRETS.isdisjoint(entry):
            raise Unavailable("the key set holds a secret; only public keys belong there")
        if not _for_rs256(entry):
            continue
        kid = str(entry["kid"])
        if kid in keys:
            raise Unavailable("the key set names two keys alike")
        keys[kid] = _public_key(entry)
    return keys


def _for_rs256(entry: Mapping[str, Any]) -> bool:
    # a key without an id is left out: tokens choose theirs by it
    kid: Any = entry.get("kid")
    uses: Any = entry.get("key_ops", ["verify"])
    return (
        entry.get("kty") == "RSA"
        and entry.get("alg", "RS256") == "RS256"
        and entry.get("use", "sig") == "sig"
        and isinstance(uses, list)
        and "verify" in uses
        and isinstance(kid, str)
        and 0 < len(kid) <= MAX_KID_CHARS
    )


def _public_key(entry: dict[str, Any]) -> RSAPublicKey:
    try:
        # only what makes an RSA public key: the certificates and URLs that an entry may carry say nothing to us
        key = RSAAlgorithm.from_jwk({"kty": "RSA", "n": entry["n"], "e": entry["e"]})
    except (KeyError, TypeError, ValueError, AttributeError, jwt.InvalidKeyError) as exc:
        raise Unavailable("the key set holds a malformed key") from exc
    if not isinstance(key, RSAPublicKey) or not KEY_BITS <= key.key_size <= MAX_KEY_BITS:
        raise Unavailable(f"the key set holds a key that has not {KEY_BITS} to {MAX_KEY_BITS} bits")
    return key
