"""The processes of the deployments, run from exactly what compose and Kubernetes would give them.

On a PostgreSQL of their own, reached over TCP and started with the deployment's options: roles belong to a cluster.
"""

from __future__ import annotations

import dataclasses
import signal
import ssl
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import anyio
import asyncpg
import grpc
import grpc.aio
import httpx
import pytest
from a2a.types import a2a_pb2 as pb
from a2a.types.a2a_pb2_grpc import A2AServiceStub

from rag.db.embedded import embedded_postgres, remove_embedded_postgres
from rag.db.gates import check_role
from rag.db.pool import open_database
from rag.errors import Misconfigured
from rag.identity.scopes import Audience
from rag.identity.seal import Sealer, load_seal_keys
from rag.installation import bootstrap_from_urls, prepare_database
from rag.runtime import token_issuer
from rag.settings import Settings
from sql import migrations
from tests.support.deployment import (
    PROFILES,
    ROOT,
    SERVERS,
    SERVICES,
    Container,
    containers_of,
    free_port,
    init_secrets,
    postgres_options,
)

pytestmark = [pytest.mark.anyio]

START_BOUND_S = 60.0
STOP_BOUND_S = 15.0
POLL_S = 0.05
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "0"},
    },
}


@pytest.fixture(name="server", scope="module")
def server_fixture(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The administrator's URL of the server."""
    options = {**postgres_options("compose"), "shared_buffers": "32MB", "fsync": "off"}
    address = {"listen_addresses": "127.0.0.1", "port": str(free_port())}
    data_dir = tmp_path_factory.mktemp("deployment")
    with embedded_postgres(data_dir, settings={**options, **address}) as server:
        password = urlsplit(server.superuser_url).password
        yield f"postgresql://postgres:{password}@127.0.0.1:{server.port}/postgres"
    remove_embedded_postgres(data_dir)


def _deploy(profile: str, server: str, tmp_path: Path, *, database: str) -> dict[str, Container]:
    """Make secrets for `server`, as one does for a PostgreSQL of one's own, and lay out the containers."""
    where = urlsplit(server)
    secrets_dir = tmp_path / "secrets"
    secrets_dir.mkdir()
    (secrets_dir / "postgres-admin-password").write_text(str(where.password))
    init_secrets(secrets_dir, "--host", f"{where.hostname}:{where.port}", "--database", database)
    return containers_of(profile, secrets_dir, tmp_path / "containers")


@pytest.mark.parametrize("profile", PROFILES)
async def test_the_migration_prepares_a_fresh_database_that_only_the_app_login_may_serve(
    profile: str, server: str, tmp_path: Path
) -> None:
    containers = _deploy(profile, server, tmp_path, database=f"fresh_{profile}")
    migrate = containers["migrate"].settings
    await bootstrap_from_urls(migrate)
    assert await prepare_database(migrate) == [step.version for step in migrations()]
    await bootstrap_from_urls(migrate)
    assert await prepare_database(migrate) == [], "a second run, as after a restart, changes nothing"

    for name in SERVERS:
        settings = containers[name].settings
        url = settings.database_url or settings.worker_database_url
        assert url
        assert settings.seal_keys_file
        sealer = Sealer(keys=load_seal_keys(settings.seal_keys_file))
        async with open_database(url, sealer=sealer, pool_size=1, application=name) as database:
            await check_role(database, claims=name == "worker")
    as_admin = urlunsplit(urlsplit(migrate.admin_database_url or "")._replace(path=f"/fresh_{profile}"))
    for url in (migrate.owner_database_url, migrate.maintenance_database_url, as_admin):
        assert url
        async with open_database(url, sealer=None, pool_size=1, application="test") as database:
            with pytest.raises(Misconfigured, match="too powerful"):
                await check_role(database)


@pytest.mark.parametrize("profile", PROFILES)
async def test_every_service_starts_serves_over_tls_and_stops_on_sigterm(
    profile: str, server: str, tmp_path: Path
) -> None:
    containers = _deploy(profile, server, tmp_path, database=f"served_{profile}")
    await _migrate(containers["migrate"])
    ports = {"mcp-server": free_port(), "a2a-server": free_port()}
    grpc_port = free_port()
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(
                _process(containers[name], ports, tmp_path / f"{name}.log", a2a_grpc_port=grpc_port)
            )
            for name in SERVICES
        }
        for process in running.values():
            stack.callback(process.kill)
        with anyio.fail_after(START_BOUND_S):
            trusting = ssl.create_default_context(cafile=str(containers["worker"].settings.ca_certificate))
            async with httpx.AsyncClient(verify=trusting, trust_env=False) as client:
                for name, port in ports.items():
                    await _ready(client, f"https://localhost:{port}/readyz", running[name])
                # the token is the operator's; the worker's name for the MCP server passes the check of the Host header
                token = token_issuer(containers["operator"].settings).issue(
                    tenant_id=uuid4(), subject="ada", audience=Audience.MCP, scopes=frozenset(), lifetime_s=60.0
                )
                endpoint, known = f"https://localhost:{ports['mcp-server']}/mcp", containers["worker"].settings.mcp_url
                for host, status in ((urlsplit(known).netloc, 200), ("rebound.example.com", 421)):
                    headers = {
                        "authorization": f"Bearer {token}",
                        "host": host,
                        "accept": "application/json, text/event-stream",
                    }
                    answer = await client.post(endpoint, headers=headers, json=INITIALIZE)
                    assert answer.status_code == status, (host, answer.text)
            await _speaks_grpc(f"localhost:{grpc_port}", containers)
            await _connects(server, f"served_{profile}", "bulkhead-worker-listen", running["worker"])
            await _connects(server, f"served_{profile}", "bulkhead-maintenance", running["maintenance"])
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for name, process in running.items():
            assert process.wait(STOP_BOUND_S) == 0, (tmp_path / f"{name}.log").read_text()[-2000:]


