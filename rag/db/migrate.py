"""Bring a database to the schema of this version: bootstrap by an administrator, then numbered migrations by the owner.

Safe under any number of concurrent starts: each migration runs in one transaction whose first statement claims its row,
so a second runner waits there and then finds it done. Below: asyncpg. Above: the CLI and the tests.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from rag.db.faults import translated
from rag.errors import Misconfigured
from rag.identity.seal import SealKeys, hmac_pads
from sql import Migration, bootstrap_script, migrations

__all__ = [
    "LOGIN_ROLES",
    "bootstrap",
    "ensure_database",
    "install_seal_keys",
    "migrate",
    "pending_migrations",
    "register_embedding_model",
]

_log = logging.getLogger(__name__)

LOGIN_ROLES = ("bulkhead_owner", "bulkhead_app", "bulkhead_worker", "bulkhead_maintenance")
CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT = "10s"
"""How long a migration may wait behind live traffic for a table lock before it gives up and changes nothing."""
FIRST_LOCK_TIMEOUT = "60s"
"""How long a start may wait for other starts, or for whoever else holds their lock."""
_FIRST_LOCK = 0x62756C6B  # any number that only we use: guards the creation of the migrations table itself


async def ensure_database(admin_dsn: str, name: str) -> str:
    """Create the database `name` unless it exists, and return the administrator's URL for it.

    Raises:
        Unavailable: The server is not reachable.
    """
    async with _connected(admin_dsn) as connection:
        if not await connection.fetchval("select exists (select from pg_database where datname = $1)", name):
            # CREATE DATABASE takes no parameters and runs in no transaction; format() quotes the name
            statement = await connection.fetchval("select format('create database %I', $1::text)", name)
            with suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):  # another start was first
                await connection.execute(str(statement))
    parts = urlsplit(admin_dsn)
    return urlunsplit(parts._replace(path=f"/{quote(name)}"))


async def bootstrap(admin_dsn: str, passwords: Mapping[str, str]) -> None:
    """Create the roles, prepare the database that `admin_dsn` names, and set the login roles' passwords.

    Raises:
        Unavailable: The server is not reachable.
        Misconfigured: A login role has no password in `passwords`.
    """
    missing = [role for role in LOGIN_ROLES if role not in passwords]
    if missing:
        raise Misconfigured(f"no password for {', '.join(missing)}")
    async with _connected(admin_dsn) as connection, connection.transaction():
        # roles are shared by all databases of a cluster: one bootstrap at a time
        await _take_first_lock(connection)
        await connection.execute(bootstrap_script("roles"))
        for role in LOGIN_ROLES:
            # NOTE: built by the server's own format() and sent as a verifier, so neither quoting nor a server
            # log can betray a password. ALTER ROLE takes no bound parameters.
            statement = await connection.fetchval(
                "select format('alter role %I password %L', $1::text, $2::text)",
                role,
                _scram_verifier(passwords[role]),
            )
            await connection.execute(str(statement))
        await connection.execute(bootstrap_script("database"))


async def migrate(owner_dsn: str, *, through: int | None = None) -> list[int]:
    """Apply what is missing, up to version `through` (default: all), and return the versions this call applied.

    Raises:
        Misconfigured: An applied migration differs from its file, or the database is newer than this code.
        Unavailable: The server is not reachable, or a lock was not to be had in LOCK_TIMEOUT.
    """
    steps = migrations()
    applied: list[int] = []
    async with _connected(owner_dsn) as connection:
        await _ensure_ledger(connection)
        await _check_ledger(connection, steps)
        for step in steps[:through]:
            if await _apply(connection, step):
                _log.info("applied migration %04d %s", step.version, step.name)
                applied.append(step.version)
    return applied


async def pending_migrations(owner_dsn: str) -> list[int]:
    """Return the versions that this code has and the database has not.

    Raises:
        Misconfigured: An applied migration differs from its file, or the database is newer than this code.
        Unavailable: The server is not reachable.
    """
    async with _connected(owner_dsn) as connection:
        if await connection.fetchval("select to_regclass('migration.applied')") is None:
            return [step.version for step in migrations()]
        await _check_ledger(connection, migrations())
        applied = {row["version"] for row in await connection.fetch("select version from migration.applied")}
    return [step.version for step in migrations() if step.version not in applied]


async def install_seal_keys(owner_dsn: str, keys: SealKeys) -> None:
    """Make the database verify exactly `keys`, as pads (it never holds a key in the form that Python does).

    Raises:
        Unavailable: The server is not reachable.
    """
    async with _connected(owner_dsn) as connection, connection.transaction():
        await connection.execute("lock table seal.key in share row exclusive mode")
        await connection.execute("delete from seal.key where not kid = any($1::text[])", list(keys.keys))
        await connection.execute("update seal.key set active = false where active")
        for kid, key in keys.keys.items():
            inner, outer = hmac_pads(key)
            await connection.execute(
                "insert into seal.key (kid, inner_pad, outer_pad, active) values ($1, $2, $3, $4) "
                "on conflict (kid) do update set inner_pad = $2, outer_pad = $3, active = $4",
                kid,
                inner,
                outer,
                kid == keys.active,
            )


async def register_embedding_model(owner_dsn: str, *, name: str, dimension: int) -> None:
    """Make the model known to the schema; servers refuse to start with one that is not.

    Raises:
        Unavailable: The server is not reachable.
    """
    async with _connected(owner_dsn) as connection:
        await connection.execute(
            # looked for first: an insert that conflicts uses up one of the 32 767 ids all the same, at every start
            "insert into rag.embedding_model (name, dimension) select $1::text, $2::integer "
            "where not exists (select from rag.embedding_model where name = $1 and dimension = $2) "
            "on conflict do nothing",
            name,
            dimension,
        )


@asynccontextmanager
async def _connected(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    with translated():
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
        try:
            yield connection
        finally:
            await connection.close()


async def _take_first_lock(connection: asyncpg.Connection) -> None:
    await connection.execute(f"set local lock_timeout = '{FIRST_LOCK_TIMEOUT}'")
    await connection.execute("select pg_advisory_xact_lock($1)", _FIRST_LOCK)


async def _ensure_ledger(connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        # `create ... if not exists` races with itself in the catalogue; the lock makes the first start single-file
        await _take_first_lock(connection)
        await connection.execute("create schema if not exists migration")
        await connection.execute(
            "create table if not exists migration.applied ("
            "version integer primary key, name text not null, sha256 text not null, "
            "applied_at timestamptz not null default clock_timestamp())"
        )


async def _check_ledger(connection: asyncpg.Connection, steps: tuple[Migration, ...]) -> None:
    known = {step.version: step for step in steps}
    for row in await connection.fetch("select version, sha256 from migration.applied order by version"):
        step = known.get(row["version"])
        if step is None:
            raise Misconfigured(f"the database is at migration {row['version']}, newer than this version of Bulkhead")
        if step.sha256 != row["sha256"]:
            raise Misconfigured(f"migration {step.version:04} {step.name} was changed after it had been applied")


async def _apply(connection: asyncpg.Connection, step: Migration) -> bool:
    async with connection.transaction():
        await connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'")
        # Claims the row first: a concurrent runner waits here until this transaction ends, then finds the row taken.
        claimed = await connection.fetchval(
            "insert into migration.applied (version, name, sha256) values ($1, $2, $3) "
            "on conflict (version) do nothing returning version",
            step.version,
            step.name,
            step.sha256,
        )
        if claimed is None:
            return False
        await connection.execute(step.text)
        return True


def _scram_verifier(password: str) -> str:
    """Return PostgreSQL's stored form of a password (SCRAM-SHA-256, RFC 5803), so that it is never sent plain."""
    iterations, salt = 4096, secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    salt_text, stored_text, server_text = encoded
    return f"SCRAM-SHA-256${iterations}:{salt_text}${stored_text}:{server_text}"
