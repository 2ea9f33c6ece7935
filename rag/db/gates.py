"""Refuse to serve as a role that could step over the wall (tenancy.md 2). Run by every process before it listens."""

from __future__ import annotations

from rag.db.pool import Database
from rag.errors import Misconfigured
from sql import load_queries

__all__ = ["check_role"]

_QUERIES = load_queries("gates")


async def check_role(database: Database, *, claims: bool = False) -> None:
    """Return only if this login is harmless. `claims` is the worker: it must be able to claim work, others must not.

    Raises:
        Misconfigured: It is superuser, has BYPASSRLS, may create roles or databases, replicates, owns anything, is a
            member of another role or acts for one, may TRUNCATE or reference a tenant table, has CREATE or TEMP
            anywhere; or it finds a table whose row-level security is off, not forced or not bound to the sealed
            tenant; or it may claim work and should not, or the other way round.
    """
    async with database.unsafe_unscoped(reason="the gate looks at the catalogue only") as session:
        powers = await session.fetch(_QUERIES["excessive_powers"], claims=claims)
        may_claim = await session.fetch_value(_QUERIES["may_claim"])
    if powers:
        listed = "; ".join(str(row["power"]) for row in powers)
        raise Misconfigured(f"the database login is too powerful to serve tenants ({listed}); use the app role")
    if claims and not may_claim:
        raise Misconfigured("the database login may not claim work; a worker uses the worker role")
