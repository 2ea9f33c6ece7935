"""`bulkhead budget`: what tenants may spend on models, how much of it is used, and which budgets ran low.

Below: `rag.budgets`, as the maintenance login. A change is in force at the next call; servers keep no copy.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.budgets.alerts import Alert, AlertPosition, read_alerts
from rag.budgets.operator import (
    Budget,
    Period,
    Scope,
    drop_budget,
    list_budgets,
    list_tier_budgets,
    set_budget,
    set_tier_budget,
)
from rag.budgets.usage import Account, read_accounts
from rag.catalogue.operator import CatalogueOperator
from rag.cli.budget_view import account_as_dict, alert_as_dict, key_as_dict, model_in_words, time_in_words, whose
from rag.cli.common import ERRORS, json_option, operator, print_json, results, settings_of
from rag.cli.files import MOMENT
from rag.cli.money import NO_LIMIT, amount_of, exact_or_none, short
from rag.db.maintenance import MaintenanceSession, open_maintenance
from rag.errors import InvalidInput, Misconfigured
from rag.installation import installation
from rag.settings import Settings
from rag.tenants.operator import Operator, Tenant, Tier

__all__ = ["budget", "month_of"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
TENANT = click.option("--tenant", "reference", required=True, help="Tenant name or id.")


@click.group()
def budget() -> None:
    """Set what tenants may spend on models, and see what is left."""


def _budget_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options that say which budget is meant: a `Budget` without an amount, named `named`."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = {
            name: kwargs.pop(name) for name in ("period", "user", "team", "each_user", "each_team", "model")
        }
        return command(*args, named=_named(**given), **kwargs)  # pyright: ignore[reportCallIssue]  # click passes it by name

    for option in (
        click.option("--model", help="Of this model alone. Default: all models together."),
        click.option("--each-team", is_flag=True, help="Of each team that has no budget of its own."),
        click.option("--each-user", is_flag=True, help="Of each user who has no budget of their own."),
        click.option("--team", help="Of this team. Default: of the whole tenant."),
        click.option("--user", help="Of this user."),
        click.option(
            "--per",
            "period",
            type=click.Choice([period.value for period in Period]),
            required=True,
            help="Days and months are UTC's. A task's and a request's holds for each one.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


@budget.command("set")
@click.argument("amount")
@TENANT
@_budget_options
@click.pass_context
def set_(context: click.Context, amount: str, reference: str, named: Budget) -> None:
    """Let a tenant spend AMOUNT, in the installation's currency; `none` counts and limits nothing.

    A budget of the whole tenant takes the place of what its tier says for the same period. What was spent in the
    period already counts.
    """
    wanted = Budget(
        scope=named.scope,
        period=named.period,
        scope_id=named.scope_id,
        model=named.model,
        amount=amount_of(amount),
    )

    async def do(desk: _Desk) -> bool:
        await set_budget(desk.session, (await desk.tenants.find_tenant(reference)).tenant_id, wanted)
        return wanted.model == "" or wanted.model in await desk.models()

    if not _run(context, do):
        ERRORS.print(f"no model is called {escape(repr(wanted.model))} yet; `bulkhead models list` shows all")
    click.echo("set")


@budget.command("unset")
@TENANT
@_budget_options
@click.pass_context
def unset(context: click.Context, reference: str, named: Budget) -> None:
    """Take a tenant's budget away; of the whole tenant, what its tier says holds again."""

    async def do(desk: _Desk) -> None:
        await drop_budget(desk.session, (await desk.tenants.find_tenant(reference)).tenant_id, named)

    _run(context, do)
    click.echo("unset")


