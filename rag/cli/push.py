"""`bulkhead push`: the webhooks that were given up, and trying them again.

Below: `rag.push.store`, as the maintenance login. It names no URL and no credential: whoever made a webhook sees those.
"""

from __future__ import annotations

import dataclasses
from uuid import UUID

import anyio
import click
from rich.markup import escape
from rich.table import Column, Table

from rag.cli.common import json_option, operator, print_json, results, settings_of
from rag.errors import NotFound
from rag.installation import installation
from rag.push import store
from rag.push.values import DeadPush
from rag.settings import Settings

__all__ = ["push"]


@click.group()
def push() -> None:
    """See and revive webhooks of tasks that were given up."""


@push.command("dead")
@click.argument("reference", metavar="TENANT", required=False)
@json_option
@click.pass_context
def dead(context: click.Context, reference: str | None, as_json: bool) -> None:
    """Show what was given up of TENANT's, or of everybody's; the latest 1000."""
    with installation(settings_of(context)) as settings:
        found = anyio.run(_dead, settings, reference)
    if as_json:
        print_json([_as_dict(one) for one in found])
        return
    # an id that is cut cannot be copied
    ids = [Column(name, no_wrap=True, min_width=36) for name in ("webhook", "tenant", "task")]
    table = Table(*ids, "from event", "attempts", "last reason", "given up", box=None, padding=(0, 2, 0, 0))
    for one in found:
        table.add_row(
            str(one.push_id),
            str(one.tenant_id),
            str(one.task_id),
            str(one.next_seq),
            str(one.attempts),
            escape(one.reason),
            f"{one.dead_at:%Y-%m-%d %H:%M}",
        )
    results().print(table)


@push.command("redeliver")
@click.argument("reference", metavar="TENANT")
@click.argument("webhook", type=click.UUID, required=False)
@click.pass_context
def redeliver(context: click.Context, reference: str, webhook: UUID | None) -> None:
    """Try again what was given up of TENANT's: one WEBHOOK, or all; each goes on from where it stopped."""
    with installation(settings_of(context)) as settings:
        revived = anyio.run(_redeliver, settings, reference, webhook)
    if webhook is not None and revived == 0:
        raise NotFound(f"no such webhook of {reference} was given up; `bulkhead push dead {reference}` shows those")
    click.echo(f"{revived} webhooks are tried again")


async def _dead(settings: Settings, reference: str | None) -> list[DeadPush]:
    async with operator(settings) as verbs:
        tenant_id = None if reference is None else (await verbs.find_tenant(reference)).tenant_id
        return await store.dead(verbs.database, tenant_id)


async def _redeliver(settings: Settings, reference: str, webhook: UUID | None) -> int:
    async with operator(settings) as verbs:
        tenant = await verbs.find_tenant(reference)
        return await store.redeliver(verbs.database, tenant.tenant_id, webhook)


def _as_dict(one: DeadPush) -> dict[str, object]:
    return {
        name: str(value) if isinstance(value, UUID) else value.isoformat() if name == "dead_at" else value
        for name, value in dataclasses.asdict(one).items()
    }
