"""The graph of the workflow `ingest`: message after message is stored, and then told what became of each document.

    take -> store -> take ... -> settle -> report -> end
       \\____ask____/ (more is announced, nothing is there)

Above: `graphs`. Below: `importing` (pure), `storing`, the MCP server as the caller. The documents stay where they
were accepted, in the task's input and in its log: the state has positions and the account. A put is by source, and its
result recorded: a step that is replayed writes nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import anyio
import anyio.to_thread
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from rag.errors import InvalidInput, RateLimited, Unavailable
from rag.tasks.values import Received
from workflows import importing
from workflows.forms import AskUser, Question
from workflows.importing import Offer, Refused, parsed_options
from workflows.journal import Step
from workflows.nodes import WorkflowContext, step_of, traced
from workflows.storing import refusal_row, store_batch

__all__ = ["IMPORT", "build"]

IMPORT = "import"
"""Id of the artifact."""
MORE, DONE = "more", "done"
NEXT = "next"
"""Id of the question."""
SETTLE_ROUNDS = 60
SETTLE_PAUSE_S = 1.0
"""About as long as a thousand documents take to get their vectors from the local model."""
_RETRY = (
    # a tenant at its rate is served at its rate; the attempt's time limit is the bound
    RetryPolicy(retry_on=RateLimited, max_attempts=100, initial_interval=1.0, backoff_factor=1.5, max_interval=10.0),
    RetryPolicy(retry_on=Unavailable, max_attempts=5, initial_interval=0.5, backoff_factor=2.0),
)


class IngestState(TypedDict, total=False):
    """The graph's state; JSON values only."""

    at: int | None
    """Position in the log of the message that is being stored; 0: the one that the task was made of."""
    read: int
    """Position of the last message that has been."""
    messages: int
    """How many have been."""
    more: bool
    """Whether the caller has announced further ones."""
    wait: bool
    """Whether vectors are to be waited for."""
    rows: list[dict[str, Any]]
    """What became of each document, message by message."""
    corpus_version: int | None
    vectors: str
    woken: int


IngestRuntime = Runtime[WorkflowContext]


@traced
async def take(state: IngestState, runtime: IngestRuntime) -> IngestState:
    """Find the next message to store."""
    if "read" not in state:
        return {"at": 0, "read": 0, "messages": 0, "more": False, "wait": False, "rows": [], "corpus_version": None}
    unread = await _unread(runtime.context, state["read"])
    return {"at": unread[0].seq if unread else None}


def after_take(state: IngestState) -> Literal["store", "ask", "settle", "report"]:
    """Store what is there; ask for what was announced; then end."""
    if state.get("at") is not None:
        return "store"
    if state.get("more"):
        return "ask"
    return "settle" if state.get("wait") and state.get("corpus_version") is not None else "report"


@traced
async def store(state: IngestState, runtime: IngestRuntime) -> IngestState:
    """Store the documents of one message, in batches, each told as it is done."""
    step, context = step_of(runtime), runtime.context
    at, number = state.get("at") or 0, state.get("messages", 0) + 1
    rows, wait = list(state.get("rows", [])), state.get("wait", False)
    try:
        options = parsed_options(await _message(context, at))
    except InvalidInput as exc:
        # the first message was checked when it was accepted; of a later one nothing is stored then, and that is told
        reason = exc.message
        rows.append(refusal_row(Refused(source=f"message {number}", code=InvalidInput.code, reason=reason), number))
        await context.journal.progress(step, "end", f"refused message {number}: {reason}", step="store")
        return {"read": at, "messages": number, "rows": rows}
    more = options.more if "more" in options.model_fields_set else state.get("more", False)
    if not options.documents and not options.files:
        return {"read": at, "more": more}
    found = await anyio.to_thread.run_sync(importing.offers, options.model_dump())
    version = await _store_all(context, step, found, rows, number)
    return {
        "read": at,
        "messages": number,
        "more": more,
        "wait": wait or options.wait_for_vectors,
        "rows": rows,
        "corpus_version": version if version is not None else state.get("corpus_version"),
    }


@traced
async def ask(state: IngestState, runtime: IngestRuntime) -> IngestState:
    """Wait for the next message, which is the answer."""
    told = importing.told(importing.tally(state.get("rows", [])))
    question = f"{told}. Send the next documents with the word {MORE!r}, or the last ones, or none, with {DONE!r}."
    form = AskUser(id=NEXT, questions=(Question(question=question, choices=(MORE, DONE)),))
    reply = runtime.context.ask(step_of(runtime), form)
    return {"more": reply.answers != ((DONE,),)}


