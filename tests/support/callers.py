"""Callers and clocks for tests of limits that need no database: a principal as a verified token would make it.

Above: tests. Below: `rag.identity`.
"""

from __future__ import annotations

import time
from uuid import UUID, uuid4

from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.limits.pauses import Pauses

__all__ = ["PROMPT", "Hand", "caller"]

PROMPT = Pauses(pause_s=0.0)
"""For tests that are refused many times and measure something else."""


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        """Start well after zero, as clocks do."""
        self.now = 1_000_000.0

    def __call__(self) -> float:
        """Return the seconds to which it was moved."""
        return self.now


def caller(tenant_id: UUID | None = None, user: str = "ada") -> Principal:
    """Return a caller of the tenant, or of a new one."""
    return Principal(
        tenant_id=uuid4() if tenant_id is None else tenant_id,
        subject=user,
        scopes=frozenset(Scope),
        token_ids=("t",),
        issued_at=time.time(),
        expires_at=time.time() + 600,
    )
