"""`bulkhead ask`: delegate a question to the A2A server, watch it being worked on, read the cited answer or report."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console
from rich.padding import Padding
from rich.text import Text as Line

from rag.cli.ask_forms import Answer, ask_at_prompt, how_to_answer, show_needs
from rag.cli.ask_view import View, cost_line, viewing
from rag.cli.common import (
    ERRORS,
    Caller,
    caller_options,
    caller_token,
    json_option,
    options_of,
    print_json,
    printable,
    settings_of,
)
from rag.clients.a2a import A2aClient, Accepted, Ended, Event, Needs, Progress, Result, a2a_client
from rag.errors import BulkheadError
from rag.identity.scopes import Audience, Scope
from rag.runtime import http_client
from rag.settings import Settings

__all__ = ["Asked", "ask", "run_ask", "show_answer"]

WAITS, CANCELED, DETACHED = 3, 4, 130
"""Exit codes, besides 0 for a task that was completed, 1 for one that failed, and 2 for a wrong use of the command."""
SCOPES = frozenset({Scope.TASKS_RUN, Scope.CORPUS_READ})
WRITING = frozenset({"ingest", "react"})
"""Workflows that may write, where the caller may."""
REPORTS = "sections"
"""The data of a report has it; its text has its references, which those of an answer are printed below."""
Events = Callable[[A2aClient], AsyncGenerator[Event]]


@dataclass(slots=True, kw_only=True)
class Asked:
    """What a task came to, as far as it was followed."""

    task_id: str = ""
    context_id: str = ""
    state: str = ""
    reason: str | None = None
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the last artifact; of an answer {"answerer", "model", "citations", "dropped", ...}."""
    progress: list[str] = field(default_factory=list[str])
    usage: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs: Needs | None = None
    """What it waits for."""


