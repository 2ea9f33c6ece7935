"""A real database per test: cloned from a migrated template on one embedded server that all workers share.

Above: conftest's fixtures. A World holds everything that a test may open by the public doors: settings for processes,
an operator, tokens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import anyio
import asyncpg

from rag.db.embedded import EmbeddedPostgres, embedded_postgres
from rag.db.migrate import bootstrap, ensure_database
from rag.db.pool import Database, open_database
from rag.identity.keys import ensure_keys, load_public_keys, load_signing_key
from rag.identity.outward import ensure_outward_keys
from rag.identity.principal import Principal
from rag.identity.scopes import Audience, Scope
from rag.identity.seal import Sealer, load_seal_keys
from rag.identity.tokens import TokenIssuer, TokenVerifier
from rag.installation import _passwords, embedded_settings, prepare_database  # pyright: ignore[reportPrivateUsage]
from rag.settings import Settings
from rag.tenants.operator import Operator, Tenant
from sql import bootstrap_script, migrations

ALL_SCOPES = frozenset({Scope.CORPUS_READ, Scope.CORPUS_WRITE, Scope.TASKS_RUN, Scope.USAGE_READ})
TEST_SERVER_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "on",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
}
"""Durability against power loss is the one thing that tests do not need of a real server."""
HOME = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")  # noqa: S108  # a file system of Linux in memory; the name below it has our user id in it
ROOM_BYTES = 4 * 2**30
"""Ten times what the server has been seen to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The shared server and the migrated template on it."""

    server: EmbeddedPostgres
    template: str
    settings: Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One test's own database and keys."""

    settings: Settings
    server: EmbeddedPostgres
    superuser_url: str
    issuer: TokenIssuer

    def token(
        self,
        tenant: Tenant,
        *,
        audience: Audience,
        user: str = "ada",
        scopes: frozenset[Scope] = ALL_SCOPES,
        lifetime_s: float = 600.0,
    ) -> str:
        """Return a token that the servers of this world accept."""
        return self.issuer.issue(
            tenant_id=tenant.tenant_id, subject=user, audience=audience, scopes=scopes, lifetime_s=lifetime_s
        )

    def principal(
        self, tenant: Tenant | UUID, *, user: str = "ada", scopes: frozenset[Scope] = ALL_SCOPES
    ) -> Principal:
        """Return a verified caller, made through the real issuer and verifier."""
        token = self.issuer.issue(
            tenant_id=tenant if isinstance(tenant, UUID) else tenant.tenant_id,
            subject=user,
            audience=Audience.MCP,
            scopes=scopes,
            lifetime_s=600.0,
        )
        return self.verifier(Audience.MCP).verify(token)

    def verifier(self, audience: Audience) -> TokenVerifier:
        """Return the verifier that a server of this world would use."""
        return TokenVerifier(
            keys=load_public_keys(self.settings.certs_dir), issuer=self.settings.issuer, audience=audience
        )

    @asynccontextmanager
    async def database(self, *, pool_size: int = 4, claims: bool = False) -> AsyncGenerator[Database]:
        """Open a pool as the app role, or as the worker's, which may claim."""
        url = self.settings.worker_database_url if claims else self.settings.database_url
        assert url is not None
        assert self.settings.seal_keys_file is not None
        sealer = Sealer(keys=load_seal_keys(self.settings.seal_keys_file))
        async with open_database(url, sealer=sealer, pool_size=pool_size, application="test") as database:
            yield database

    @asynccontextmanager
    async def operator(self) -> AsyncGenerator[Operator]:
        """Open the maintenance role's verbs."""
        assert self.settings.maintenance_database_url
        async with open_database(
            self.settings.maintenance_database_url, sealer=None, pool_size=1, application="test-operator"
        ) as database:
            yield Operator(database=database)

    async def tenant(self, name: str) -> Tenant:
        """Create a tenant."""
        async with self.operator() as operator:
            return await operator.create_tenant(name)


def cluster_passwords(shared: Cluster) -> dict[str, str]:
    """Return the passwords of the login roles, which all databases of the cluster share."""
    return _passwords(shared.settings.data_dir / "database-passwords.json")


def cluster_root() -> Path:
    """Return where the shared server lies: in memory where there is room, and else below this checkout.

    A test's database is 700 files, made and deleted again: on a disk that is most of the time of most tests.
    """
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < ROOM_BYTES:
        return HOME / ".cache" / "test-cluster"
    return memory_root()


