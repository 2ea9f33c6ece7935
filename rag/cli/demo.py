"""`bulkhead demo`: the whole main job on real text, from an empty folder to proofs, in a few minutes.

Three tenants filled with real law; a hybrid search that finds the right section; a question delegated as a durable
task, its progress line by line, its answer with citations; and attempts to get through the walls. Every step goes
through the public doors with real tokens; one that does not come out as it must ends the demo with an error.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rag.cli.ask import run_ask, show_answer
from rag.cli.common import operator, settings_of
from rag.cli.demo_proof import Proof, forged_statements, refused_tokens
from rag.cli.ingest import run_ingest
from rag.cli.supervisor import free_port, port_is_free, running
from rag.clients.a2a import a2a_client
from rag.clients.mcp import McpClient, mcp_client
from rag.errors import BulkheadError, Conflict, Misconfigured, Unavailable
from rag.identity.scopes import Audience, Scope
from rag.installation import installation
from rag.runtime import http_client, token_issuer
from rag.settings import Settings
from rag.tenants.operator import Tenant, Tier

__all__ = ["demo"]

TENANTS = ("securities", "privacy", "patents")
STATUTE = "to effect a short sale, or to use or employ any stop-loss order in connection with the purchase or sale"
"""The words of section 10(a) of the Securities Exchange Act, 15 U.S.C. 78j(a): securities' text and nobody else's."""
STATUTE_SOURCE = "15-78j-manipulative-and-deceptive-devices.md"
SEARCHES = (
    ("what does the law say about manipulative and deceptive devices?", STATUTE_SOURCE),
    (
        "can an executive who trades on secret company information be sued by other traders?",
        "15-78t-1-liability-to-contemporaneous-traders-for-insider-trading.md",
    ),
)
QUESTION = "Who may apply for a patent if the inventor refuses or cannot be found?"
VECTORS_BOUND_S = 180.0

_out = Console(highlight=False, width=None if sys.stdout.isatty() else 116)


@click.command()
@click.pass_context
def demo(context: click.Context) -> None:
    """Show the whole job on real text, in minutes.

    Starts everything, loads three tenants of real law, searches, asks, and proves the walls.
    """
    started = time.monotonic()
    _say(
        "Bulkhead keeps many tenants' documents in one PostgreSQL, lets AI clients search them (MCP) and agents work "
        "on them (A2A), and shows no tenant a line of another's. This demo runs the real system, start to end."
    )
    with installation(_with_free_ports(settings_of(context))) as settings:
        anyio.run(_demo, settings)
    _out.print(
        f"\n[bold green]Everything above was real and every proof held.[/] {time.monotonic() - started:.0f} s in all."
    )
    _out.print(
        "\nGo on with:\n"
        "  make up                                                 the same system, left running\n"
        '  .venv/bin/bulkhead search --tenant privacy "who may see my medical records"\n'
        '  .venv/bin/bulkhead ask --tenant patents "how long does a patent last?"\n'
        "  .venv/bin/bulkhead doctor                               what is running, and what is not"
    )


async def _demo(settings: Settings) -> None:
    async with running(settings, os.environ):  # noqa: TID251  # PATH and the like, for the child processes
        _step(1, "Running", f"MCP at {settings.mcp_url}, A2A at {settings.a2a_url}, one worker, PostgreSQL 18")
        tenants = await _tenants(settings)
        _step(2, "Three tenants, filled with the United States Code through the MCP server")
        await _fill(settings, tenants)
        _step(3, "Hybrid search: words and meaning, each hit with its reason")
        await _search(settings, tenants["securities"])
        _step(4, "A question delegated over A2A: a durable task, followed live")
        await _ask(settings, tenants["patents"])
        _step(5, "The same query by each tenant, side by side")
        await _side_by_side(settings, tenants)
        _step(6, "Raw SQL with the servers' own database login")
        _hold(await forged_statements(settings, tenants["securities"]))
        _step(7, "Tokens that must not open a door")
        _hold(await refused_tokens(settings, tenants["securities"]))
        _summary(tenants)


async def _tenants(settings: Settings) -> dict[str, Tenant]:
    async with operator(settings) as verbs:
        for name in TENANTS:
            try:
                await verbs.create_tenant(name, tier=Tier.FREE)
            except Conflict:
                _out.print(f"  tenant {name} is there from an earlier run")
        return {tenant.name: tenant for tenant in await verbs.list_tenants() if tenant.name in TENANTS}


async def _fill(settings: Settings, tenants: Mapping[str, Tenant]) -> None:
    samples = _samples()
    for name, tenant in tenants.items():
        async with _client(settings, tenant) as client:
            report = await run_ingest([samples / name], client, progress=True)
        if report.refused:
            raise BulkheadError(f"{len(report.refused)} sample documents were refused")
        _out.print(f"  {name}: {report.created} new, {report.unchanged} unchanged; searchable by words now")
    _out.print("  vectors follow in the background; waiting for them, so that meaning can be searched too")
    with anyio.move_on_after(VECTORS_BOUND_S) as bound:
        while waiting := sum([await _waiting(settings, tenant) for tenant in tenants.values()]):
            _out.print(f"  {waiting} documents still without vectors")
            await anyio.sleep(3.0)
    if bound.cancelled_caught:
        raise Unavailable(f"the vectors were not made in {VECTORS_BOUND_S:.0f} s; see {settings.data_dir}/logs")


async def _waiting(settings: Settings, tenant: Tenant) -> int:
    async with _client(settings, tenant) as client:
        return int((await client.call("list_documents", {"limit": 1}))["embeddings_pending"])


async def _search(settings: Settings, tenant: Tenant) -> None:
    async with _client(settings, tenant) as client:
        for query, source in SEARCHES:
            began = time.perf_counter()
            hits = (await client.call("hybrid_search", {"query": query, "limit": 3}))["hits"]
            took = (time.perf_counter() - began) * 1000
            _out.print(f'\n  "{query}"  [dim]({took:.0f} ms over HTTP)[/]')
            table = Table("score", "section", "by words", "by meaning", "terms that occur", box=None, padding=(0, 2))
            for hit in hits:
                table.add_row(f"{hit['score']:.3f}", escape(hit["title"]), *_reasons(hit["explain"]))
            _out.print(table)
            if source not in {hit["source"] for hit in hits}:
                raise BulkheadError(f"the search did not find {source}")


def _reasons(explain: Mapping[str, Any]) -> tuple[str, str, str]:
    def rank(leg: str) -> str:
        place = explain[f"{leg}_rank"]
        return f"{'-' if place is None else f'#{place}'} (+{explain[f'{leg}_part']:.3f})"

    return rank("bm25"), rank("vector"), " ".join(term["term"] for term in explain["terms"][:6])


async def _ask(settings: Settings, tenant: Tenant) -> None:
    token = token_issuer(settings).issue(
        tenant_id=tenant.tenant_id,
        subject="demo",
        audience=Audience.A2A,
        scopes=[Scope.TASKS_RUN, Scope.CORPUS_READ],
        lifetime_s=600,
    )
    _out.print(f"  {QUESTION}\n")
    async with http_client(settings) as http, a2a_client(settings.a2a_url, token, http=http) as client:
        asked = await run_ask(client, QUESTION, progress=_out)
    show_answer(asked, _out, text=False)
    if not asked.data.get("citations"):
        raise BulkheadError("the answer carries no verified citation")


async def _side_by_side(settings: Settings, tenants: Mapping[str, Tenant]) -> None:
    table = Table("tenant", "tool", "best answer to the exact words of 15 U.S.C. 78j", box=None, padding=(0, 2))
    async with _client(settings, tenants["securities"]) as client:
        hits = (await client.call("hybrid_search", {"query": STATUTE}))["hits"]
        own = next(hit["document_id"] for hit in hits if hit["source"] == STATUTE_SOURCE)
    for name, tenant in tenants.items():
        async with _client(settings, tenant) as client:
            found = [
                ("hybrid_search", (await client.call("hybrid_search", {"query": STATUTE, "limit": 50}))["hits"]),
                ("search_documents", (await client.call("search_documents", {"query": STATUTE}))["documents"]),
                ("list_documents", (await client.call("list_documents", {"limit": 100}))["documents"]),
            ]
            for tool, rows in found:
                leaked = [row for row in rows if row["document_id"] == own]
                shown = rows[0]["title"] if rows else "nothing"
                table.add_row(
                    name, tool, escape(shown if tool != "list_documents" else f"{len(rows)} documents listed")
                )
                if name != "securities" and leaked:
                    raise BulkheadError(f"{name} was shown a document of securities by {tool}")
            answer = await _retrieve(client, own)
            table.add_row(name, "retrieve_document", f"by the id of securities' document: {escape(answer)}")
            if ("78j" in answer) != (name == "securities"):
                raise BulkheadError(f"{name} was answered wrongly by retrieve_document")
    _out.print(table)


async def _retrieve(client: McpClient, document_id: str) -> str:
    try:
        return str((await client.call("retrieve_document", {"document_id": document_id}))["document"]["title"])
    except BulkheadError as exc:
        return exc.message


def _hold(proofs: list[Proof]) -> None:
    table = Table("", "attempt", "what came back", box=None, padding=(0, 2))
    for proof in proofs:
        table.add_row(
            "[green]held[/]" if proof.held else "[bold red]BROKEN[/]", escape(proof.attempt), escape(proof.answer)
        )
    _out.print(table)
    broken = [proof.attempt for proof in proofs if not proof.held]
    if broken:
        raise BulkheadError(f"a wall did not hold: {broken[0]}")


def _summary(tenants: Mapping[str, Tenant]) -> None:
    _out.rule("What you saw")
    for line in (
        f"{len(tenants)} tenants in one database, {', '.join(tenants)}: 337 sections of law, parsed, cut and indexed.",
        "Search united BM25 and vectors, and said of each hit why it is there. Statistics are each tenant's own.",
        "A task was accepted durably, run by a worker, streamed event by event; its citations checked word for word.",
        "Nobody but securities could find, list or fetch its statute; SQL without a genuine seal got errors, not rows.",
        "The answer was extractive: sentences quoted from the law. Set BULKHEAD_LLM_URL to have a model write it.",
    ):
        _out.print(f"  - {line}")


def _step(number: int, title: str, detail: str = "") -> None:
    _out.print(f"\n[bold]{number}. {title}[/]" + (f"  [dim]{detail}[/]" if detail else ""))


def _say(text: str) -> None:
    _out.print(text, soft_wrap=False)


def _client(settings: Settings, tenant: Tenant) -> Any:
    token = token_issuer(settings).issue(
        tenant_id=tenant.tenant_id,
        subject="demo",
        audience=Audience.MCP,
        scopes=[Scope.CORPUS_READ, Scope.CORPUS_WRITE],
        lifetime_s=600,
    )
    return mcp_client(settings.mcp_url, token, ca=settings.ca_certificate)


def _samples() -> Path:
    for folder in (Path("samples"), Path(__file__).parents[2] / "samples"):
        if all((folder / name).is_dir() for name in TENANTS):
            return folder
    raise Misconfigured("the samples folder is not here; run the demo from the project's folder")


def _with_free_ports(settings: Settings) -> Settings:
    """Keep the usual ports where they are free: the demo must run beside anything."""
    mcp, a2a = settings.mcp_port, settings.a2a_port
    if not port_is_free(settings.mcp_host, mcp):
        mcp = free_port(settings.mcp_host)
    if not port_is_free(settings.a2a_host, a2a):
        a2a = free_port(settings.a2a_host)
    return dataclasses.replace(settings, mcp_port=mcp, a2a_port=a2a)
