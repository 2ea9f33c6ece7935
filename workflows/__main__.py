"""`python -m workflows`: one worker process, until SIGTERM.

It runs tasks and starts those that are scheduled, tells webhooks of them, takes away what is left of old ones, ends
model calls that nobody ended, embeds documents and compacts indexes.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio

from rag.answering import OpenChat, open_chats
from rag.budgets.sweep import run_sweeper
from rag.clients.mcp import mcp_client
from rag.corpus.compaction import run_compactor
from rag.corpus.embedding import EMBEDDING_CHANNEL, run_embedder
from rag.db.listener import Wakeups, listener
from rag.db.pool import open_database
from rag.errors import Misconfigured
from rag.external.client import ExternalClient
from rag.external.store import PURPOSE, list_servers
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.identity.seal import load_seal_keys
from rag.identity.secretbox import SecretBox
from rag.outbound import pinned_client
from rag.runtime import Runtime, open_runtime, run_process, token_issuer
from rag.serving import settle_memory
from rag.settings import Settings
from rag.tasks.retention import run_retention
from workflows.checkpoints import open_checkpoints
from workflows.runner import Runner
from workflows.schedules import run_scheduler
from workflows.webhooks import PUSH_CHANNEL, run_courier
from workflows.worker import CANCEL_CHANNEL, RUN_CHANNEL, Worker

__all__ = ["main", "worker_of"]

APPLICATION = "bulkhead-worker"


def main() -> None:
    """Work until SIGTERM or SIGINT."""
    run_process("workflows", _serve)


async def _serve(settings: Settings) -> None:
    # the signals first: one that comes while the rest is opened must not end the process in the middle of it
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with worker_of(settings) as worker, anyio.create_task_group() as tasks:
            settle_memory()
            tasks.start_soon(_drain_on_signal, signals, worker)
            await worker.serve()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def worker_of(settings: Settings) -> AsyncGenerator[Worker]:
    """Open a worker and all that it works with; beside it documents are embedded and indexes compacted meanwhile.

    Raises:
        Misconfigured, Unavailable: As `open_runtime`.
    """
    if settings.worker_database_url is None:
        raise Misconfigured("a worker needs BULKHEAD_WORKER_DATABASE_URL; `bulkhead up` sets it")
    as_worker = dataclasses.replace(settings, database_url=settings.worker_database_url)
    async with (
        open_runtime(as_worker, audience=Audience.A2A, application=APPLICATION, claims=True) as runtime,
        open_chats(runtime) as open_chat,
        listener(
            runtime.database.dsn,
            [RUN_CHANNEL, CANCEL_CHANNEL, EMBEDDING_CHANNEL, PUSH_CHANNEL],
            application=f"{APPLICATION}-listen",
        ) as wakeups,
        _worker(runtime, open_chat, wakeups) as worker,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_embed, runtime, wakeups)
        tasks.start_soon(run_compactor, runtime.database)
        tasks.start_soon(run_retention, runtime.database)
        tasks.start_soon(run_sweeper, runtime.database)
        tasks.start_soon(_fire_schedules, runtime)
        tasks.start_soon(run_courier, runtime, wakeups)
        try:
            yield worker
        finally:
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _worker(runtime: Runtime, open_chat: OpenChat, wakeups: Wakeups) -> AsyncGenerator[Worker]:
    settings, dsn = runtime.settings, runtime.database.dsn
    async with (
        open_checkpoints(
            dsn,
            # a run holds a connection only while it stores what it has done
            pool_size=min(settings.worker_slots, settings.pool_size) + 1,
            application=f"{APPLICATION}-checkpoints",
            # a run that stands still in a transaction holds its row, and its lease is no use to others
            transaction_s=settings.lease_s,
        ) as pool,
        open_database(dsn, sealer=None, pool_size=2, application=f"{APPLICATION}-leases") as leases_database,
    ):
        runner = Runner(
            database=runtime.database,
            checkpoints=pool,
            issuer=token_issuer(settings, clock=runtime.clock),
            input_timeout_s=settings.input_timeout_s,
            open_tools=lambda token: mcp_client(settings.mcp_url, token, ca=settings.ca_certificate),
            open_external=_external(runtime),
            open_chat=open_chat,
            clock=runtime.clock,
        )
        yield Worker(
            name=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
            runner=runner,
            leases_database=leases_database,
            wakeups=wakeups,
            slots=settings.worker_slots,
            lease_s=settings.lease_s,
        )


def _external(runtime: Runtime) -> Callable[[Principal], Awaitable[Sequence[ExternalClient]]]:
    settings = runtime.settings
    assert settings.seal_keys_file is not None  # open_runtime has read it
    box = SecretBox.derive(load_seal_keys(settings.seal_keys_file), purpose=PURPOSE)
    open_http = partial(pinned_client, allow_loopback=settings.allows_loopback, ca=settings.ca_certificate)

    async def clients(principal: Principal) -> Sequence[ExternalClient]:
        listed = await list_servers(runtime.database, principal, box)
        return [ExternalClient(server=server, open_http=open_http) for server in listed]

    return clients


async def _drain_on_signal(signals: AsyncIterator[signal.Signals], worker: Worker) -> None:
    async for _ in signals:
        worker.drain()
        return


async def _fire_schedules(runtime: Runtime) -> None:
    await run_scheduler(runtime.database, clock=runtime.clock)


async def _embed(runtime: Runtime, wakeups: Wakeups) -> None:
    await run_embedder(runtime.database, runtime.embedders, wakeups=wakeups)


if __name__ == "__main__":
    main()