def memory_root() -> Path:
    """Return where the server of this checkout and user lies if it lies in memory."""
    checkout = hashlib.sha256(os.fsencode(HOME)).hexdigest()[:12]
    return MEMORY / f"bulkhead-tests-{os.getuid()}-{checkout}"


@contextmanager
def cluster(root: Path) -> Generator[Cluster]:
    """Start or join the shared server under `root` and make the template of today's schema."""
    root.mkdir(parents=True, exist_ok=True, mode=0o711)
    ensure_keys(root / "certs")
    ensure_outward_keys(root / "certs")
    with embedded_postgres(root, settings=TEST_SERVER_SETTINGS) as server:
        base = Settings(data_dir=root, certs_dir=root / "certs")
        digest = hashlib.sha256(
            "".join(
                [*(step.sha256 for step in migrations()), bootstrap_script("roles"), bootstrap_script("database")]
            ).encode()
        ).hexdigest()[:16]
        name = f"template_{digest}"
        settings = embedded_settings(base, server, database=name)
        anyio.run(_make_template, server, settings, name)
        yield Cluster(server=server, template=name, settings=base)


async def _make_template(server: EmbeddedPostgres, settings: Settings, name: str) -> None:
    # one worker makes the template, the others wait at the lock and find it
    guard = await asyncpg.connect(server.superuser_url)
    try:
        await guard.execute("select pg_advisory_lock(7365)")
        if not await guard.fetchval("select exists (select from pg_database where datname = $1)", f"{name}_ready"):
            admin_url = await ensure_database(server.superuser_url, name)
            await bootstrap(admin_url, _passwords(settings.data_dir / "database-passwords.json"))
            await prepare_database(settings)
            # a marker that can only exist once the template is whole
            await guard.execute(f'create database "{name}_ready"')
        await _drop_old(guard, keep=name)
    finally:
        await guard.close()


async def _drop_old(connection: asyncpg.Connection, *, keep: str) -> None:
    """Remove what an earlier, killed run left behind: test databases carry the second they were made in.

    And the templates of schemas before this one, since each database has autovacuum start processes. Only those of
    days before: whoever tests another checkout in this folder at this moment is using his. A marker goes first.
    """
    for row in await connection.fetch("select datname from pg_database where datname ~ '^test_[0-9]+_'"):
        if int(row["datname"].split("_")[1]) < time.time() - 3600:
            await connection.execute(f'drop database if exists "{row["datname"]}" with (force)')
    old = (
        "select datname from pg_database where datname ~ '^template_[0-9a-f]{16}' and not starts_with(datname, $1) and "
        "(pg_stat_file(format('base/%s/PG_VERSION', oid), true)).modification < now() - interval '1 day' "
        "order by datname desc"
    )
    for row in await connection.fetch(old, keep):
        await connection.execute(f'drop database if exists "{row["datname"]}" with (force)')


@asynccontextmanager
async def world(cluster: Cluster) -> AsyncGenerator[World]:
    """Clone the template for one test; dropped afterwards."""
    name = f"test_{int(time.time())}_{secrets.token_hex(6)}"
    try:
        await _administer(cluster, f'create database "{name}" template "{cluster.template}" strategy wal_log')
        superuser_url = urlunsplit(urlsplit(cluster.server.superuser_url)._replace(path=f"/{name}"))
        # privileges on a database itself are not cloned
        own = await asyncpg.connect(superuser_url)
        await own.execute(bootstrap_script("database"))
        await own.close()
        settings = dataclasses.replace(embedded_settings(cluster.settings, cluster.server, database=name), pool_size=4)
        yield World(
            settings=settings,
            server=cluster.server,
            superuser_url=superuser_url,
            issuer=TokenIssuer(signing_key=load_signing_key(settings.certs_dir), issuer=settings.issuer),
        )
    finally:
        await _administer(cluster, f'drop database if exists "{name}" with (force)')


async def _administer(cluster: Cluster, command: str) -> None:
    # a connection for each command: a test may take the server down meanwhile
    admin = await asyncpg.connect(cluster.server.superuser_url)
    try:
        await admin.execute(command)
    finally:
        await admin.close()
