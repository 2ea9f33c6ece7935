"""`bulkhead tenant servers`: which MCP servers outside of this installation a tenant's tasks may ask, and for what."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import BinaryIO

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.cli.common import json_option, operator, print_json, results, settings_of
from rag.errors import InvalidInput, Misconfigured
from rag.external.asking import query_argument
from rag.external.client import ExternalClient
from rag.external.operator import ServerList
from rag.external.store import PURPOSE
from rag.external.values import BEARER_HEADER, ExternalServer, ExternalTool
from rag.identity.seal import load_seal_keys
from rag.identity.secretbox import MAX_SECRET_CHARS, SecretBox
from rag.installation import installation
from rag.outbound import pinned_client
from rag.settings import Settings

__all__ = ["servers"]

TENANT = click.argument("reference", metavar="TENANT")
NAME = click.argument("name")
TOOL = click.option("--tool", "tools", multiple=True, help="A tool that may be called there; may be repeated.")
CREDENTIAL = click.option(
    "--credential-file",
    "credential_file",
    type=click.File("rb"),
    help="Where the server's credential stands, or - for standard input. It is stored encrypted.",
)
HEADER = click.option(
    "--credential-header",
    "header",
    help="The header that takes it: authorization (as a bearer token) or another, such as x-api-key.",
)


@click.group()
def servers() -> None:
    """Keep the list of external MCP servers that a tenant's tasks may ask."""


@servers.command("add")
@TENANT
@NAME
@click.option("--url", required=True, help="Of its MCP endpoint: https, at a public address.")
@TOOL
@HEADER
@CREDENTIAL
@click.option(
    "--send-queries/--no-send-queries",
    "sends_queries",
    default=False,
    show_default=True,
    help="Whether questions of the tenant's may go there. Without it the server is never asked.",
)
@click.pass_context
def add(
    context: click.Context,
    reference: str,
    name: str,
    url: str,
    tools: tuple[str, ...],
    header: str | None,
    credential_file: BinaryIO | None,
    sends_queries: bool,
) -> None:
    """Let tasks of TENANT ask the server at --url, which they then know as NAME, for each --tool."""
    credential = _read(credential_file)
    if credential is not None and header is None:
        header = BEARER_HEADER
    with installation(settings_of(context)) as settings:
        added = anyio.run(
            partial(
                _add,
                settings,
                reference,
                name,
                url=url,
                tools=tools,
                header=header,
                credential=credential,
                sends_queries=sends_queries,
            )
        )
    click.echo(f"added {added.name}" + ("" if sends_queries else "; it is not asked before: set --send-queries"))
    if added.lacks_credential:
        click.echo("its credential is missing: bulkhead tenant servers credential TENANT NAME --credential-file FILE")


@servers.command("list")
@TENANT
@json_option
@click.pass_context
def list_(context: click.Context, reference: str, as_json: bool) -> None:
    """Show the servers of TENANT. Credentials are not shown."""
    with installation(settings_of(context)) as settings:
        found = anyio.run(_list, settings, reference)
    if as_json:
        print_json([_as_dict(one) for one in found])
        return
    table = Table("name", "url", "tools", "credential", "queries", "", box=None, padding=(0, 2, 0, 0))
    for one in found:
        told = _as_dict(one)
        table.add_row(
            one.name,
            escape(one.url),
            escape(" ".join(one.tools)),
            str(told["credential"]),
            "may go there" if one.sends_queries else "stay here",
            "" if one.enabled else "disabled",
        )
    results().print(table)


@servers.command("set")
@TENANT
@NAME
@TOOL
@click.option("--send-queries/--no-send-queries", "sends_queries", default=None, help="Whether questions may go there.")
@click.option("--enable/--disable", "enabled", default=None, help="Whether it is asked at all.")
@click.pass_context
def set_(
    context: click.Context,
    reference: str,
    name: str,
    tools: tuple[str, ...],
    sends_queries: bool | None,
    enabled: bool | None,
) -> None:
    """Change what the server NAME of TENANT may be asked for; --tool replaces the whole list."""
    if not tools and sends_queries is None and enabled is None:
        raise InvalidInput("say what to set: --tool, --send-queries, --no-send-queries, --enable or --disable")
    with installation(settings_of(context)) as settings:
        anyio.run(_change, settings, reference, name, tools or None, sends_queries, enabled)
    click.echo("set")


@servers.command("credential")
@TENANT
@NAME
@HEADER
@CREDENTIAL
@click.option("--clear", is_flag=True, help="Forget it; the server asks for none.")
@click.pass_context
def credential_(
    context: click.Context,
    reference: str,
    name: str,
    header: str | None,
    credential_file: BinaryIO | None,
    clear: bool,
) -> None:
    """Set the credential that the server NAME of TENANT asks for. It never stands on the command line."""
    if clear == (credential_file is not None):
        raise InvalidInput("give --credential-file FILE (or - for standard input), or --clear")
    credential = _read(credential_file)
    with installation(settings_of(context)) as settings:
        anyio.run(_set_credential, settings, reference, name, header, credential)
    click.echo("cleared" if clear else "set")


