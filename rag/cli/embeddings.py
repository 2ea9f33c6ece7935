"""`bulkhead embeddings`: which model makes each tenant's vectors, and how a tenant changes it without downtime.

Below: `rag.tenants.models`. The vectors are made and the switch is done by the workers (`bulkhead up` runs one).
"""

from __future__ import annotations

import time
from uuid import UUID

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.cli.common import ERRORS, json_option, operator, print_json, results, settings_of
from rag.db.pool import Database
from rag.errors import Conflict, InvalidInput, Unavailable
from rag.installation import installation
from rag.llm.configured import configured_models
from rag.settings import Settings
from rag.tenants import models as catalogue
from rag.tenants.models import Fill, KnownModel, ModelStatus, State

__all__ = ["embeddings"]

LOOK_S = 1.0
tenant_option = click.option("--tenant", "reference", default=None, help="Tenant name or id.")


@click.group()
def embeddings() -> None:
    """Show and change the embedding models of tenants."""


@embeddings.command("models")
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models that tenants may use, and where this configuration finds them.

    A model comes here by BULKHEAD_EMBEDDINGS_FILE (or BULKHEAD_EMBEDDINGS_MODEL) and `bulkhead migrate`.
    """
    configured = settings_of(context)
    served = {(one.name, one.dimension): one.url or "built in" for one in configured_models(configured)}
    with installation(configured) as settings:
        known = anyio.run(_models, settings)
    if as_json:
        print_json([_model_dict(one, served.get((one.name, one.dimension))) for one in known])
        return
    table = Table("model", "dimension", "tenants", "changing to it", "served by", box=None, padding=(0, 2, 0, 0))
    for one in known:
        where = served.get((one.name, one.dimension), "not configured here")
        table.add_row(escape(one.name), str(one.dimension), str(one.tenants), str(one.changing), escape(where))
    results().print(table)


@embeddings.command("status")
@tenant_option
@json_option
@click.pass_context
def status(context: click.Context, reference: str | None, as_json: bool) -> None:
    """Show each tenant's model, the one it is changing to, and how many chunks have vectors of each."""
    with installation(settings_of(context)) as settings:
        found = anyio.run(_statuses, settings, reference)
    if as_json:
        print_json([_status_dict(one) for one in found])
    else:
        _show(found)


