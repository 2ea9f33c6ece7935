"""What is known of an external server, what it offers, and what it answered.

Above: the rest of `rag.external`, the workflow `hybrid`. Below: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

__all__ = ["BEARER_HEADER", "ExternalResult", "ExternalServer", "ExternalTool"]

BEARER_HEADER = "authorization"
"""A credential for this header is a bearer token; for any other it is the header's whole value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalServer:
    """One server on a tenant's list."""

    server_id: UUID
    name: str
    """As the operator calls it; unique in the tenant."""
    url: str
    tools: tuple[str, ...]
    """What may be called there. A tool that is not named may not, whatever the server offers."""
    header: str | None = None
    """The header that takes the credential; None: the server asks for none."""
    credential: str | None = field(default=None, repr=False)
    """None with a header: nobody has set it yet, or what was set does not open any more."""
    sends_queries: bool = False
    """Whether words of the tenant's (a question, say) may go there."""
    enabled: bool = True

    @property
    def lacks_credential(self) -> bool:
        """Whether the server cannot be asked before an operator has set its credential."""
        return self.header is not None and self.credential is None

    def headers(self) -> dict[str, str]:
        """Return what a request carries besides its body: the server's own credential, and nothing of the caller."""
        if self.header is None or self.credential is None:
            return {}
        value = f"Bearer {self.credential}" if self.header == BEARER_HEADER else self.credential
        return {self.header: value}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalTool:
    """An allowed tool as the server describes it: text of a stranger's, bounded."""

    name: str
    description: str
    input_schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalResult:
    """What a tool answered: text of a stranger's, bounded."""

    text: str
    sha256: str
    """Of `text` in UTF-8, in hexadecimal."""
    truncated: bool
    """Whether the server said more than was kept."""
