"""Connections and SQL of the benchmarks.

Above: all of tests/bench that speaks to PostgreSQL. Below: asyncpg, tests/bench/sql.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from pgvector.asyncpg import register_vector  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["connected", "script", "statements"]

_SQL = Path(__file__).parent / "sql"


def script(name: str) -> str:
    """Return the text of `sql/<name>`."""
    return (_SQL / name).read_text(encoding="utf-8")


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[asyncpg.Connection]:
    """Open a connection without a statement timeout that knows pgvector's types."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "public"}, timeout=30)
    try:
        await register_vector(connection)
        yield connection
    finally:
        await connection.close()


def statements(name: str) -> dict[str, str]:
    """Return the statements of `sql/<name>` by their names: comments of one word."""
    _, *parts = re.split(r"(?m)^-- (\w+)$", script(name))
    return {title: text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}
