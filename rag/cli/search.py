"""`bulkhead search`: ask a tenant's collection through the MCP server and read the passages in the terminal."""

from __future__ import annotations

import json
from typing import Any

import anyio
import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from rag.cli.common import (
    WEIGHT,
    Caller,
    caller_options,
    caller_token,
    json_option,
    print_json,
    printable,
    results,
    settings_of,
)
from rag.clients.mcp import mcp_client
from rag.errors import InvalidInput
from rag.identity.scopes import Audience, Scope
from rag.retrieval.values import MAX_LIMIT, Fusion, Mode
from rag.settings import Settings

__all__ = ["search", "show"]

MAX_SHOWN_CHARS = 400


def show(result: dict[str, Any], console: Console, *, explain: bool = False) -> None:
    """Print the hits, best first, with their score and the reason for it; with `explain`, all of it."""
    if "dense" in result["degraded"]:
        console.print("[yellow]the embedding model is not reachable: found by words alone[/]")
    if "rerank" in result["degraded"]:
        console.print("[yellow]the reranker is late: the order is that of the fused scores[/]")
    if result["stale"]:
        console.print("[yellow]the version asked for was not reached in time: the newest writes may be missing[/]")
    for word, near in result["report"]["expanded"].items():
        console.print(Text(f"no document has {word}; searched for {', '.join(near)}", style="yellow"))
    if not result["hits"]:
        console.print("nothing found")
    for place, hit in enumerate(result["hits"], 1):
        why = hit["explain"]
        ranks = f"words {_rank(why['bm25_rank'])}, meaning {_rank(why['vector_rank'])}"
        console.print(
            Text.assemble((f"{place}. ", "dim"), (printable(hit["title"]), "bold"), (f"  {hit['score']:.3f}", "cyan"))
        )
        about = f"{printable(hit['source'])} [{hit['start']}:{hit['end']}]  {ranks}"
        console.print(Padding(Text(about, style="dim"), (0, 0, 0, 3)))
        if explain:
            console.print(Padding(Text(_reason(hit), style="dim"), (0, 0, 0, 3)))
        text = " ".join(printable(hit["text"]).split())
        short = text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
        console.print(Padding(Text(short), (0, 0, 1, 3)))


@click.command()
@click.argument("query")
@click.option("--limit", type=click.IntRange(1, MAX_LIMIT), default=5, show_default=True, help="Passages.")
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.HYBRID.value,
    show_default=True,
    help="By words and meaning, by words alone, or by meaning alone.",
)
@click.option("--bm25-weight", type=WEIGHT, help="Relative to --vector-weight. Default: the tenant's.")
@click.option("--vector-weight", type=WEIGHT, help="Relative to --bm25-weight. Default: the tenant's.")
@click.option(
    "--fusion",
    type=click.Choice([way.value for way in Fusion]),
    default=Fusion.CONVEX.value,
    show_default=True,
    help="How words and meaning become one order: by scores, or by ranks alone.",
)
@click.option(
    "--filter", "filter_text", help='JSON, such as \'{"metadata": {"court": "district"}}\' (docs/filters.md).'
)
@click.option("--max-per-document", type=click.IntRange(1, MAX_LIMIT), help="So many passages of one document at most.")
@click.option("--min-version", type=click.IntRange(0), help="A corpus version: wait until its writes are found.")
@click.option("--explain", is_flag=True, help="Show what each score is made of, and how the search was run.")
@caller_options
@json_option
@click.pass_context
def search(
    context: click.Context,
    query: str,
    filter_text: str | None,
    explain: bool,
    caller: Caller,
    as_json: bool,
    **asked: Any,
) -> None:
    """Search a tenant's collection for QUERY; words in double quotes must occur as a phrase."""
    arguments = {name: value for name, value in asked.items() if value is not None}
    if filter_text is not None:
        try:
            arguments["filter"] = json.loads(filter_text)
        except ValueError as exc:
            raise InvalidInput("--filter is not JSON") from exc
    settings = settings_of(context)
    token = caller_token(settings, caller, audience=Audience.MCP, scopes=frozenset({Scope.CORPUS_READ}))
    result = anyio.run(_search, settings, token, {"query": query, **arguments})
    if as_json:
        print_json(result)
        return
    console = results()
    show(result, console, explain=explain)
    if explain:
        report = result["report"]
        timings = ", ".join(f"{name} {ms:.1f} ms" for name, ms in report["timings_ms"].items())
        plans = f"words {report['lexical_plan']}, meaning {report['dense_plan']}, {report['chunks']} chunks"
        console.print(Text(f"{plans}; {timings}{'; cached' if report['cached'] else ''}", style="dim"))


async def _search(settings: Settings, token: str, arguments: dict[str, Any]) -> dict[str, Any]:
    async with mcp_client(settings.mcp_url, token, ca=settings.ca_certificate) as client:
        return await client.call("hybrid_search", arguments)


def _reason(hit: dict[str, Any]) -> str:
    why = hit["explain"]
    terms = ", ".join(f"{term['term']} x{term['frequency']} (idf {term['idf']:.2f})" for term in why["terms"])
    cosine = "-" if why["vector_score"] is None else f"{why['vector_score']:.3f}"
    parts = f"words {why['bm25_score']:.3f} -> {why['bm25_part']:.3f}, meaning {cosine} -> {why['vector_part']:.3f}"
    return f"{parts}; {terms or 'no term of the query'}"


def _rank(place: int | None) -> str:
    return "-" if place is None else f"#{place}"
