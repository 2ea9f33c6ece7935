"""`bulkhead schedule`: tasks that start by themselves, again and again.

It goes through the A2A server's door with a token of the user, as `bulkhead ask` does: what a schedule may do is what
that token may, and whoever has no token of a user cannot make, see or change that user's schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.cli.common import (
    Caller,
    caller_options,
    caller_token,
    json_option,
    options_of,
    print_json,
    results,
    settings_of,
)
from rag.clients.schedules import ScheduleClient
from rag.identity.scopes import Audience, Scope
from rag.runtime import http_client
from rag.schedules.timing import duration_s, timing
from rag.schedules.values import Missed
from rag.settings import Settings

__all__ = ["schedule"]

SCOPES = frozenset({Scope.TASKS_RUN, Scope.CORPUS_READ})
"""Of a token that is minted here: what a task needs that reads documents and writes none."""
NAME = click.argument("name")


@click.group()
def schedule() -> None:
    """Have tasks started again and again, by the clock.

    A schedule acts under the token that it was made with, for 90 days unless --for says otherwise: with its user,
    groups and scopes. It stops when that token, its user or its tenant is revoked, and says so; `resume` renews it.
    """


@schedule.command("add")
@NAME
@click.argument("request")
@click.option("--cron", help='Five fields: minute, hour, day, month, weekday; "30 7 * * mon-fri". In quotes.')
@click.option("--time-zone", help="In which --cron is read, such as Europe/Berlin. Default: UTC.")
@click.option("--every", metavar="DURATION", help="Instead of --cron: 15m, 6h, 1d; from now on.")
@click.option("--workflow", help="Which one. Default: the server's first.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the workflow; VALUE is JSON or text."
)
@click.option(
    "--missed",
    type=click.Choice([one.value for one in Missed]),
    default=Missed.ONCE.value,
    show_default=True,
    help="Times that passed while the workers were down: start one task for all of them, or none.",
)
@click.option(
    "--for", "lasting", metavar="DURATION", help="How long it lasts, such as 30d. Default: 90d; at most 400d."
)
@caller_options
@json_option
@click.pass_context
def add(
    context: click.Context,
    name: str,
    request: str,
    cron: str | None,
    time_zone: str | None,
    every: str | None,
    workflow: str | None,
    options: tuple[str, ...],
    missed: str,
    lasting: str | None,
    caller: Caller,
    as_json: bool,
) -> None:
    """Have REQUEST done whenever it is due, under the NAME.

    The same again changes nothing; something else under a name that is taken is refused.
    """
    when = timing(cron=cron, time_zone=time_zone, every_s=None if every is None else duration_s(every))
    body = {
        "request": request,
        "workflow": workflow,
        "options": options_of(options),
        "cron": when.cron,
        "time_zone": when.time_zone if when.cron is not None else None,
        "every_s": when.every_s,
        "missed": missed,
        "until": _until(lasting),
    }
    made = _ask(context, caller, "PUT", name, body=body)
    _tell(made, as_json)


@schedule.command("list")
@caller_options
@json_option
@click.pass_context
def list_(context: click.Context, caller: Caller, as_json: bool) -> None:
    """Show the user's schedules."""
    found: list[dict[str, Any]] = _ask(context, caller, "GET")["schedules"]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no schedules; make one with: bulkhead schedule add --help")
        return
    table = Table("name", "when", "workflow", "state", "next", "started", box=None, padding=(0, 2, 0, 0))
    for one in found:
        table.add_row(
            escape(one["name"]), _when(one), one["workflow"], one["state"], _time(one["next_at"]), str(one["fired"])
        )
    results().print(table)


@schedule.command("show")
@NAME
@caller_options
@json_option
@click.pass_context
def show(context: click.Context, name: str, caller: Caller, as_json: bool) -> None:
    """Show one schedule in full."""
    found = _ask(context, caller, "GET", name)
    if as_json:
        print_json(found)
        return
    lines = {
        "name": found["name"],
        "request": found["request"],
        "workflow": found["workflow"],
        "options": found["options"] or "",
        "when": _when(found),
        "missed": found["missed"],
        "state": found["state"] + (f": {found['reason']}" if found["reason"] else ""),
        "next": _time(found["next_at"]),
        "until": _time(found["until"]),
        "last": _time(found["last_at"]),
        "last task": found["last_task_id"] or "",
        "started": found["fired"],
        "skipped": found["skipped"],
        "groups": ", ".join(found["groups"]),
    }
    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, value in lines.items():
        table.add_row(label, escape(str(value)))
    results().print(table)


@schedule.command("pause")
@NAME
@caller_options
@json_option
@click.pass_context
def pause(context: click.Context, name: str, caller: Caller, as_json: bool) -> None:
    """Start no more tasks for NAME, until it is resumed."""
    _tell(_ask(context, caller, "POST", name, "pause"), as_json)


@schedule.command("resume")
@NAME
@click.option("--for", "lasting", metavar="DURATION", help="How long it lasts from now on. Default: 90d; at most 400d.")
@caller_options
@json_option
@click.pass_context
def resume(context: click.Context, name: str, lasting: str | None, caller: Caller, as_json: bool) -> None:
    """Go on with NAME, from its next time on and under the token of today.

    Also for one that is active: so a schedule is renewed before it ends.
    """
    _tell(_ask(context, caller, "POST", name, "resume", body={"until": _until(lasting)}), as_json)


@schedule.command("remove")
@NAME
@caller_options
@json_option
@click.pass_context
def remove(context: click.Context, name: str, caller: Caller, as_json: bool) -> None:
    """Take NAME away; tasks that it has started go on."""
    removed = _ask(context, caller, "DELETE", name)
    if as_json:
        print_json(removed)
    else:
        click.echo(f"removed {removed['name']}")


@schedule.command("run-now")
@NAME
@click.option("--key", help="The same key again starts no second task.")
@caller_options
@json_option
@click.pass_context
def run_now(context: click.Context, name: str, key: str | None, caller: Caller, as_json: bool) -> None:
    """Start a task for NAME now, beside its times; under the token of today, whatever its state."""
    started = _ask(context, caller, "POST", name, "run", key=key)
    if as_json:
        print_json(started)
    else:
        click.echo(f"started task {started['task_id']}")


def _ask(
    context: click.Context,
    caller: Caller,
    verb: str,
    name: str | None = None,
    act: str | None = None,
    *,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> Any:
    settings = settings_of(context)
    token = caller_token(settings, caller, audience=Audience.A2A, scopes=SCOPES)

    async def ask(settings: Settings) -> Any:
        async with http_client(settings) as http:
            client = ScheduleClient(http=http, url=settings.a2a_url, token=token)
            return await client.ask(verb, name, act, body=body, key=key)

    return anyio.run(ask, settings)


def _tell(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif found["state"] == "active":
        click.echo(f"{found['name']} is active: {_when(found)}, next {_time(found['next_at'])}")
    else:
        why = f": {found['reason']}" if found["reason"] else ""
        click.echo(f"{found['name']} is {found['state']}{why}")


def _until(lasting: str | None) -> str | None:
    return None if lasting is None else (datetime.now(UTC) + timedelta(seconds=duration_s(lasting))).isoformat()


def _when(one: Mapping[str, Any]) -> str:
    if one["cron"] is not None:
        return f"{one['cron']} {one['time_zone']}"
    seconds = int(one["every_s"])
    unit, size = next(
        (unit, size) for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)) if not seconds % size
    )
    return f"every {seconds // size}{unit}"


def _time(text: str | None) -> str:
    return "" if text is None else f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M %Z}"