@budget.command("list")
@TENANT
@json_option
@click.pass_context
def list_(context: click.Context, reference: str, as_json: bool) -> None:
    """Show the budgets of a tenant: its own, and those that it has from its tier."""

    async def do(desk: _Desk) -> list[tuple[Budget, str]]:
        return await _in_force(desk, await desk.tenants.find_tenant(reference))

    found = _run(context, do)
    if as_json:
        print_json([{**key_as_dict(one), "amount": exact_or_none(one.amount), "from": why} for one, why in found])
        return
    table = Table("whose", "model", "per", "amount", "from", box=None, padding=(0, 2, 0, 0))
    for one, why in found:
        table.add_row(whose(one.scope, one.scope_id), model_in_words(one.model), one.period, short(one.amount), why)
    results().print(table)


@budget.command("status")
@TENANT
@json_option
@click.pass_context
def status(context: click.Context, reference: str, as_json: bool) -> None:
    """Show what is used and left of a tenant's budgets now. One that no call was held against yet is not listed."""

    async def do(desk: _Desk) -> list[Account]:
        found = await desk.tenants.find_tenant(reference)
        return await read_accounts(desk.session, found.tenant_id, datetime.now(UTC))

    accounts = _run(context, do)
    if as_json:
        print_json([account_as_dict(one) for one in accounts])
        return
    heads = ("whose", "model", "per", "amount", "used", "held", "left", "resets")
    table = Table(*heads, box=None, padding=(0, 2, 0, 0))
    for one in accounts:
        numbers = (one.amount, one.used, one.held, one.left)
        table.add_row(
            whose(one.scope, one.scope_id),
            model_in_words(one.model),
            one.period,
            *map(short, numbers),
            time_in_words(one.ends_at),
        )
    results().print(table)


@budget.command("tiers")
@json_option
@click.pass_context
def tiers(context: click.Context, as_json: bool) -> None:
    """Show what a tenant of each tier may spend, unless it has a budget of its own."""
    found = _run(context, lambda desk: list_tier_budgets(desk.session))
    if as_json:
        print_json(
            [{"tier": one.tier, "day": exact_or_none(one.day), "month": exact_or_none(one.month)} for one in found]
        )
        return
    table = Table("tier", "day", "month", box=None, padding=(0, 2, 0, 0))
    for one in found:
        table.add_row(one.tier, short(one.day), short(one.month))
    results().print(table)


@budget.command("tier")
@click.argument("name", type=click.Choice([tier.value for tier in Tier]))
@click.option("--day", metavar="AMOUNT", help=f"For a day of UTC, or {NO_LIMIT}.")
@click.option("--month", metavar="AMOUNT", help=f"For a month of UTC, or {NO_LIMIT}.")
@click.pass_context
def tier_(context: click.Context, name: str, day: str | None, month: str | None) -> None:
    """Change what tenants of the tier NAME may spend, unless they have budgets of their own."""
    given = {Period.DAY: day, Period.MONTH: month}
    amounts = {period: amount_of(text) for period, text in given.items() if text is not None}
    if not amounts:
        raise InvalidInput("say what to change: --day or --month; `bulkhead budget tiers` shows all")

    async def do(desk: _Desk) -> None:
        for period, amount in amounts.items():
            await set_tier_budget(desk.session, name, period, amount)

    _run(context, do)
    click.echo("set")


@budget.command("alerts")
@TENANT
@click.option("--since", type=MOMENT, help="From this time on, such as 2026-01-31 (UTC). Default: this month.")
@json_option
@click.pass_context
def alerts(context: click.Context, reference: str, since: datetime | None, as_json: bool) -> None:
    """Show which of a tenant's budgets were used to 80 and to 100 per cent, and when."""
    first = month_of(datetime.now(UTC)) if since is None else since

    async def do(desk: _Desk) -> list[Alert]:
        return await _alerts(desk.session, (await desk.tenants.find_tenant(reference)).tenant_id, first)

    found = _run(context, do)
    if as_json:
        print_json([alert_as_dict(one) for one in found])
        return
    table = Table("at", "per cent", "whose", "model", "per", "from", "amount", "used", box=None, padding=(0, 2, 0, 0))
    for one in found:
        table.add_row(
            time_in_words(one.at),
            str(one.mark),
            whose(one.scope, one.scope_id),
            model_in_words(one.model),
            one.period,
            "" if one.ends_at is None else time_in_words(one.starts_at),
            short(one.amount),
            short(one.used),
        )
    results().print(table)


