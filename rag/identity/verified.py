"""Remembers for half a minute which tokens were verified: a signature costs a third of a small request (mcp.md 3).

Above: the doors of both faces. Below: `tokens`. What is remembered is that signature and claims were right, which
nothing but a change of keys can make wrong: then all of it is forgotten. The end of a token's time is looked at again
on every use, and so is revocation, by the database in the first statement of every session.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from rag.clock import Clock, system_clock
from rag.identity.claims import LEEWAY_S
from rag.identity.principal import Principal
from rag.identity.tokens import TokenVerifier

__all__ = ["VerifiedTokens"]

REMEMBERED_S = 30.0
MAX_TOKENS = 10_000


class VerifiedTokens:
    """A verifier with a memory. Tokens themselves are not kept, only their digests."""

    def __init__(self, verifier: TokenVerifier, *, clock: Clock = system_clock, max_tokens: int = MAX_TOKENS) -> None:
        """Ask `verifier` about tokens that are new or were verified more than REMEMBERED_S seconds ago."""
        self._verifier = verifier
        self._clock = clock
        self._max_tokens = max_tokens
        self._generation = verifier.generation
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    async def verify(self, token: str) -> Principal:
        """Return the caller that `token` proves; waits for nothing unless an external issuer's key is not known.

        Raises:
            Unauthenticated: As `TokenVerifier.verify`.
            Unavailable: As `TokenVerifier.verify`.
        """
        if self._generation != self._verifier.generation:
            self._known.clear()
            self._generation = self._verifier.generation
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = self._clock()
        known = self._known.get(digest)
        # a clock that was set back makes everything new
        if known is not None and 0 <= now - known[0] <= REMEMBERED_S and now < known[1].expires_at + LEEWAY_S:
            self._known.move_to_end(digest)
            return known[1]
        self._known.pop(digest, None)
        principal = await self._verifier.verify_with_news(token)
        # NOTE: a change of keys during the wait clears this entry too, with the next call
        self._known[digest] = (now, principal)
        if len(self._known) > self._max_tokens:
            self._known.popitem(last=False)
        return principal