@servers.command("reseal")
@TENANT
@click.pass_context
def reseal(context: click.Context, reference: str) -> None:
    """Encrypt the credentials of TENANT's servers under the active seal key. Do it between two rotations."""
    with installation(settings_of(context)) as settings:
        count, missing = anyio.run(_reseal, settings, reference)
    click.echo(f"resealed {count}" + (f"; without a credential: {', '.join(missing)}" if missing else ""))


@servers.command("remove")
@TENANT
@NAME
@click.pass_context
def remove(context: click.Context, reference: str, name: str) -> None:
    """Forget the server NAME of TENANT and its credential."""
    with installation(settings_of(context)) as settings:
        anyio.run(_remove, settings, reference, name)
    click.echo("removed")


@servers.command("test")
@TENANT
@NAME
@json_option
@click.pass_context
def test(context: click.Context, reference: str, name: str, as_json: bool) -> None:
    """Reach the server NAME of TENANT from here, and show which of its allowed tools it offers. Calls none of them."""
    with installation(settings_of(context)) as settings:
        server, offered = anyio.run(_test, settings, reference, name)
    by_name = {tool.name: tool for tool in offered}
    told = [
        {
            "tool": allowed,
            "offered": allowed in by_name,
            "query_argument": query_argument(by_name[allowed].input_schema) if allowed in by_name else None,
        }
        for allowed in server.tools
    ]
    if as_json:
        print_json(told)
        return
    for one in told:
        if not one["offered"]:
            said = "not offered"
        elif one["query_argument"] is None:
            said = "offered, but cannot be asked with a question alone"
        else:
            said = f"offered; the question goes into {one['query_argument']}"
        results().print(f"{escape(str(one['tool']))}: {escape(said)}")


@asynccontextmanager
async def _server_list(settings: Settings, reference: str) -> AsyncGenerator[ServerList]:
    if settings.seal_keys_file is None:
        raise Misconfigured("this needs BULKHEAD_SEAL_KEYS_FILE: credentials are encrypted under keys derived from it")
    box = SecretBox.derive(load_seal_keys(settings.seal_keys_file), purpose=PURPOSE)
    async with operator(settings) as verbs:
        tenant = await verbs.find_tenant(reference)
        yield ServerList(
            database=verbs.database, box=box, tenant_id=tenant.tenant_id, allow_loopback=settings.allows_loopback
        )


async def _add(settings: Settings, reference: str, name: str, **told: object) -> ExternalServer:
    async with _server_list(settings, reference) as known:
        return await known.add(name, **told)  # pyright: ignore[reportArgumentType]  # named by `add` above


async def _list(settings: Settings, reference: str) -> list[ExternalServer]:
    async with _server_list(settings, reference) as known:
        return await known.servers()


async def _change(
    settings: Settings,
    reference: str,
    name: str,
    tools: tuple[str, ...] | None,
    sends_queries: bool | None,
    enabled: bool | None,
) -> None:
    async with _server_list(settings, reference) as known:
        await known.change(name, tools=tools, sends_queries=sends_queries, enabled=enabled)


async def _set_credential(
    settings: Settings, reference: str, name: str, header: str | None, credential: str | None
) -> None:
    async with _server_list(settings, reference) as known:
        if credential is not None and header is None:
            header = (await known.find(name)).header or BEARER_HEADER
        await known.set_credential(name, header=header, credential=credential)


async def _reseal(settings: Settings, reference: str) -> tuple[int, list[str]]:
    async with _server_list(settings, reference) as known:
        return await known.reseal()


async def _remove(settings: Settings, reference: str, name: str) -> None:
    async with _server_list(settings, reference) as known:
        await known.remove(name)


async def _test(settings: Settings, reference: str, name: str) -> tuple[ExternalServer, list[ExternalTool]]:
    async with _server_list(settings, reference) as known:
        server = await known.find(name)
    client = ExternalClient(
        server=server,
        open_http=partial(pinned_client, allow_loopback=settings.allows_loopback, ca=settings.ca_certificate),
    )
    return server, await client.tools()


def _read(file: BinaryIO | None) -> str | None:
    if file is None:
        return None
    if file.fileno() == sys.stdin.fileno() and sys.stdin.isatty():
        click.echo("paste the credential, then end with Ctrl-D", err=True)
    content = file.read(MAX_SECRET_CHARS + 2)
    try:
        return content.decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise InvalidInput("a credential is one line of printable ASCII") from exc


def _as_dict(one: ExternalServer) -> dict[str, object]:
    return {
        "name": one.name,
        "url": one.url,
        "tools": list(one.tools),
        "credential": "none needed" if one.header is None else "missing" if one.credential is None else "set",
        "credential_header": one.header,
        "send_queries": one.sends_queries,
        "enabled": one.enabled,
    }
