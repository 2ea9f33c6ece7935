"""An issuer besides our own, such as a company's identity provider: its keys, and how its tokens are read.

Above: `tokens`, which picks this by the token's `iss` and has checked the signature by then. Below: `claims`, a source
of keys. The issuer is trusted to say who a user is, of which tenant, with which scopes and groups. It is not trusted
to speak for anybody's other token: it cannot exchange (`act`), and a token's id and time are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from rag.errors import InvalidInput
from rag.identity.claims import LEEWAY_S, canonical_uuid, text, texts, times
from rag.identity.principal import Principal
from rag.identity.scopes import parse_scopes

__all__ = ["ClaimNames", "ExternalIssuer", "KeySource"]

_TYPES = frozenset({"jwt", "at+jwt", "application/at+jwt"})
"""Of the header's `typ`: RFC 9068, section 4, and the usual one. A logout token or a DPoP proof is no access token."""
_REFUSED_CLAIMS = ("act", "cnf")
"""`act`: only we exchange, or it could name another user's token ids. `cnf`: bound to a key; we take bearer tokens."""


class KeySource(Protocol):
    """Where the issuer's keys come from; `remote_keys.RemoteKeys` is one."""

    @property
    def generation(self) -> int:
        """Another number whenever the keys are others."""
        ...

    def knows(self, kid: str) -> bool:
        """Tell whether there is a key of that id."""
        ...

    def find(self, kid: str) -> RSAPublicKey | None:
        """Return the key of that id. Raises Unavailable where there is no key set at all."""
        ...

    async def look_again(self) -> None:
        """Let the source learn of new keys, unless it did so a moment ago."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimNames:
    """What the issuer calls the claims that no standard names."""

    tenant: str = "tenant_id"
    """Holds the tenant's id, a UUID."""
    groups: str = "groups"
    team: str = "team"
    token_id: str = "jti"  # noqa: S105  # a claim's name


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIssuer:
    """What we know of the issuer, for one door."""

    issuer: str
    audience: str
    """What its tokens for this door carry as `aud`."""
    keys: KeySource
    names: ClaimNames = ClaimNames()

    def principal_of(self, header: Mapping[str, Any], claims: Mapping[str, Any], now: float) -> Principal:
        """Return the caller that a token of this issuer proves.

        In order: 1 it is an access token and claims nothing that we could not honour; 2 it is for this door alone;
        3 it is in its time; 4 tenant, subject, scope and token id are there and have their types.

        Raises:
            InvalidInput: It does not hold.
            KeyError: A claim is missing.
            ValueError: The tenant is no UUID.
        """
        if str(header.get("typ", "JWT")).lower() not in _TYPES:
            raise InvalidInput("not an access token")
        if any(name in claims for name in _REFUSED_CLAIMS):
            raise InvalidInput("the token is delegated, or bound to a key")
        # a list of one says the same; with a second audience the token is good elsewhere, and whoever has it there
        # could bring it here
        if claims["aud"] not in (self.audience, [self.audience]):
            raise InvalidInput("for another audience")
        issued_at, expires_at = times(claims, now)
        groups: object = claims.get(self.names.groups, [])
        return Principal(
            tenant_id=canonical_uuid(text(claims, self.names.tenant)),
            subject=text(claims, "sub"),
            scopes=parse_scopes(_scope(claims)),
            groups=tuple(texts(groups)),
            team=text(claims, self.names.team) if self.names.team in claims else None,
            token_ids=(text(claims, self.names.token_id),),
            # its clock may be ahead of ours, and a token from before a revocation must not seem to come after it
            issued_at=issued_at - LEEWAY_S,
            expires_at=expires_at,
        )


def _scope(claims: Mapping[str, Any]) -> str:
    # RFC 9068: `scope`, a text; others say `scp`, a text or a list
    value: Any = claims["scope"] if "scope" in claims else claims["scp"]
    return value if isinstance(value, str) else " ".join(texts(value))
