"""`bulkhead usage`: what a tenant has spent on models, and the calls one by one for whoever bills them on.

Below: `rag.budgets.usage`, as the maintenance login. Totals and rows are of one snapshot of the ledger: the rows of a
file add up to its totals, to the last digit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.budgets.usage import By, Charge, Usage, UsageFilter, all_charges, read_usage
from rag.cli.budget import month_of
from rag.cli.common import as_json as json_of
from rag.cli.common import json_option, operator, print_json, printable, results, settings_of
from rag.cli.files import MOMENT, csv_line, new_file
from rag.cli.money import added, exact, short
from rag.db.maintenance import MaintenanceSession, open_maintenance
from rag.errors import InvalidInput, Misconfigured
from rag.installation import installation
from rag.settings import Settings
from rag.tenants.operator import Tenant

__all__ = ["usage"]

FOR_EVER = datetime(9999, 12, 31, tzinfo=UTC)
"""Where `--until` is not given: the database's clock need not be ours."""
COUNTS = ("calls", "estimated_calls", "prompt_tokens", "cached_tokens", "completion_tokens")
COLUMNS = tuple(field.name for field in dataclasses.fields(Charge))
"""Of an export, in this order (docs/usage.md)."""
FORMS = (".csv", ".json")


class _By(click.ParamType[Any]):
    """Some of day, model, user and team, with commas between."""

    name = "day,model,user,team"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[By, ...]:
        try:
            return value if isinstance(value, tuple) else tuple(By(one.strip()) for one in str(value).split(","))
        except ValueError:
            self.fail(f"takes some of {self.name}", param, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What was asked for, by the tenant's reference."""

    reference: str
    since: datetime
    until: datetime | None
    subject: str | None
    team: str | None
    model: str | None

    def of(self, tenant: Tenant) -> UsageFilter:
        """Return the filter of the ledger's rows."""
        return UsageFilter(
            tenant_id=tenant.tenant_id,
            since=self.since,
            until=self.until or FOR_EVER,
            subject=self.subject,
            team=self.team,
            model=self.model,
        )

    def as_dict(self, tenant: Tenant) -> dict[str, object]:
        """Return the same for JSON."""
        return {
            "tenant": tenant.name,
            "tenant_id": str(tenant.tenant_id),
            "since": self.since.isoformat(),
            "until": None if self.until is None else self.until.isoformat(),
            "user": self.subject,
            "team": self.team,
            "model": self.model,
        }


@click.command("usage")
@click.option("--tenant", "reference", required=True, help="Tenant name or id.")
@click.option("--since", type=MOMENT, help="Calls from this time on, such as 2026-01-31 (UTC). Default: this month.")
@click.option("--until", type=MOMENT, help="Calls before this time. Default: all until now.")
@click.option("--user", "subject", help="Calls for this user alone.")
@click.option("--team", help="Calls for this team alone.")
@click.option("--model", help="Calls of this model alone.")
@click.option("--by", type=_By(), default=(), help="What to tell totals apart by.")
@click.option(
    "--export",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write every call to this new file instead, FILE.csv or FILE.json, which only you can read.",
)
@json_option
@click.pass_context
def usage(
    context: click.Context,
    reference: str,
    since: datetime | None,
    until: datetime | None,
    subject: str | None,
    team: str | None,
    model: str | None,
    by: tuple[By, ...],
    file: Path | None,
    as_json: bool,
) -> None:
    """Show what a tenant has spent on models, or export every call.

    Calls belong to the time at which they began; those under way have cost nothing yet.
    """
    if file is not None and (by or file.suffix not in FORMS):
        raise InvalidInput(f"--export takes a file that ends in {' or '.join(FORMS)}, and no --by: it has every call")
    wanted = _Wanted(
        reference=reference,
        since=month_of(datetime.now(UTC)) if since is None else since,
        until=until,
        subject=subject,
        team=team,
        model=model,
    )
    if until is not None and until <= wanted.since:
        raise InvalidInput("--until must be after --since, which is the beginning of this month where it is not given")
    with installation(settings_of(context)) as settings:
        if file is not None:
            with new_file(file) as opened:
                tenant, total = anyio.run(_export, settings, wanted, opened, file.suffix)
            rows: list[Usage] = []
        else:
            tenant, found = anyio.run(_totals, settings, wanted, by)
            total, rows = _total(found), found if by else []
    if as_json:
        told = {"rows": [_as_dict(one, by) for one in rows]} if file is None else {"file": str(file)}
        print_json({**wanted.as_dict(tenant), **told, "total": _as_dict(total, ())})
    elif file is not None:
        click.echo(f"wrote {total.calls} calls, {short(total.cost)}, to {file}")
    else:
        _show(rows, by, total)


async def _totals(settings: Settings, wanted: _Wanted, by: Collection[By]) -> tuple[Tenant, list[Usage]]:
    async with _ledger(settings, wanted.reference) as (session, tenant):
        return tenant, await read_usage(session, wanted.of(tenant), by=by)


async def _export(settings: Settings, wanted: _Wanted, file: TextIO, form: str) -> tuple[Tenant, Usage]:
    async with _ledger(settings, wanted.reference) as (session, tenant), session.snapshot():
        total = _total(await read_usage(session, wanted.of(tenant)))
        charges = all_charges(session, wanted.of(tenant))
        lines = _csv(charges) if form == ".csv" else _json(charges, wanted.as_dict(tenant), total)
        async for line in lines:
            file.write(line)
        return tenant, total


@asynccontextmanager
async def _ledger(settings: Settings, reference: str) -> AsyncGenerator[tuple[MaintenanceSession, Tenant]]:
    if settings.maintenance_database_url is None:
        raise Misconfigured("this needs BULKHEAD_MAINTENANCE_DATABASE_URL")
    async with operator(settings) as tenants:
        tenant = await tenants.find_tenant(reference)
    async with open_maintenance(settings.maintenance_database_url, application="bulkhead-cli") as session:
        yield session, tenant


async def _csv(charges: AsyncIterator[Charge]) -> AsyncIterator[str]:
    yield csv_line(COLUMNS)
    async for charge in charges:
        yield csv_line(str(one).lower() if isinstance(one, bool) else one for one in _row(charge).values())


async def _json(charges: AsyncIterator[Charge], head: dict[str, object], total: Usage) -> AsyncIterator[str]:
    """Yield one JSON object, a line for each call: it can be read as a whole, and line by line."""
    opening = json_of({**head, "total": _as_dict(total, ())})
    yield f'{opening[:-1]}, "calls": ['
    before = "\n"
    async for charge in charges:
        yield before + json_of(_row(charge))
        before = ",\n"
    yield "\n]}\n"


def _row(charge: Charge) -> dict[str, object]:
    return {name: _cell(getattr(charge, name)) for name in COLUMNS}


def _cell(value: object) -> object:
    if isinstance(value, Decimal):
        return exact(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int) else str(value)


def _total(found: Sequence[Usage]) -> Usage:
    counts = {name: sum(getattr(one, name) for one in found) for name in COUNTS}
    return Usage(day=None, model=None, subject=None, team=None, cost=added(one.cost for one in found), **counts)


def _apart(one: Usage, by: Collection[By]) -> dict[str, date | str | None]:
    """Return what the row is told apart by, in the order of `By`."""
    values = {By.DAY: one.day, By.MODEL: one.model, By.USER: one.subject, By.TEAM: one.team}
    return {name.value: value for name, value in values.items() if name in by}


def _as_dict(one: Usage, by: Collection[By]) -> dict[str, object]:
    apart = {name: None if value is None else str(value) for name, value in _apart(one, by).items()}
    return {**apart, **{name: getattr(one, name) for name in COUNTS}, "cost": exact(one.cost)}


def _show(found: Sequence[Usage], by: Collection[By], total: Usage) -> None:
    heads = [name.value for name in By if name in by]
    table = Table(*heads, "calls", "estimated", "prompt", "cached", "written", "cost", box=None, padding=(0, 2, 0, 0))
    for one in found:
        named = ("none" if value is None else escape(printable(value)) for value in _apart(one, by).values())
        table.add_row(*named, *(str(getattr(one, name)) for name in COUNTS), short(one.cost))
    words = ["total", *("" for _ in heads[1:])] if heads else []
    table.add_row(*words, *(str(getattr(total, name)) for name in COUNTS), short(total.cost))
    results().print(table)