def month_of(moment: datetime) -> datetime:
    """Return the first moment of its month."""
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Desk:
    """What a verb works with, both as the maintenance login."""

    session: MaintenanceSession
    tenants: Operator
    settings: Settings

    async def models(self) -> set[str]:
        """Return the names of all models that calls may be charged for."""
        known = {model.name for model in await CatalogueOperator(database=self.tenants.database).models()}
        return known | ({self.settings.llm_model} if self.settings.llm_model else set())


def _run(context: click.Context, do: Callable[[_Desk], Awaitable[T]]) -> T:
    with installation(settings_of(context)) as settings:
        return anyio.run(_at_desk, settings, do)


async def _at_desk(settings: Settings, do: Callable[[_Desk], Awaitable[T]]) -> T:
    async with _desk(settings) as desk:
        return await do(desk)


@asynccontextmanager
async def _desk(settings: Settings) -> AsyncGenerator[_Desk]:
    if settings.maintenance_database_url is None:
        raise Misconfigured("this needs BULKHEAD_MAINTENANCE_DATABASE_URL")
    async with (
        operator(settings) as tenants,
        open_maintenance(settings.maintenance_database_url, application="bulkhead-cli") as session,
    ):
        yield _Desk(session=session, tenants=tenants, settings=settings)


async def _in_force(desk: _Desk, tenant: Tenant) -> list[tuple[Budget, str]]:
    """Return the tenant's budgets, each with where it is from."""
    own = await list_budgets(desk.session, tenant.tenant_id)
    replaced = {one.period for one in own if one.scope is Scope.TENANT and not one.model}
    booked = next(one for one in await list_tier_budgets(desk.session) if one.tier == tenant.tier.value)
    amounts: dict[Period, Decimal | None] = {Period.DAY: booked.day, Period.MONTH: booked.month}
    return [
        *(
            (Budget(scope=Scope.TENANT, period=period, amount=amount), f"tier {tenant.tier.value}")
            for period, amount in amounts.items()
            if amount is not None and period not in replaced
        ),
        *((one, "tenant") for one in own),
    ]


async def _alerts(session: MaintenanceSession, tenant_id: UUID, since: datetime) -> list[Alert]:
    found: list[Alert] = []
    after: AlertPosition = (since, UUID(int=0), 0)
    while page := await read_alerts(session, tenant_id, after=after):
        found += page
        after = page[-1].position
    return found


def _named(
    *, period: str, user: str | None, team: str | None, each_user: bool, each_team: bool, model: str | None
) -> Budget:
    """Return the budget that the options name, without an amount.

    Raises:
        InvalidInput: They name none.
    """
    if "" in {user, team, model}:
        raise InvalidInput("a name is not empty; for each one there are --each-user and --each-team")
    scopes = [
        scope
        for scope, given in (
            (Scope.USER, user is not None),
            (Scope.USER, each_user),
            (Scope.TEAM, team is not None),
            (Scope.TEAM, each_team),
        )
        if given
    ]
    if len(scopes) > 1:
        raise InvalidInput("say whose: one of --user, --each-user, --team, --each-team, or none for the whole tenant")
    span = Period(period)
    if span in {Period.TASK, Period.REQUEST}:
        if scopes:
            raise InvalidInput(f"a budget per {period} holds for each {period}, whoever's it is")
        scopes = [Scope(period)]
    return Budget(
        scope=scopes[0] if scopes else Scope.TENANT,
        period=span,
        scope_id=user or team or "",
        model=model or "",
        amount=None,
    )
