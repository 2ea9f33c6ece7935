"""`bulkhead maintain`: the process that looks after the vector indexes of large tenants, and counts low budgets.

Below: `rag.corpus.vector_indexes`, `rag.budgets.watch`. It holds the maintenance login and nothing else, serves nobody,
and is needed by nobody: while it is away, searches are as right as before, those of tenants that have just grown large
are slower, and budgets that run low are not counted on dashboards.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import anyio
import click

from rag.budgets.watch import watch_alerts
from rag.cli.common import json_option, print_json, settings_of
from rag.corpus.vector_indexes import Change, GraphPolicy, maintain, run_maintenance
from rag.db.maintenance import open_maintenance
from rag.errors import Misconfigured
from rag.installation import installation
from rag.settings import Settings
from rag.telemetry import telemetry

__all__ = ["maintenance"]


@click.command("maintain")
@click.option("--once", is_flag=True, help="Make one pass, say what was done, and end.")
@json_option
@click.pass_context
def maintenance(context: click.Context, once: bool, as_json: bool) -> None:
    """Build and drop the vector indexes of large tenants, until stopped.

    `bulkhead up` runs this beside the servers.
    """
    settings = settings_of(context)
    if not once:
        if settings.maintenance_database_url is None:
            raise Misconfigured("maintenance needs BULKHEAD_MAINTENANCE_DATABASE_URL; `bulkhead up` sets it")
        with telemetry(settings, service="maintenance"):
            anyio.run(_serve, settings, backend_options={"use_uvloop": True})
        return
    if settings.maintenance_database_url is not None:
        changes = anyio.run(_once, settings)
    else:
        with installation(settings) as ready:
            changes = anyio.run(_once, ready)
    if as_json:
        print_json([{"act": change.act.value, "index": change.index_name} for change in changes])
    else:
        click.echo("\n".join(f"{change.act.value} {change.index_name}" for change in changes) or "nothing to do")


def graph_policy(settings: Settings) -> GraphPolicy:
    """Return the product's policy within what this installation gives to a build."""
    return GraphPolicy(memory_mb=settings.index_build_mb, workers=settings.index_build_workers)


async def _once(settings: Settings) -> list[Change]:
    assert settings.maintenance_database_url is not None
    async with open_maintenance(settings.maintenance_database_url, application="bulkhead-maintenance") as session:
        return await maintain(session, graph_policy(settings))


async def _serve(settings: Settings) -> None:
    assert settings.maintenance_database_url is not None
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_signal, signals, tasks.cancel_scope)
            tasks.start_soon(watch_alerts, settings.maintenance_database_url)
            await run_maintenance(settings.maintenance_database_url, graph_policy(settings))


async def _cancel_on_signal(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
        return
