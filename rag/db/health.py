"""Whether the database answers: what a readiness probe asks. Above: both faces. Below: `pool`."""

from __future__ import annotations

import anyio

from rag.db.pool import Database
from rag.errors import Unavailable
from sql import load_queries

__all__ = ["ping"]

PING_TIMEOUT_S = 2.0
_QUERIES = load_queries("health")


async def ping(database: Database) -> None:
    """Return if the database answers within PING_TIMEOUT_S.

    Raises:
        Unavailable: It does not.
    """
    try:
        with anyio.fail_after(PING_TIMEOUT_S):
            async with database.unsafe_unscoped(reason="a probe reads no table") as session:
                await session.fetch_value(_QUERIES["ping"])
    except TimeoutError as exc:
        raise Unavailable("the database does not answer") from exc
