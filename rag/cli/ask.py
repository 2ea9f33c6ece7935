"""`bulkhead ask`: delegate a question to the A2A server, watch it being worked on, read the cited answer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

import anyio
import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text as Line

from rag.cli.common import ERRORS, Caller, caller_options, caller_token, json_option, print_json, settings_of
from rag.clients.a2a import A2aClient, Accepted, Ended, Progress, Result, Text, a2a_client
from rag.errors import BulkheadError
from rag.identity.scopes import Audience, Scope
from rag.runtime import http_client
from rag.settings import Settings

__all__ = ["Asked", "ask", "run_ask", "show_answer"]


@dataclass(slots=True, kw_only=True)
class Asked:
    """What a task came to."""

    task_id: str = ""
    context_id: str = ""
    state: str = ""
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """{"answerer", "model", "citations", "dropped"}."""
    progress: list[str] = field(default_factory=list[str])


async def run_ask(client: A2aClient, question: str, *, progress: Console) -> Asked:
    """Ask, printing each step and the answer as it is written to `progress`, and return what came of it.

    Raises:
        BulkheadError: The task did not complete, with its reason; or as `A2aClient.ask`.
    """
    asked = Asked()
    writing = False
    async with aclosing(client.ask(question)) as events:
        async for event in events:
            if writing and not isinstance(event, Text):
                progress.print()
                writing = False
            match event:
                case Accepted():
                    asked.task_id, asked.context_id = event.task_id, event.context_id
                    progress.print(f"[dim]task {event.task_id}[/]")
                case Progress():
                    asked.progress.append(event.text)
                    progress.print(Line(f"· {event.text}", style="dim"))
                case Text():
                    if event.restart and writing:
                        progress.print()
                    progress.print(Line(event.text), end="", soft_wrap=True)
                    writing = True
                case Result():
                    asked.text, asked.data = event.text, event.data
                case Ended():
                    asked.state = event.state
                    if event.state != "completed":
                        raise BulkheadError(f"the task was {event.state}: {event.reason or 'no reason was given'}")
    return asked


def show_answer(asked: Asked, console: Console, *, text: bool = True) -> None:
    """Print the answer (unless `text` is off: it was just read as it came), who gave it, and what it rests on."""
    if text:
        console.print(Line(asked.text))
    answerer = asked.data.get("model") or "extractive: sentences of the documents, no model"
    citations: list[Mapping[str, Any]] = list(asked.data.get("citations", []))
    dropped = int(asked.data.get("dropped", 0))
    unproved = f", {dropped} dropped" if dropped else ""
    console.print(Line(f"\n{answerer}; {len(citations)} citations checked against the stored text{unproved}", "dim"))
    for citation in citations:
        place = f"{citation['source']} [{int(citation['start'])}:{int(citation['end'])}]"
        console.print(Line.assemble((f"[{int(citation['n'])}] ", "cyan"), (str(citation["title"]), "bold")))
        console.print(Padding(Line(place, style="dim"), (0, 0, 0, 4)))
        console.print(Padding(Line("“" + " ".join(str(citation["quote"]).split()) + "”"), (0, 0, 1, 4)))


@click.command()
@click.argument("question")
@caller_options
@json_option
@click.pass_context
def ask(context: click.Context, question: str, caller: Caller, as_json: bool) -> None:
    """Have QUESTION answered from a tenant's documents, with checked citations."""
    settings = settings_of(context)
    scopes = frozenset({Scope.TASKS_RUN, Scope.CORPUS_READ})
    token = caller_token(settings, caller, audience=Audience.A2A, scopes=scopes)
    asked = anyio.run(_ask, settings, token, question)
    if as_json:
        flat = asdict(asked)
        print_json({**flat.pop("data"), **flat})
    else:
        # on one terminal the text has just been written; a pipe gets the checked answer whole
        show_answer(asked, Console(), text=not (sys.stdout.isatty() and sys.stderr.isatty()))


async def _ask(settings: Settings, token: str, question: str) -> Asked:
    async with http_client(settings) as http, a2a_client(settings.a2a_url, token, http=http) as client:
        return await run_ask(client, question, progress=ERRORS)
