"""How the budgets stand that one caller is held to: nobody else's are among them.

Above: the faces' usage. Below: `rag.db`, in the caller's own session.
"""

from __future__ import annotations

from datetime import datetime

from rag.budgets.usage import Account
from rag.db.pool import Session
from rag.identity.principal import Principal
from sql import load_queries

__all__ = ["read_standing"]

_QUERIES = load_queries("spending")


async def read_standing(session: Session, principal: Principal, moment: datetime) -> list[Account]:
    """Return the user's own budgets, the team's and those that the whole tenant shares, in the periods of `moment`:
    all that the next call is held against, also those that none was held against yet.
    """
    rows = await session.fetch(
        _QUERIES["standing"],
        tenant_id=principal.tenant_id,
        subject=principal.subject,
        team=principal.team,
        moment=moment,
    )
    return [Account(**dict(row)) for row in rows]
