"""What a token may be good for. The ground of identity: no scope, no action."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Audience", "Scope", "parse_scopes"]


class Scope(StrEnum):
    """One right that a token can carry, in OAuth 2.0 `scope` syntax (RFC 6749, section 3.3)."""

    CORPUS_READ = "corpus:read"
    CORPUS_WRITE = "corpus:write"
    TASKS_RUN = "tasks:run"
    USAGE_READ = "usage:read"
    ADMIN = "admin"


class Audience(StrEnum):
    """The two doors. A token for one is refused at the other (tenancy.md 5: no token passthrough)."""

    MCP = "mcp-server"
    A2A = "a2a-server"


def parse_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes of a space-separated claim that this version knows; unknown ones grant nothing."""
    known = {scope.value: scope for scope in Scope}
    return frozenset(known[word] for word in text.split() if word in known)
