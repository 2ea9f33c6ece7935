"""A remembered token is as good as its signature, its time and its half minute."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from uuid import uuid4

import pytest

from rag.errors import Unauthenticated
from rag.identity.claims import LEEWAY_S
from rag.identity.keys import ensure_keys, load_public_keys, load_signing_key
from rag.identity.scopes import Audience, Scope
from rag.identity.tokens import TokenIssuer, TokenVerifier
from rag.identity.verified import REMEMBERED_S, VerifiedTokens

pytestmark = pytest.mark.anyio
NOW = 1_700_000_000.0


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def clock_fixture() -> Hands:
    """Stand still."""
    return Hands()


def make(folder: Path, clock: Hands, *, max_tokens: int = 10) -> tuple[TokenIssuer, VerifiedTokens]:
    """Return an issuer and a remembering verifier of its tokens."""
    ensure_keys(folder)
    verifier = TokenVerifier(keys=load_public_keys(folder), issuer="us", audience=Audience.MCP, clock=clock)
    issuer = TokenIssuer(signing_key=load_signing_key(folder), issuer="us", clock=clock)
    return issuer, VerifiedTokens(verifier, clock=clock, max_tokens=max_tokens)


def token(issuer: TokenIssuer, *, lifetime_s: float = 600.0) -> str:
    """Return a fresh token."""
    return issuer.issue(
        tenant_id=uuid4(), subject="ada", audience=Audience.MCP, scopes=[Scope.CORPUS_READ], lifetime_s=lifetime_s
    )


async def test_a_token_is_verified_once_in_half_a_minute(tmp_path: Path, clock: Hands) -> None:
    issuer, verified = make(tmp_path, clock)
    one = token(issuer)
    first = await verified.verify(one)
    clock.now += REMEMBERED_S
    assert await verified.verify(one) is first
    clock.now += 1
    again = await verified.verify(one)
    assert again == first
    assert again is not first
    clock.now -= 20  # set back: nothing is taken on trust from the future
    assert await verified.verify(one) is not again


async def test_a_token_ends_in_time_though_it_is_remembered(tmp_path: Path, clock: Hands) -> None:
    issuer, verified = make(tmp_path, clock)
    short = token(issuer, lifetime_s=5)
    await verified.verify(short)
    clock.now += 5 + LEEWAY_S
    with pytest.raises(Unauthenticated):
        await verified.verify(short)


async def test_another_payload_under_a_remembered_signature_is_refused(tmp_path: Path, clock: Hands) -> None:
    issuer, verified = make(tmp_path, clock)
    one = token(issuer)
    await verified.verify(one)
    header, payload, signature = one.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "tenant_id": str(uuid4())}).encode()).decode().rstrip("=")
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            await verified.verify(f"{header}.{forged}.{signature}")
    with pytest.raises(Unauthenticated):
        await verified.verify(one + " \udc00")


async def test_the_memory_is_bounded_and_forgets_what_was_not_used_longest(tmp_path: Path, clock: Hands) -> None:
    issuer, verified = make(tmp_path, clock, max_tokens=2)
    tokens = [token(issuer) for _ in range(3)]
    first = await verified.verify(tokens[0])
    second = await verified.verify(tokens[1])
    assert await verified.verify(tokens[0]) is first
    await verified.verify(tokens[2])
    assert await verified.verify(tokens[0]) is first
    assert await verified.verify(tokens[1]) is not second
