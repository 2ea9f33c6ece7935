"""`bulkhead search`: ask a tenant's collection through the MCP server and read the passages in the terminal."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rag.cli.common import caller_options, caller_token, json_option, print_json, settings_of
from rag.clients.mcp import McpClient, mcp_client
from rag.identity.scopes import Audience, Scope
from rag.retrieval.search import DEFAULT_WEIGHTS, MAX_LIMIT, Mode
from rag.settings import Settings

__all__ = ["run_search", "search", "show"]

MAX_SHOWN_CHARS = 400


async def run_search(
    client: McpClient,
    query: str,
    *,
    limit: int = 5,
    mode: Mode = Mode.HYBRID,
    bm25_weight: float = DEFAULT_WEIGHTS[0],
    vector_weight: float = DEFAULT_WEIGHTS[1],
) -> dict[str, Any]:
    """Return the result of the tool `hybrid_search`.

    Raises:
        BulkheadError: As `McpClient.call`.
    """
    return await client.call(
        "hybrid_search",
        {
            "query": query,
            "limit": limit,
            "mode": mode.value,
            "bm25_weight": bm25_weight,
            "vector_weight": vector_weight,
        },
    )


def show(result: dict[str, Any], console: Console) -> None:
    """Print the hits, best first, with their score and the reason for it."""
    if "dense" in result["degraded"]:
        console.print("[yellow]the embedding model is not reachable: found by words alone[/]")
    if not result["hits"]:
        console.print("nothing found")
    for place, hit in enumerate(result["hits"], 1):
        why = hit["explain"]
        ranks = f"words {_rank(why['bm25_rank'])}, meaning {_rank(why['vector_rank'])}"
        console.print(Text.assemble((f"{place}. ", "dim"), (hit["title"], "bold"), (f"  {hit['score']:.3f}", "cyan")))
        about = f"{hit['source']} [{hit['start']}:{hit['end']}]  {ranks}"
        console.print(Padding(Text(about, style="dim"), (0, 0, 0, 3)))
        text = " ".join(hit["text"].split())
        short = text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
        console.print(Padding(Text(short), (0, 0, 1, 3)))


@click.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), default=5, show_default=True)
@click.option("--mode", type=click.Choice([mode.value for mode in Mode]), default=Mode.HYBRID.value, show_default=True)
@click.option("--bm25-weight", type=click.FloatRange(0), default=DEFAULT_WEIGHTS[0], show_default=True)
@click.option("--vector-weight", type=click.FloatRange(0), default=DEFAULT_WEIGHTS[1], show_default=True)
@caller_options
@json_option
@click.pass_context
def search(  # click passes them by name
    context: click.Context,
    query: str,
    limit: int,
    mode: str,
    bm25_weight: float,
    vector_weight: float,
    tenant: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Search a tenant's collection for QUERY."""
    settings = settings_of(context)
    scopes = frozenset({Scope.CORPUS_READ})
    token = caller_token(settings, tenant=tenant, user=user, audience=Audience.MCP, scopes=scopes)
    ask = partial(
        run_search, query=query, limit=limit, mode=Mode(mode), bm25_weight=bm25_weight, vector_weight=vector_weight
    )
    result = anyio.run(_search, settings, token, ask)
    if as_json:
        print_json(result)
    else:
        show(result, Console())


async def _search(settings: Settings, token: str, ask: Any) -> dict[str, Any]:
    async with mcp_client(settings.mcp_url, token, ca=settings.ca_certificate) as client:
        return await ask(client)


def _rank(place: int | None) -> str:
    return "-" if place is None else f"#{place}"
