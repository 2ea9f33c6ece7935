"""What runs do to the outside, each call with one result (docs/adr/0013-recorded-calls.md), in PostgreSQL.

Above: the worker's journal. Below: `rag.db` and sql/queries/tasks.sql.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from rag.db.pool import Database, Row, Session
from rag.identity.principal import Principal
from rag.tasks.values import Begun, CallKind, Usage
from sql import load_queries

__all__ = ["begin_call", "finish_call", "usage_of"]

_QUERIES = load_queries("tasks")


async def begin_call(
    database: Database,
    principal: Principal,
    task_id: UUID,
    key: str,
    *,
    fence: int,
    kind: CallKind,
    name: str,
    max_calls: int,
    max_tokens: int,
) -> Begun:
    """Begin a call to the outside, or learn what it came to when it was made before.

    Raises:
        FenceLost: `fence` is outdated.
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    (row,) = await database.fetch_sealed(
        _QUERIES["begin_call"],
        principal,
        task_id=task_id,
        fence=fence,
        key=key,
        kind=kind.value,
        name=name,
        max_calls=max_calls,
        max_tokens=max_tokens,
    )
    return Begun(refused=row["refused"], result=row["result"], attempt=row["attempts"], usage=_usage(row))


async def finish_call(
    database: Database,
    principal: Principal,
    task_id: UUID,
    key: str,
    result: Mapping[str, Any],
    *,
    fence: int,
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
) -> None:
    """Record what a call came to. The first record stands.

    Raises:
        FenceLost: `fence` is outdated.
        SealRefused, Revoked, Unavailable: As `Database.tenant`.
    """
    await database.fetch_sealed(
        _QUERIES["finish_call"],
        principal,
        task_id=task_id,
        fence=fence,
        key=key,
        result=dict(result),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


async def usage_of(session: Session, task_id: UUID) -> Usage:
    """Return what the task's calls come to; only its own subject sees them."""
    row = await session.fetch_one(_QUERIES["usage"], task_id=task_id)
    assert row is not None
    return _usage(row)


def _usage(row: Row) -> Usage:
    return Usage(
        calls=row["calls"],
        repeated=row["repeated"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
    )
