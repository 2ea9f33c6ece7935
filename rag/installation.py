"""Makes an installation ready to serve: embedded server, roles, passwords, schema, seal keys, signing keys.

Stands beside `runtime`, below the CLI. With BULKHEAD_DATABASE_URL set it starts nothing and only migrates; without, it
brings up the embedded PostgreSQL and returns settings that name its logins, which child processes then inherit.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio

from rag.db.embedded import EmbeddedPostgres, embedded_postgres
from rag.db.migrate import LOGIN_ROLES, bootstrap, ensure_database, install_seal_keys, migrate, register_embedding_model
from rag.errors import Misconfigured
from rag.identity.keys import ensure_keys, turn, write_private
from rag.identity.outward import ensure_outward_keys
from rag.identity.seal import ensure_seal_keys
from rag.llm.configured import configured_models
from rag.settings import Settings

__all__ = [
    "DATABASE",
    "bootstrap_from_urls",
    "embedded_is_running",
    "embedded_settings",
    "installation",
    "prepare_database",
]

DATABASE = "bulkhead"
SEAL_KEYS_NAME = "seal-keys.json"
PASSWORDS_NAME = "database-passwords.json"


@contextmanager
def installation(settings: Settings) -> Generator[Settings]:
    """Yield settings whose database is up and migrated, and whose keys exist.

    Blocks while it starts: enter it before any event loop runs. The embedded server stops when its last user leaves.

    Raises:
        Misconfigured, Unavailable: With what to do about it.
    """
    ensure_keys(settings.certs_dir)
    ensure_outward_keys(settings.certs_dir)
    if settings.database_url is not None:
        yield settings
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o711)
    with embedded_postgres(settings.data_dir) as server:
        ready = embedded_settings(settings, server, database=DATABASE)
        anyio.run(_prepare_embedded, ready, server)
        yield ready


async def prepare_database(settings: Settings) -> list[int]:
    """Migrate the configured database, register the embedding models and install the seal keys; idempotent.

    Returns:
        The numbers of the migrations that were applied by this call.

    Raises:
        Misconfigured: BULKHEAD_OWNER_DATABASE_URL or BULKHEAD_SEAL_KEYS_FILE is missing, the chain does not fit, or
            BULKHEAD_EMBEDDINGS_FILE cannot be used.
        Unavailable: The server is not reachable.
    """
    if settings.owner_database_url is None or settings.seal_keys_file is None:
        raise Misconfigured("migrating needs BULKHEAD_OWNER_DATABASE_URL and BULKHEAD_SEAL_KEYS_FILE")
    models = configured_models(settings)
    applied = await migrate(settings.owner_database_url)
    await install_seal_keys(settings.owner_database_url, ensure_seal_keys(settings.seal_keys_file))
    for model in models:
        await register_embedding_model(settings.owner_database_url, name=model.name, dimension=model.dimension)
    return applied


async def bootstrap_from_urls(settings: Settings) -> None:
    """Create database and roles as the administrator, with the passwords that the roles' URLs carry; idempotent.

    Raises:
        Misconfigured: A URL is missing or malformed, names another role, or they name different databases.
        Unavailable: The server is not reachable.
    """
    if settings.admin_database_url is None:
        raise Misconfigured("creating roles needs BULKHEAD_ADMIN_DATABASE_URL")
    logins = {
        role: _login(variable, url, role=role)
        for role, variable, url in (
            ("bulkhead_owner", "BULKHEAD_OWNER_DATABASE_URL", settings.owner_database_url),
            ("bulkhead_app", "BULKHEAD_DATABASE_URL", settings.database_url),
            ("bulkhead_worker", "BULKHEAD_WORKER_DATABASE_URL", settings.worker_database_url),
            ("bulkhead_maintenance", "BULKHEAD_MAINTENANCE_DATABASE_URL", settings.maintenance_database_url),
        )
    }
    databases = {database for _, database in logins.values()}
    if len(databases) != 1:
        raise Misconfigured("the owner, app, worker and maintenance URLs must name one and the same database")
    admin_url = await ensure_database(settings.admin_database_url, databases.pop())
    await bootstrap(admin_url, {role: password for role, (password, _) in logins.items()})


def _login(variable: str, url: str | None, *, role: str) -> tuple[str, str]:
    """Return password and database of a connection URL; no message of this function quotes any of it."""
    try:
        parts = urlsplit(url or "")
    except ValueError as exc:
        raise Misconfigured(f"{variable} is not a URL") from exc
    if parts.scheme not in {"postgres", "postgresql"}:
        raise Misconfigured(f"creating roles needs {variable}, of the form postgresql://{role}:PASSWORD@HOST/DATABASE")
    if unquote(parts.username or "") != role:
        raise Misconfigured(f"{variable} must log in as {role}")
    password, database = unquote(parts.password or ""), unquote(parts.path.removeprefix("/"))
    if not password or not database:
        raise Misconfigured(f"{variable} must name a password and a database")
    return password, database


def embedded_is_running(data_dir: Path) -> bool:
    """Tell whether there is an embedded server on `data_dir` now; starts nothing."""
    return (data_dir / "postgres" / "postmaster.pid").exists()


def embedded_settings(settings: Settings, server: EmbeddedPostgres, *, database: str) -> Settings:
    """Return `settings` with the logins of the embedded server and the seal keys of its data directory."""
    passwords = _passwords(settings.data_dir / PASSWORDS_NAME)
    urls = {role: server.url(user=role, password=passwords[role], database=database) for role in LOGIN_ROLES}
    return dataclasses.replace(
        settings,
        database_url=urls["bulkhead_app"],
        owner_database_url=urls["bulkhead_owner"],
        worker_database_url=urls["bulkhead_worker"],
        maintenance_database_url=urls["bulkhead_maintenance"],
        seal_keys_file=settings.data_dir / SEAL_KEYS_NAME,
    )


async def _prepare_embedded(settings: Settings, server: EmbeddedPostgres) -> None:
    database_url = await ensure_database(server.superuser_url, DATABASE)
    await bootstrap(database_url, _passwords(settings.data_dir / PASSWORDS_NAME))
    await prepare_database(settings)


def _passwords(path: Path) -> dict[str, str]:
    with turn(path.parent):
        try:
            stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            passwords = {role: str(stored.get(role) or secrets.token_urlsafe(24)) for role in LOGIN_ROLES}
        except (ValueError, AttributeError) as exc:
            raise Misconfigured(f"{path.name} is damaged; remove it to have new passwords made and set") from exc
        if passwords != stored:
            write_private(path, json.dumps(passwords, indent=2).encode())
    return passwords
