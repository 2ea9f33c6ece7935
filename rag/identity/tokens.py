"""RS256 JSON Web Tokens: issued for one audience, verified completely or not at all (RFC 7519, RFC 8725).

Below: `keys`, `external`. Above: both faces (verify), the CLI and the worker (issue).
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from rag.clock import Clock, system_clock
from rag.errors import InvalidInput, Unauthenticated
from rag.identity.claims import canonical_uuid, number, text, texts, times
from rag.identity.external import ExternalIssuer
from rag.identity.keys import SigningKey
from rag.identity.principal import Principal
from rag.identity.scopes import Audience, Scope, parse_scopes

__all__ = ["TokenIssuer", "TokenVerifier"]

MAX_TOKEN_CHARS = 8192
"""Longer ones are refused before any cryptography: a flood of huge tokens must cost nothing."""
REQUIRED_CLAIMS = ("iss", "aud", "sub", "tenant_id", "scope", "exp", "nbf", "iat", "jti")
"""Of our own tokens."""
EXTERNAL_CLAIMS = ("iss", "aud", "sub", "exp", "iat")
"""Of another issuer's; what it may name otherwise (tenant, scope, token id) `ExternalIssuer` asks for."""
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
    """Verifies tokens for exactly one audience: ours, and those of an external issuer where there is one."""

    keys: Mapping[str, RSAPublicKey]
    """Ours, by id. The two issuers' keys never mix: a token's `iss` says which are asked."""
    issuer: str
    audience: Audience
    external: ExternalIssuer | None = None
    clock: Clock = system_clock

    @property
    def generation(self) -> int:
        """Another number whenever a key set changed: tokens that were verified before are to be verified again."""
        return 0 if self.external is None else self.external.keys.generation

    def verify(self, token: str) -> Principal:
        """Return the caller that `token` proves.

        In order: 1 the length is bounded; 2 the header names RS256 and a kid, and `iss` an issuer, that we know (never
        a key that the token brings along); 3 the signature holds under that issuer's key; 4 the audience is exactly
        ours; 5 exp, nbf and iat hold within LEEWAY_S; 6 every required claim is there and has its type. Revocation is
        not looked at here: the database does that in the first statement of every session.

        Raises:
            Unauthenticated: Any step failed. The message does not say which.
            Unavailable: The external issuer's token cannot be verified, since there are no keys to verify it with.
        """
        with _one_refusal():
            return self._verified(token, _read(token))

    async def verify_with_news(self, token: str) -> Principal:
        """As `verify`, but where the external issuer's key is not known, let it publish a new one first.

        Raises:
            Unauthenticated: As `verify`.
            Unavailable: As `verify`.
        """
        with _one_refusal():
            unverified = _read(token)
            external = self._external(unverified)
            if external is not None and not external.keys.knows(unverified.kid):
                await external.keys.look_again()
            return self._verified(token, unverified)

    def _external(self, unverified: _Unverified) -> ExternalIssuer | None:
        is_external = self.external is not None and unverified.issuer == self.external.issuer
        return self.external if is_external and unverified.issuer != self.issuer else None

    def _verified(self, token: str, unverified: _Unverified) -> Principal:
        external = self._external(unverified)
        if external is None:
            claims = _checked(token, self.keys[unverified.kid], issuer=self.issuer, required=REQUIRED_CLAIMS)
            return self._own_principal(claims)
        key = external.keys.find(unverified.kid)
        if key is None:
            raise InvalidInput("the issuer publishes no such key")
        claims = _checked(token, key, issuer=external.issuer, required=EXTERNAL_CLAIMS)
        return external.principal_of(unverified.header, claims, self.clock())

    def _own_principal(self, claims: Mapping[str, Any]) -> Principal:
        if claims["aud"] != self.audience.value:
            raise InvalidInput("for another audience")
        issued_at, expires_at = times(claims, self.clock())
        token_ids = [text(claims, "jti")]
        actor = None
        if "act" in claims:
            act = claims["act"]
            if not isinstance(act, dict):
                raise InvalidInput("act is not an object")
            actor = text(cast("dict[str, Any]", act), "sub")
            token_ids += texts(cast("dict[str, Any]", act).get("jti", []))
            if "iat" in act:
                issued_at = min(issued_at, number(cast("dict[str, Any]", act), "iat"))
        return Principal(
            tenant_id=canonical_uuid(text(claims, "tenant_id")),
            subject=text(claims, "sub"),
            scopes=parse_scopes(text(claims, "scope", empty=True)),
            groups=tuple(texts(claims.get("groups", []))),
            team=text(claims, "team") if "team" in claims else None,
            actor=actor,
            token_ids=tuple(token_ids),
            issued_at=issued_at,
            expires_at=expires_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unverified:
    """What anybody may have written: it chooses the key that must then hold, and nothing else."""

    header: Mapping[str, Any]
    kid: str
    issuer: str


def _read(token: str) -> _Unverified:
    if len(token) > MAX_TOKEN_CHARS:
        raise InvalidInput("the token is too long")
    parts = jwt.decode_complete(token, options={"verify_signature": False})
    header: dict[str, Any] = parts["header"]
    if header.get("alg") != "RS256":
        raise jwt.InvalidAlgorithmError("only RS256")
    return _Unverified(header=header, kid=text(header, "kid"), issuer=text(parts["payload"], "iss"))


def _checked(token: str, key: RSAPublicKey, *, issuer: str, required: tuple[str, ...]) -> dict[str, Any]:
    return jwt.decode(
        token,
        key,
        algorithms=["RS256"],
        issuer=issuer,
        # audience and times are checked by the caller: the one by the issuer's rule, the others by the clock passed in
        options={
            "require": list(required),
            "verify_aud": False,
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
        },
    )


@contextmanager
def _one_refusal() -> Generator[None]:
    try:
        yield
    except (jwt.PyJWTError, InvalidInput, ValueError, TypeError, KeyError, RecursionError) as exc:
        raise Unauthenticated("the token is not valid here") from exc
