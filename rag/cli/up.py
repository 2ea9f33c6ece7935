"""`bulkhead up` and `bulkhead migrate`: bring the system up, or only its database."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import click

from rag.cli.common import ERRORS, as_json, json_option, print_json, settings_of
from rag.cli.supervisor import a2a_replicas, reachable, running
from rag.errors import Misconfigured
from rag.identity.seal import ensure_seal_keys
from rag.identity.tls import DEVELOPMENT_HOSTS, ensure_development_tls
from rag.installation import bootstrap_from_urls, installation, prepare_database
from rag.settings import Settings

__all__ = ["migrate", "up"]

_KIT_LIMIT = 10_000_000
"""Requests a minute: none, for the compatibility kit."""


@click.command()
@click.option(
    "--tls", is_flag=True, help="Serve TLS with a certificate of the development CA in the certificates folder."
)
@click.option(
    "--test-fixtures", is_flag=True, help="For the A2A compatibility kit, never for anything else: see docs/a2a.md."
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="A2A servers. The second one's ports are the first one's and 10, and so on; say by BULKHEAD_A2A_URL what "
    "stands before them.",
)
@click.pass_context
def up(context: click.Context, tls: bool, test_fixtures: bool, replicas: int) -> None:
    """Start everything, and leave it running.

    Prints one JSON line of addresses when all is ready; stops on Ctrl-C or SIGTERM.
    """
    settings = _with_grpc(settings_of(context))
    if test_fixtures:
        # the kit asks fast, and has its webhooks on its own machine
        settings = dataclasses.replace(
            settings, test_fixtures="on", outbound_loopback="on", request_limit_per_minute=_KIT_LIMIT
        )
    if tls:
        files = ensure_development_tls(settings.certs_dir, (*DEVELOPMENT_HOSTS, settings.mcp_host, settings.a2a_host))
        settings = dataclasses.replace(
            settings, tls_certificate=files.certificate, tls_key=files.key, ca_certificate=files.ca
        )
    # an interrupt that comes while the database starts or stops is one more way to end well
    with suppress(KeyboardInterrupt):
        if settings.database_url is None:
            ERRORS.print("starting the database")
        with installation(settings) as ready:
            anyio.run(_serve, ready, replicas)
    ERRORS.print("stopped")


def _with_grpc(settings: Settings) -> Settings:
    if settings.a2a_grpc_port is not None:
        return settings
    with_grpc = dataclasses.replace(settings, a2a_grpc_port=settings.a2a_port + 1)
    with_grpc.check()
    return with_grpc


@click.command()
@json_option
@click.pass_context
def migrate(context: click.Context, as_json: bool) -> None:
    """Bring the database to this version's schema.

    With BULKHEAD_ADMIN_DATABASE_URL set, the roles are created first, with the passwords that the owner, app,
    worker and maintenance URLs carry.
    """
    settings = settings_of(context)
    if settings.database_url is None:
        with installation(settings) as ready:
            applied = anyio.run(prepare_database, ready)
    else:
        applied = anyio.run(_migrate, settings)
    if as_json:
        print_json({"applied": applied})
    else:
        click.echo(f"applied migrations: {', '.join(map(str, applied)) or 'none were missing'}")


async def _migrate(settings: Settings) -> list[int]:
    if settings.seal_keys_file is None:
        raise Misconfigured("migrating needs BULKHEAD_SEAL_KEYS_FILE")
    ensure_seal_keys(settings.seal_keys_file)
    if settings.admin_database_url is not None:
        await bootstrap_from_urls(settings)
    return await prepare_database(settings)


async def _serve(settings: Settings, replicas: int) -> None:
    ERRORS.print("starting the servers and the worker")
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_signal, signals, tasks.cancel_scope)
            await _run(settings, replicas)


async def _cancel_on_signal(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in signals:
        ERRORS.print("stopping")
        scope.cancel()
        return


async def _run(settings: Settings, replicas: int) -> None:
    async with running(settings, os.environ, replicas=replicas):  # noqa: TID251  # PATH and the like, for the child processes
        click.echo(
            as_json(
                {
                    "mcp": settings.mcp_url,
                    "a2a": settings.a2a_url,
                    "grpc": settings.a2a_grpc_url,
                    "replicas": [
                        f"{own.scheme}://{reachable(own.a2a_host)}:{own.a2a_port}"
                        for own in a2a_replicas(settings, replicas)
                    ],
                    "agent_card": f"{settings.a2a_url}/.well-known/agent-card.json",
                    "data_dir": str(settings.data_dir.resolve()),
                    "logs": str((settings.data_dir / "logs").resolve()),
                    "answers": settings.llm_model or "extractive",
                    "embeddings": settings.embeddings_model,
                }
            )
        )
        await anyio.sleep_forever()
