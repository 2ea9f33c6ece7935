"""RS256 JSON Web Tokens: issued for one audience, verified completely or not at all (RFC 7519, RFC 8725).

Below: `keys`. Above: both faces (verify), the CLI and the worker (issue).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from rag.clock import Clock, system_clock
from rag.errors import InvalidInput, Unauthenticated
from rag.identity.keys import SigningKey
from rag.identity.principal import Principal
from rag.identity.scopes import Audience, Scope, parse_scopes

__all__ = ["TokenIssuer", "TokenVerifier"]

MAX_TOKEN_CHARS = 8192
"""Longer ones are refused before any cryptography: a flood of huge tokens must cost nothing."""
LEEWAY_S = 5.0
REQUIRED_CLAIMS = ("iss", "aud", "sub", "tenant_id", "scope", "exp", "nbf", "iat", "jti")
EXCHANGE_LIFETIME_S = 300.0
"""tenancy.md 5: a token between services lives at most five minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """Signs tokens with the active key."""

    signing_key: SigningKey
    issuer: str
    clock: Clock = system_clock

    def issue(
        self,
        *,
        tenant_id: UUID,
        subject: str,
        audience: Audience,
        scopes: Iterable[Scope],
        lifetime_s: float,
        groups: Iterable[str] = (),
        team: str | None = None,
        act: Mapping[str, object] | None = None,
    ) -> str:
        """Return a signed token. `act` names the service that acts for the subject (RFC 8693, section 4.1).

        `iat` is not rounded: a revocation between two tokens must find them on its two sides.
        """
        now = self.clock()
        claims: dict[str, object] = {
            "iss": self.issuer,
            "aud": audience.value,
            "sub": subject,
            "tenant_id": str(tenant_id),
            "scope": " ".join(sorted(scope.value for scope in scopes)),
            "iat": now,
            "nbf": int(now),
            "exp": int(now + lifetime_s),
            "jti": secrets.token_urlsafe(12),
        }
        group_list = sorted(groups)
        if group_list:
            claims["groups"] = group_list
        if team is not None:
            claims["team"] = team
        if act is not None:
            claims["act"] = dict(act)
        return jwt.encode(claims, self.signing_key.key, algorithm="RS256", headers={"kid": self.signing_key.kid})

    def exchange(self, principal: Principal, *, actor: str, audience: Audience, scopes: Iterable[Scope]) -> str:
        """Return a token by which `actor` acts for `principal` at another audience (RFC 8693 shape, tenancy.md 5).

        The scopes are narrowed to those that the principal itself has. `act.jti` carries the ids that the principal
        stands on, so that revoking the original token ends this one in the same moment.
        """
        return self.issue(
            tenant_id=principal.tenant_id,
            subject=principal.subject,
            audience=audience,
            scopes=principal.scopes & frozenset(scopes),
            lifetime_s=EXCHANGE_LIFETIME_S,
            groups=principal.groups,
            team=principal.team,
            act={"sub": actor, "jti": list(principal.token_ids), "iat": principal.issued_at},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenVerifier:
    """Verifies tokens for exactly one audience."""

    keys: Mapping[str, RSAPublicKey]
    issuer: str
    audience: Audience
    clock: Clock = system_clock

    def verify(self, token: str) -> Principal:
        """Return the caller that `token` proves.

        In order: 1 the length is bounded; 2 the header names RS256 and a kid that we know (never a key that the token
        brings along); 3 the signature holds; 4 issuer and audience are exactly ours; 5 exp, nbf and iat hold within
        LEEWAY_S; 6 every required claim is there and has its type. Revocation is not looked at here: the database does
        that in the first statement of every session.

        Raises:
            Unauthenticated: Any step failed. The message does not say which.
        """
        try:
            return self._verify(token)
        except (jwt.PyJWTError, InvalidInput, ValueError, TypeError, KeyError) as exc:
            raise Unauthenticated("the token is not valid here") from exc

    def _verify(self, token: str) -> Principal:
        if len(token) > MAX_TOKEN_CHARS:
            raise InvalidInput("the token is too long")
        unverified_header = jwt.get_unverified_header(token)
        if unverified_header.get("alg") != "RS256":
            raise jwt.InvalidAlgorithmError("only RS256")
        key = self.keys[str(unverified_header["kid"])]
        claims = jwt.decode(
            token,
            key,
            algorithms=["RS256"],
            issuer=self.issuer,
            audience=self.audience.value,
            # time is checked below, against the clock that was passed in
            options={
                "require": list(REQUIRED_CLAIMS),
                "strict_aud": True,
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
        now = self.clock()
        expires_at, not_before, issued_at = (_number(claims, name) for name in ("exp", "nbf", "iat"))
        if expires_at + LEEWAY_S <= now or not_before - LEEWAY_S > now or issued_at - LEEWAY_S > now:
            raise jwt.ExpiredSignatureError("outside its time")
        act = claims.get("act")
        token_ids = [_text(claims, "jti")]
        actor = None
        if act is not None:
            if not isinstance(act, dict):
                raise InvalidInput("act is not an object")
            actor = _text(cast("dict[str, Any]", act), "sub")
            token_ids += _texts(cast("dict[str, Any]", act).get("jti", []))
            if "iat" in act:
                issued_at = min(issued_at, _number(cast("dict[str, Any]", act), "iat"))
        return Principal(
            tenant_id=_uuid(_text(claims, "tenant_id")),
            subject=_text(claims, "sub"),
            scopes=parse_scopes(_text(claims, "scope", empty=True)),
            groups=tuple(_texts(claims.get("groups", []))),
            team=_text(claims, "team") if "team" in claims else None,
            actor=actor,
            token_ids=tuple(token_ids),
            issued_at=issued_at,
            expires_at=expires_at,
        )


def _number(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise InvalidInput(f"{name} is not a time")
    return float(value)


def _text(claims: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    value = claims[name]
    if not isinstance(value, str) or not (value or empty):
        raise InvalidInput(f"{name} is not a text")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in cast("list[object]", value)):
        raise InvalidInput("expected a list of texts")
    return cast("list[str]", value)


def _uuid(text: str) -> UUID:
    value = UUID(text)
    if str(value) != text:  # UUID() also takes braces, urn: and capitals; a claim has one spelling
        raise InvalidInput("tenant_id is not a canonical UUID")
    return value
