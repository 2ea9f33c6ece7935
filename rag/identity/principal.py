"""Who is asking, as a value. Only a verified Principal reaches data: `rag.db` opens a tenant session for nothing else.

Built by `tokens.TokenVerifier.verify` from a checked token, or by `for_grant` from a stored grant whose revocation the
database checks again at the first statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from rag.errors import Forbidden, InvalidInput
from rag.identity.scopes import Scope

__all__ = ["MAX_NAME", "Principal", "require"]

MAX_NAME = 256
"""Longest subject, group, team or token id, in characters: they are stored, and travel in every seal."""
MAX_GROUPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A verified caller. Revoking any of `token_ids` ends it: its token's own, and those it was exchanged from."""

    tenant_id: UUID
    subject: str
    scopes: frozenset[Scope]
    groups: tuple[str, ...] = ()
    team: str | None = None
    actor: str | None = None
    """The service that acts for the subject (RFC 8693 `act.sub`), or None when the subject acts itself."""
    token_ids: tuple[str, ...]
    issued_at: float
    """Unix seconds; a user or tenant revoked at or after this moment is refused."""
    expires_at: float

    def __post_init__(self) -> None:
        """Refuse names that could not be stored or sealed.

        Raises:
            InvalidInput: A name is empty, too long or not printable, or there are too many groups.
        """
        names = [self.subject, *self.groups, *self.token_ids]
        names += [name for name in (self.team, self.actor) if name is not None]
        for name in names:
            if not 0 < len(name) <= MAX_NAME or not name.isprintable():
                raise InvalidInput("a name in the token is empty, too long or not printable")
        if len(self.groups) > MAX_GROUPS or not self.token_ids:
            raise InvalidInput(f"a token needs an id and at most {MAX_GROUPS} groups")


def require(principal: Principal, scope: Scope) -> None:
    """Return only if the caller's token carries `scope`.

    Raises:
        Forbidden: It does not; the message names the scope to ask for.
    """
    if scope not in principal.scopes:
        raise Forbidden(f"this needs the scope {scope.value}")
