"""`bulkhead tenant` and `bulkhead token`: who there is, and who may do what."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import UUID

import anyio
import click
from rich.markup import escape
from rich.table import Column, Table

from rag.cli.common import WEIGHT, json_option, login_name, operator, print_json, results, settings_of
from rag.cli.servers import servers
from rag.db.maintenance import MaintenanceSession, open_maintenance
from rag.errors import InvalidInput, Misconfigured
from rag.identity.scopes import Audience, Scope
from rag.installation import installation
from rag.limits.tiers import list_tiers, set_tier
from rag.limits.values import TierLimits
from rag.runtime import token_issuer
from rag.schedules.timing import duration_s
from rag.settings import Settings
from rag.tenants.operator import Tenant, Tier

__all__ = ["tenant", "token"]

DEFAULT_SCOPES = {
    Audience.MCP: (Scope.CORPUS_READ, Scope.CORPUS_WRITE, Scope.TASKS_RUN, Scope.USAGE_READ),
    Audience.A2A: (Scope.TASKS_RUN, Scope.CORPUS_READ),
}
"""A task reads the corpus for its caller, so its caller needs that right too."""
TIER = click.Choice([tier.value for tier in Tier])
COUNT = click.IntRange(1, 10_000_000)


@click.group()
def tenant() -> None:
    """Create, list and set up tenants."""


tenant.add_command(servers)


@tenant.command("create")
@click.argument("name")
@click.option("--tier", type=TIER, default=Tier.FREE.value, show_default=True)
@click.option("--language", default="english", show_default=True, help="PostgreSQL text search configuration.")
@json_option
@click.pass_context
def create(context: click.Context, name: str, tier: str, language: str, as_json: bool) -> None:
    """Add the tenant NAME."""
    with installation(settings_of(context)) as settings:
        made = anyio.run(_create, settings, name, Tier(tier), language)
    if as_json:
        print_json(_as_dict(made))
    else:
        click.echo(f"created tenant {made.name} ({made.tenant_id})")


@tenant.command("list")
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """Show every tenant."""
    with installation(settings_of(context)) as settings:
        tenants = anyio.run(_list, settings)
    if as_json:
        print_json([_as_dict(one) for one in tenants])
        return
    whole = Column("id", no_wrap=True, min_width=36)  # an id that is cut cannot be copied
    table = Table("name", whole, "tier", "language", "created", box=None, padding=(0, 2, 0, 0))
    for one in tenants:
        table.add_row(escape(one.name), str(one.tenant_id), one.tier, one.language, f"{one.created_at:%Y-%m-%d}")
    results().print(table)


@tenant.command("tiers")
@json_option
@click.pass_context
def tiers(context: click.Context, as_json: bool) -> None:
    """Show what the tenants of each tier may ask for."""
    with installation(settings_of(context)) as settings:
        found = anyio.run(_list_tiers, settings)
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
        return
    table = Table("tier", "", "units/min", "burst", "at a time", box=None, padding=(0, 2, 0, 0))
    for one in found:
        for whose, allowed in (("tenant", one.tenant), ("user", one.user)):
            numbers = (allowed.per_minute, allowed.burst, allowed.concurrency)
            table.add_row(one.name if whose == "tenant" else "", whose, *(f"{number}" for number in numbers))
    results().print(table)


@tenant.command("tier")
@click.argument("name", type=TIER)
@click.option("--requests-per-minute", "tenant_per_minute", type=COUNT, help="Units per minute of a whole tenant.")
@click.option("--burst", "tenant_burst", type=COUNT, help="Units at once, after a pause.")
@click.option("--concurrency", "tenant_concurrency", type=COUNT, help="Operations at a time in one server process.")
@click.option("--user-requests-per-minute", "user_per_minute", type=COUNT, help="The same, of each user.")
@click.option("--user-burst", type=COUNT)
@click.option("--user-concurrency", type=COUNT)
@json_option
@click.pass_context
def tier_(context: click.Context, name: str, as_json: bool, **numbers: int | None) -> None:
    """Change what the tenants of the tier NAME may ask for; servers follow within half a minute."""
    if all(number is None for number in numbers.values()):
        raise InvalidInput("say what to change, such as --requests-per-minute; `bulkhead tenant tiers` shows all")
    with installation(settings_of(context)) as settings:
        found = anyio.run(_set_tier, settings, name, numbers)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        click.echo("set")


@tenant.command("set")
@click.argument("reference", metavar="TENANT")
@click.option("--tier", type=TIER, help="What it has booked.")
@click.option("--bm25-weight", type=WEIGHT, help="Of exact words in its searches; with --vector-weight.")
@click.option("--vector-weight", type=WEIGHT, help="Of meaning in its searches; with --bm25-weight.")
@click.option("--default-weights", is_flag=True, help="Weigh as the product does.")
@click.option("--cache/--no-cache", "caching", default=None, help="Whether results of its searches may be kept.")
@click.option(
    "--audit-query-text",
    type=click.Choice(["on", "off"]),
    help="Whether its audit trail keeps what was searched for, and not only a digest of it.",
)
@click.option(
    "--task-retention",
    metavar="DURATION",
    help="How long tasks are kept after their end, such as 12h or 7d, or forever. Default: 30d.",
)
@click.pass_context
def set_(
    context: click.Context,
    reference: str,
    tier: str | None,
    bm25_weight: float | None,
    vector_weight: float | None,
    default_weights: bool,
    caching: bool | None,
    audit_query_text: str | None,
    task_retention: str | None,
) -> None:
    """Change what TENANT has booked, how it is searched, and what is kept of its searches."""
    if (bm25_weight is None) != (vector_weight is None) or (default_weights and bm25_weight is not None):
        raise InvalidInput("give both --bm25-weight and --vector-weight, or --default-weights")
    weights = None if bm25_weight is None or vector_weight is None else (bm25_weight, vector_weight)
    asked = (weights, caching, tier, audit_query_text, task_retention)
    if not default_weights and all(one is None for one in asked):
        raise InvalidInput("say what to set; `bulkhead tenant set --help` lists what there is")
    kept = None if task_retention is None or task_retention == "forever" else duration_s(task_retention)
    with installation(settings_of(context)) as settings:
        if task_retention is not None:
            anyio.run(_keep_tasks, settings, reference, kept)
        if tier is not None:
            anyio.run(_book, settings, reference, Tier(tier))
        if audit_query_text is not None:
            anyio.run(_keep_queries, settings, reference, audit_query_text == "on")
        anyio.run(_set, settings, reference, weights, weights is not None or default_weights, caching)
    click.echo("set")


@click.group(invoke_without_command=True)
@click.option("--tenant", "reference", help="Tenant name or id.")
@click.option("--user", default=None, help="The token's subject. Default: your login name.")
@click.option(
    "--audience",
    type=click.Choice([audience.value for audience in Audience]),
    help="Which server it is for. The two are not interchangeable.",
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it allows; may be repeated. Default: to use every tool (mcp-server), to run tasks on documents "
    "(a2a-server).",
)
@click.option("--group", "groups", multiple=True, help="A group of the user; may be repeated.")
@click.option("--lifetime", default=3600, show_default=True, help="Seconds.", type=click.IntRange(1, 30 * 86400))
@click.pass_context
def token(
    context: click.Context,
    reference: str | None,
    user: str | None,
    audience: str | None,
    scopes: tuple[str, ...],
    groups: tuple[str, ...],
    lifetime: int,
) -> None:
    """Print a token and nothing else, or revoke tokens."""
    if context.invoked_subcommand is not None:
        return
    if reference is None or audience is None:
        raise InvalidInput("a token needs --tenant and --audience")
    door = Audience(audience)
    with installation(settings_of(context)) as settings:
        found = anyio.run(_find, settings, reference)
        click.echo(
            token_issuer(settings).issue(
                tenant_id=found.tenant_id,
                subject=user or login_name(),
                audience=door,
                scopes=[Scope(scope) for scope in scopes] or DEFAULT_SCOPES[door],
                groups=groups,
                lifetime_s=lifetime,
            )
        )


@token.command("revoke")
@click.option("--tenant", "reference", required=True, help="Tenant name or id.")
@click.option("--jti", help="End the token with this id, and those exchanged from it.")
@click.option("--user", help="End every token issued to this user until now.")
@click.option("--all", "everything", is_flag=True, help="End every token of the tenant issued until now.")
@click.pass_context
def revoke(context: click.Context, reference: str, jti: str | None, user: str | None, everything: bool) -> None:
    """End tokens at once for everything that touches data."""
    if sum((jti is not None, user is not None, everything)) != 1:
        raise InvalidInput("say which: --jti ID, --user USER or --all")
    with installation(settings_of(context)) as settings:
        anyio.run(_revoke, settings, reference, jti, user)
    click.echo("revoked")


async def _create(settings: Settings, name: str, tier: Tier, language: str) -> Tenant:
    async with operator(settings) as verbs:
        return await verbs.create_tenant(name, tier=tier, language=language)


async def _set(
    settings: Settings, reference: str, weights: tuple[float, float] | None, weighs: bool, caching: bool | None
) -> None:
    async with operator(settings) as verbs:
        tenant_id = (await verbs.find_tenant(reference)).tenant_id
        if weighs:
            await verbs.set_weights(tenant_id, weights)
        if caching is not None:
            await verbs.set_caching(tenant_id, allowed=caching)


async def _keep_queries(settings: Settings, reference: str, kept: bool) -> None:
    async with operator(settings) as verbs:
        await verbs.set_audit_query_text((await verbs.find_tenant(reference)).tenant_id, kept=kept)


async def _keep_tasks(settings: Settings, reference: str, seconds: float | None) -> None:
    async with operator(settings) as verbs:
        await verbs.set_task_retention((await verbs.find_tenant(reference)).tenant_id, seconds)


async def _book(settings: Settings, reference: str, tier: Tier) -> None:
    async with operator(settings) as verbs:
        await verbs.set_tier((await verbs.find_tenant(reference)).tenant_id, tier)


@asynccontextmanager
async def _maintenance(settings: Settings) -> AsyncGenerator[MaintenanceSession]:
    if settings.maintenance_database_url is None:
        raise Misconfigured("this needs BULKHEAD_MAINTENANCE_DATABASE_URL")
    async with open_maintenance(settings.maintenance_database_url, application="bulkhead-cli") as session:
        yield session


async def _list_tiers(settings: Settings) -> list[TierLimits]:
    async with _maintenance(settings) as session:
        return await list_tiers(session)


async def _set_tier(settings: Settings, name: str, numbers: dict[str, int | None]) -> TierLimits:
    async with _maintenance(settings) as session:
        await set_tier(session, name, **numbers)
        return next(one for one in await list_tiers(session) if one.name == name)


async def _list(settings: Settings) -> list[Tenant]:
    async with operator(settings) as verbs:
        return await verbs.list_tenants()


async def _find(settings: Settings, reference: str) -> Tenant:
    async with operator(settings) as verbs:
        return await verbs.find_tenant(reference)


async def _revoke(settings: Settings, reference: str, jti: str | None, user: str | None) -> None:
    async with operator(settings) as verbs:
        tenant_id: UUID = (await verbs.find_tenant(reference)).tenant_id
        if jti is not None:
            await verbs.revoke_token(tenant_id, jti)
        elif user is not None:
            await verbs.revoke_user(tenant_id, user)
        else:
            await verbs.revoke_tenant(tenant_id)


def _as_dict(one: Tenant) -> dict[str, object]:
    return {
        "tenant_id": str(one.tenant_id),
        "name": one.name,
        "tier": one.tier.value,
        "language": one.language,
        "weights": one.weights,
        "cache_results": one.cache_results,
        "audit_query_text": one.audit_query_text,
        "task_retention_s": one.task_retention_s,
        "created_at": one.created_at.isoformat(),
    }