@traced
async def settle(state: IngestState, runtime: IngestRuntime) -> IngestState:
    """Wait until what was stored is found by its meaning too, for a bounded time."""
    step, context = step_of(runtime), runtime.context
    version = state.get("corpus_version")
    await context.journal.progress(step, "begin", "waiting for vectors…", step="vectors")
    async with context.tools(step) as tools:
        for number in range(SETTLE_ROUNDS):
            # a search that names the version of the last write tells whether it has all of them
            arguments = {"query": "import", "limit": 1, "mode": "keyword", "rerank": False, "min_version": version}
            if not (await tools.call("hybrid_search", arguments))["stale"]:
                await context.journal.progress(step, "end", "every vector is there", step="vectors", pending=0)
                return {"vectors": "ready"}
            pending = int((await tools.call("document_stats", {}))["embeddings_pending"])
            text = f"{pending} documents wait for their vectors"
            await context.journal.progress(step, f"round {number}", text, step="vectors", pending=pending)
            await anyio.sleep(SETTLE_PAUSE_S)
    await context.journal.progress(step, "end", "some vectors are still being made", step="vectors")
    return {"vectors": "pending"}


@traced
async def report(state: IngestState, runtime: IngestRuntime) -> IngestState:
    """Write the account."""
    step, context = step_of(runtime), runtime.context
    rows = state.get("rows", [])
    text, data = importing.account(
        rows,
        messages=state.get("messages", 0),
        corpus_version=state.get("corpus_version"),
        vectors=state.get("vectors", "not waited for"),
    )
    await context.journal.artifact(step, IMPORT, [{"text": text}, {"data": data}])
    counts = importing.tally(rows)
    told = importing.told(counts)
    await context.journal.progress(step, "end", told, step="report", stored=counts.stored, refused=counts.refused)
    return {}


async def _unread(context: WorkflowContext, after: int) -> list[Received]:
    """Return the messages after a position, in their order: those that came by themselves, and those that answer."""
    exchanges = [one for key, one in context.exchanges.items() if key.endswith(f":{NEXT}")]
    answers = [one.answer for one in exchanges if one.answer is not None and one.answer.seq > after]
    return sorted([*await context.inbox(after), *answers], key=lambda one: one.seq)


async def _message(context: WorkflowContext, at: int) -> Mapping[str, Any]:
    """Return what the message at a position of the log has besides its text; 0: the one that the task was made of."""
    return context.input if at == 0 else (await _unread(context, at - 1))[0].data


async def _store_all(
    context: WorkflowContext, step: Step, found: Sequence[Offer | Refused], rows: list[dict[str, Any]], number: int
) -> int | None:
    """Store what a message offers and append a row for each; returns the corpus version of the last write."""
    before = len(rows)
    total = before + len(found)
    room = importing.MAX_TASK_DOCUMENTS - before
    offered = [one for one in found[:room] if isinstance(one, Offer)]
    rows += [refusal_row(one, number) for one in found[:room] if isinstance(one, Refused)]
    if len(found) > room:
        reason = f"{len(found) - room:,} documents of it were not taken: a task has at most {before + room:,}"
        rows.append(refusal_row(Refused(source=f"message {number}", code=InvalidInput.code, reason=reason), number))
    await _tell(context, step, "begin", rows, total)
    version: int | None = None
    async with context.tools(step) as tools:
        for count, batch in enumerate(importing.batches(offered)):
            stored, written = await store_batch(tools.call, batch)
            rows += [{**row, "message": number} for row in stored]
            version = version if written is None else written
            await _tell(context, step, f"batch {count}", rows, total)
    return version


async def _tell(context: WorkflowContext, step: Step, name: str, rows: Sequence[Mapping[str, Any]], total: int) -> None:
    counts = importing.tally(rows, total=total)
    numbers = {"stored": counts.stored, "refused": counts.refused, "total": counts.total}
    await context.journal.progress(step, name, importing.told(counts), step="store", **numbers)


def build() -> StateGraph[IngestState, WorkflowContext, IngestState, IngestState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(IngestState, context_schema=WorkflowContext)
    graph.add_node("take", take)
    graph.add_node("store", store, retry_policy=_RETRY)
    graph.add_node("ask", ask)
    graph.add_node("settle", settle, retry_policy=_RETRY)
    graph.add_node("report", report)
    graph.add_edge(START, "take")
    graph.add_conditional_edges("take", after_take)
    graph.add_edge("store", "take")
    graph.add_edge("ask", "take")
    graph.add_edge("settle", "report")
    graph.add_edge("report", END)
    return graph