async def _migrate(container: Container) -> None:
    script, *arguments = [*container.entrypoint, *container.arguments]
    assert script == "bulkhead"
    command = [sys.executable, "-c", "from rag.cli import main; main()", *arguments]
    with anyio.fail_after(START_BOUND_S):
        done = await anyio.run_process(command, env=container.settings.to_env(), cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()


async def _speaks_grpc(target: str, containers: dict[str, Container]) -> None:
    """Ask the third binding for a list over TLS: it verifies the token, and refuses one without scopes."""
    authority = containers["worker"].settings.ca_certificate
    assert authority is not None
    token = token_issuer(containers["operator"].settings).issue(
        tenant_id=uuid4(), subject="ada", audience=Audience.A2A, scopes=frozenset(), lifetime_s=60.0
    )
    credentials = grpc.ssl_channel_credentials(await anyio.Path(authority).read_bytes())
    async with grpc.aio.secure_channel(target, credentials) as channel:
        stub = A2AServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"), ("a2a-version", "1.0"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListTasks(pb.ListTasksRequest(), metadata=metadata, timeout=START_BOUND_S)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def _process(container: Container, ports: dict[str, int], log: Path, *, a2a_grpc_port: int) -> subprocess.Popen[bytes]:
    """Start the container's module with its settings, but for what this machine has not: names, Redis, a collector."""
    settings: Settings = dataclasses.replace(
        container.settings,
        redis_url=None,
        otlp_endpoint=None,
        llm_url=None,
        llm_prices=None,
        mcp_port=ports["mcp-server"],
        a2a_port=ports["a2a-server"],
        a2a_grpc_port=a2a_grpc_port if container.settings.a2a_grpc_port else None,
    )
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", *container.arguments], env=settings.to_env(), cwd=ROOT, stderr=file, stdout=file
        )


async def _ready(client: httpx.AsyncClient, url: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, f"{url}: ended with {process.returncode}"
        try:
            if (await client.get(url)).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await anyio.sleep(POLL_S)


async def _connects(server: str, database: str, application: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has opened the connection of that name: the last thing that its start does."""
    connection = await asyncpg.connect(server)
    try:
        query = "select count(*) from pg_stat_activity where datname = $1 and application_name = $2"
        while not await connection.fetchval(query, database, application):
            assert process.poll() is None, f"{application} ended with {process.returncode}"
            await anyio.sleep(POLL_S)
    finally:
        await connection.close()