async def run_ask(
    client: A2aClient,
    question: str,
    *,
    progress: Console,
    skill: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Asked:
    """Ask, showing each step and the answer as it is written in `progress`, and return what came of it.

    A task that needs an answer is left waiting: `Asked.needs` says for what.

    Raises:
        BulkheadError: The task did not complete, with its reason; or as `A2aClient.ask`.
    """
    asked = Asked()
    with viewing(progress) as view:
        await _follow(client.ask(question, skill=skill, options=options), asked, view)
    if asked.state != "completed" and asked.needs is None:
        raise BulkheadError(_end_of(asked))
    return asked


async def _follow(stream: AsyncGenerator[Event], asked: Asked, view: View) -> None:
    asked.needs = None
    async with aclosing(stream) as events:
        async for event in events:
            view.show(event)
            match event:
                case Accepted():
                    asked.task_id, asked.context_id = event.task_id, event.context_id
                case Progress():
                    asked.progress.append(event.text)
                    asked.usage = event.metadata.get("usage") or asked.usage
                case Result():
                    asked.text, asked.data = event.text, event.data
                case Needs():
                    asked.state, asked.needs = "auth-required" if event.auth else "input-required", event
                case Ended():
                    asked.state, asked.reason = event.state, event.reason
                case _:
                    pass


def _end_of(asked: Asked) -> str:
    return f"the task was {asked.state}: {asked.reason or 'no reason was given'}"


def show_answer(asked: Asked, console: Console, *, text: bool = True) -> None:
    """Print the answer (unless `text` is off: it was just read as it came), who gave it, and what it rests on."""
    if text:
        # a line of a table or of a report that is cut in two is none any more
        console.print(Line(printable(asked.text)), soft_wrap=REPORTS in asked.data or not console.is_terminal)
    citations: list[Mapping[str, Any]] = list(asked.data.get("citations", []))
    if "citations" in asked.data:
        console.print(Line(f"\n{_standing(asked, len(citations))}", "dim"), soft_wrap=not console.is_terminal)
    if REPORTS in asked.data:
        return
    for citation in citations:
        place = f"{printable(citation['source'])} [{int(citation['start'])}:{int(citation['end'])}]"
        console.print(Line.assemble((f"[{int(citation['n'])}] ", "cyan"), (printable(citation["title"]), "bold")))
        console.print(Padding(Line(place, style="dim"), (0, 0, 0, 4)))
        console.print(Padding(_quoted(citation), (0, 0, 1, 4)))
    for external in asked.data.get("external", []):
        said_by = f"{printable(external['server'])} ({printable(external['tool'])}), not verified"
        console.print(Line.assemble((f"[{int(external['n'])} external] ", "yellow"), (said_by, "bold")))
        console.print(Padding(_quoted(external), (0, 0, 1, 4)))


def _quoted(citation: Mapping[str, Any]) -> Line:
    return Line("“" + " ".join(printable(citation["quote"]).split()) + "”")


def _standing(asked: Asked, citations: int) -> str:
    answerer = asked.data.get("model") or "extractive: sentences of the documents, no model"
    parts = [str(answerer), f"{citations} citations checked against the stored text"]
    dropped = int(asked.data.get("dropped") or 0)
    if dropped:
        parts.append(f"{dropped} {'marked' if asked.data.get('unverified') == 'mark' else 'dropped'}")
    measures = {name: asked.data.get(name) for name in ("precision", "coverage")}
    parts.extend(f"{name} {float(value):.2f}" for name, value in measures.items() if value is not None)
    if cost := cost_line(asked.data.get("cost") or asked.usage):
        parts.append(cost)
    return f"{parts[0]}; {', '.join(parts[1:])}"


@click.command()
@click.argument("question", required=False)
@caller_options
@click.option("--workflow", default=None, help="Which workflow runs; `research` writes a report. Default: rag.")
@click.option("--profile", default=None, help="Short for --option profile=...: fixed sections of a report.")
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the workflow; VALUE is JSON or text."
)
@click.option("--key", default=None, help="Your own name for this task: asked again under it, no second one is made.")
@click.option("--task", "task_id", default=None, help="Follow a task that is there already, instead of asking.")
@click.option("--answer", default=None, help="With --task: answer what it asks, in words.")
@click.option("--cancel", is_flag=True, help="With --task: cancel it.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Write the text to a file."
)
@json_option
@click.pass_context
def ask(
    context: click.Context,
    question: str | None,
    caller: Caller,
    workflow: str | None,
    profile: str | None,
    options: tuple[str, ...],
    key: str | None,
    task_id: str | None,
    answer: str | None,
    cancel: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Have QUESTION answered from a tenant's documents, with checked citations.

    Ctrl-C detaches: the task goes on, and `bulkhead ask --task ID` comes back to it. Exit codes: 0 completed, 1 failed,
    3 it waits for an answer, 4 canceled, 130 detached.
    """
    if (question is None) == (task_id is None):
        raise click.UsageError("ask a QUESTION, or name a task with --task")
    if task_id is None and (cancel or answer is not None):
        raise click.UsageError("--cancel and --answer go with --task")
    chosen = options_of(options) | ({} if profile is None else {"profile": profile})
    settings = settings_of(context)
    scopes = SCOPES | {Scope.CORPUS_WRITE} if workflow in WRITING else SCOPES
    token = caller_token(settings, caller, audience=Audience.A2A, scopes=scopes)
    if cancel and task_id is not None:
        anyio.run(_cancel, settings, token, task_id)
        ERRORS.print(f"task {task_id} is canceled")
        return
    asked = Asked(task_id=task_id or "")

    def first(client: A2aClient) -> AsyncGenerator[Event]:
        if task_id is None:
            return client.ask(str(question), skill=workflow, options=chosen, key=key)
        return client.follow(task_id) if answer is None else client.reply(task_id, answer)

    detached = _converse(settings, token, asked, first)
    if detached:
        ERRORS.print(f"detached; the task goes on. Come back with: {_back_to(asked, caller)}", soft_wrap=True)
        sys.exit(DETACHED)
    _report(asked, as_json=as_json, output=output, back=_back_to(asked, caller))


def _back_to(asked: Asked, caller: Caller) -> str:
    return f"bulkhead ask --task {asked.task_id}{caller.arguments()}"


def _converse(settings: Settings, token: str, asked: Asked, first: Events) -> bool:
    """Follow the task to its end, answering what it asks at the prompt. Returns whether the user left it before."""
    events = first
    while True:
        if anyio.run(_watch, settings, token, asked, events):
            if not asked.task_id:
                raise click.Abort
            return True
        if asked.needs is None:
            return False
        show_needs(asked.needs, ERRORS)
        if not sys.stdin.isatty():
            return False
        try:
            given = ask_at_prompt(asked.needs)
        except click.Abort:
            return True
        events = _replying(asked.task_id, given)


def _replying(task_id: str, given: Answer) -> Events:
    def replied(client: A2aClient) -> AsyncGenerator[Event]:
        return client.reply(task_id, given.text, response=given.response)

    return replied


async def _watch(settings: Settings, token: str, asked: Asked, events: Events) -> bool:
    """Follow the task until it ends or asks; returns True where Ctrl-C came before."""
    interrupted = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def wait_for_interrupt() -> None:
            with anyio.open_signal_receiver(signal.SIGINT) as signals:
                async for _ in signals:
                    interrupted.set()
                    tasks.cancel_scope.cancel()
                    return

        tasks.start_soon(wait_for_interrupt)
        async with http_client(settings) as http, a2a_client(settings.a2a_url, token, http=http) as client:
            with viewing(ERRORS) as view:
                await _follow(events(client), asked, view)
        tasks.cancel_scope.cancel()
    return interrupted.is_set()


async def _cancel(settings: Settings, token: str, task_id: str) -> None:
    async with http_client(settings) as http, a2a_client(settings.a2a_url, token, http=http) as client:
        await client.cancel(task_id)


def _report(asked: Asked, *, as_json: bool, output: Path | None, back: str) -> None:
    if output is not None and asked.text:
        output.write_text(asked.text if asked.text.endswith("\n") else asked.text + "\n", encoding="utf-8")
        ERRORS.print(f"written to {output}")
    if as_json:
        flat = asdict(asked)
        print_json({**flat.pop("data"), **flat})
    elif asked.text:
        # on one terminal an answer has just been written, but a report as a draft; a pipe gets either whole
        seen = sys.stdout.isatty() and sys.stderr.isatty() and REPORTS not in asked.data
        show_answer(asked, Console(), text=not (seen or output is not None))
    if asked.needs is not None:
        ERRORS.print(how_to_answer(asked.needs, back), soft_wrap=True)
        sys.exit(WAITS)
    if asked.state == "canceled":
        ERRORS.print("the task was canceled")
        sys.exit(CANCELED)
    if asked.state != "completed":
        raise BulkheadError(_end_of(asked))