@embeddings.command("migrate")
@tenant_option
@click.option("--all", "everyone", is_flag=True, help="Every tenant that does not use the model already.")
@click.option("--model", default=None, help="The model to change to; `bulkhead embeddings models` lists them.")
@click.option("--dimension", type=click.IntRange(min=1), default=None, help="Where a model has several.")
@click.option("--cancel", is_flag=True, help="Go back: keep the model in use, delete what was made of the next one.")
@click.option("--wait", is_flag=True, help="Return when the change is done.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    help="Seconds, of --wait.",
)
@json_option
@click.pass_context
def migrate(
    context: click.Context,
    reference: str | None,
    everyone: bool,
    model: str | None,
    dimension: int | None,
    cancel: bool,
    wait: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Change a tenant to another embedding model, beside its searches.

    The workers make the new vectors; searches use the old ones until all are there, then the new ones, and never both.
    Configure the model for every server and worker first: one that lacks it answers by words alone after the switch.
    """
    if (reference is None) == (not everyone):
        raise InvalidInput("say whose: --tenant NAME or --all")
    if (model is None) == (not cancel):
        raise InvalidInput("say what: --model NAME or --cancel")
    with installation(settings_of(context)) as settings:
        found = anyio.run(_migrate, settings, reference, model, dimension, timeout_s if wait else None)
    if as_json:
        print_json([_status_dict(one) for one in found])
    else:
        _show(found)


async def _models(settings: Settings) -> list[KnownModel]:
    async with operator(settings) as verbs:
        return await catalogue.models(verbs.database)


async def _statuses(settings: Settings, reference: str | None) -> list[ModelStatus]:
    async with operator(settings) as verbs:
        tenant_id = None if reference is None else (await verbs.find_tenant(reference)).tenant_id
        return await catalogue.statuses(verbs.database, tenant_id)


async def _migrate(
    settings: Settings, reference: str | None, model: str | None, dimension: int | None, timeout_s: float | None
) -> list[ModelStatus]:
    """Start (or, without a model, cancel) the change of one tenant or of all, and return how those stand."""
    async with operator(settings) as verbs:
        if reference is not None:
            tenant_id = (await verbs.find_tenant(reference)).tenant_id
            await _start(verbs.database, tenant_id, model, dimension)
            changed = [tenant_id]
        else:
            changed: list[UUID] = []
            for tenant in await verbs.list_tenants():
                try:
                    await _start(verbs.database, tenant.tenant_id, model, dimension)
                except Conflict:  # it uses the model already, or has nothing to cancel
                    continue
                changed.append(tenant.tenant_id)
        if timeout_s is not None and model is not None:
            await _wait(verbs.database, changed, timeout_s)
        wanted = set(changed)
        return [one for one in await catalogue.statuses(verbs.database) if one.tenant_id in wanted]


async def _start(database: Database, tenant_id: UUID, model: str | None, dimension: int | None) -> None:
    if model is None:
        await catalogue.cancel(database, tenant_id)
    else:
        await catalogue.migrate(database, tenant_id, model, dimension=dimension)


async def _wait(database: Database, changed: list[UUID], timeout_s: float) -> None:
    wanted, since, told = set(changed), time.monotonic(), ""
    first: int | None = None
    while True:
        moving = [one for one in await catalogue.statuses(database) if one.tenant_id in wanted and one.next is not None]
        if not moving:
            return
        elapsed = time.monotonic() - since
        done = sum(one.next.filled for one in moving if one.next)
        first = done if first is None else first
        line = _progress(moving, made=done - first, elapsed_s=elapsed)
        if line != told:
            ERRORS.print(line, soft_wrap=True)
            told = line
        if elapsed > timeout_s:
            raise Unavailable(
                f"not done after {timeout_s:.0f} s; the workers go on: `bulkhead embeddings status` shows how far"
            )
        await anyio.sleep(LOOK_S)


def _progress(moving: list[ModelStatus], *, made: int, elapsed_s: float) -> str:
    """Return one line: how many tenants are on the way, of how many chunks, and how long it may take at this rate."""
    total = sum(one.chunks for one in moving)
    done = min(total, sum(one.next.filled for one in moving if one.next))
    failing = sum(one.failures > 0 for one in moving)
    parts = [f"{len(moving)} to change", f"{done} of {total} chunks filled"]
    if made > 0 and done < total:
        parts.append(f"about {(total - done) * elapsed_s / made:.0f} s left")
    if indexing := sum(one.state is State.INDEXING for one in moving):
        parts.append(f"{indexing} waiting for a graph")
    if failing:
        parts.append(f"{failing} failing: is the model configured for the worker, and does its server answer?")
    return ", ".join(parts)


def _show(found: list[ModelStatus]) -> None:
    table = Table("tenant", "state", "chunks", "model", "changing to", "note", box=None, padding=(0, 2, 0, 0))
    for one in found:
        note = f"{one.failures} failures in a row" if one.failures else f"{one.unused} to delete" if one.unused else ""
        table.add_row(
            escape(one.tenant), one.state, str(one.chunks), _fill(one.active, one), _fill(one.next, one), note
        )
    results().print(table)


def _fill(fill: Fill | None, one: ModelStatus) -> str:
    if fill is None:
        return "-"
    share = f"{100 * min(fill.filled, one.chunks) / one.chunks:.0f} %" if one.chunks else "100 %"
    return escape(f"{fill.model} ({fill.dimension}), {share}{', graph' if fill.graph else ''}")


def _fill_dict(fill: Fill | None) -> dict[str, object] | None:
    if fill is None:
        return None
    return {"model": fill.model, "dimension": fill.dimension, "filled": fill.filled, "graph": fill.graph}


def _status_dict(one: ModelStatus) -> dict[str, object]:
    return {
        "tenant_id": one.tenant_id,
        "tenant": one.tenant,
        "state": one.state.value,
        "chunks": one.chunks,
        "active": _fill_dict(one.active),
        "next": _fill_dict(one.next),
        "unused": one.unused,
        "failures": one.failures,
    }


def _model_dict(one: KnownModel, served: str | None) -> dict[str, object]:
    return {
        "model": one.name,
        "dimension": one.dimension,
        "tenants": one.tenants,
        "changing": one.changing,
        "served_by": served,
    }
