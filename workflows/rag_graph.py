"""The graph of the workflow `rag`: search, rank, generate, verify. Documents are reached through the MCP server only,
as the caller.

    search -> rank -> generate -> verify -> end
                 \\____(nothing found)____/

Above: `graphs`. Below: `evidence` and `citations` (pure), `checking`, and the run's context, which has the MCP server's
tools and the answerer.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from rag.errors import RateLimited, Unavailable
from rag.llm.chat import Answer, Passage, answer_of
from workflows import evidence
from workflows.checking import check
from workflows.citations import Delivered, Unverified, deliver, measured, quotes_of, statements
from workflows.markdown import counted
from workflows.nodes import WorkflowContext, step_of, traced

__all__ = ["ANSWER", "build"]

ANSWER = "answer"
"""Id of the artifact."""
NOTHING_FOUND = "Nothing in your documents matches this question, so there is no answer to give."
NOTHING_VERIFIED = (
    "Nothing of what was written could be verified against your documents, so there is no answer to give."
)
_RETRY = RetryPolicy(retry_on=(Unavailable, RateLimited), max_attempts=3, initial_interval=0.5, backoff_factor=2.0)


class RagState(TypedDict):
    """The graph's state; JSON values only. A node finds what the nodes before it left."""

    question: str
    unverified: Unverified
    limit: int
    filter: dict[str, Any] | None
    hits: list[dict[str, Any]]
    passages: list[dict[str, Any]]
    answer: dict[str, Any]


RagRuntime = Runtime[WorkflowContext]


@traced
async def search(state: RagState, runtime: RagRuntime) -> dict[str, Any]:
    """Ask the MCP server for passages."""
    step, journal = step_of(runtime), runtime.context.journal
    await journal.progress(step, "begin", "searching…", step="search")
    async with runtime.context.tools(step) as tools:
        arguments: dict[str, Any] = {"query": state["question"], "limit": state["limit"], "mode": "hybrid"}
        if state["filter"] is not None:
            arguments["filter"] = state["filter"]
        found = await tools.call("hybrid_search", arguments)
    hits = evidence.hits_of(found)
    documents = len({hit["document_id"] for hit in hits})
    text = f"found {counted(len(hits), 'passage')} in {counted(documents, 'document')}"
    await journal.progress(step, "end", text, step="search", passages=len(hits), documents=documents)
    return {"hits": hits}


@traced
async def rank(state: RagState, runtime: RagRuntime) -> dict[str, Any]:
    """Keep the best passages that fit."""
    passages = evidence.best_passages(state["hits"])
    text = f"kept the best {counted(len(passages), 'passage')}"
    await runtime.context.journal.progress(step_of(runtime), "end", text, step="rank", passages=len(passages))
    return {"passages": passages}


def after_rank(state: RagState) -> Literal["generate", "verify"]:
    """Without a passage nothing is generated."""
    return "generate" if state["passages"] else "verify"


@traced
async def generate(state: RagState, runtime: RagRuntime) -> dict[str, Any]:
    """Have the answerer write, streaming its text into the artifact."""
    step, context = step_of(runtime), runtime.context
    how = f"writing with {context.chat.model}" if context.chat.model else "extracting sentences (extractive, no model)"
    await context.journal.progress(step, "begin", f"{how}…", step="generate", answerer=_answerer(context))
    passages = [Passage(text=hit["text"], title=evidence.label(hit)) for hit in state["passages"]]
    answer = await context.answer(step, ANSWER, state["question"], passages)
    return {"answer": asdict(answer)}


@traced
async def verify(state: RagState, runtime: RagRuntime) -> dict[str, Any]:
    """Read every cited span again, as the caller, and show as verified only what stands there."""
    step, context = step_of(runtime), runtime.context
    if not state["passages"]:
        nothing = Delivered(text=NOTHING_FOUND)
        await context.journal.artifact(
            step, ANSWER, _parts(nothing, Answer(kind=_answerer(context), model=context.chat.model, text=""), state)
        )
        return {}
    answer = answer_of(state["answer"])
    claims = statements(answer, state["passages"])
    quotes = quotes_of(claims)
    text = f"checking {counted(len(quotes), 'citation')}…"
    await context.journal.progress(step, "begin", text, step="verify", citations=len(quotes))
    async with context.tools(step) as tools:
        holding = await check(tools, quotes)
    delivered = deliver(answer.text, claims, holding, unverified=state["unverified"])
    if not delivered.statements:
        delivered = replace(delivered, text=NOTHING_VERIFIED)
    await context.journal.artifact(step, ANSWER, _parts(delivered, answer, state))
    dropped = delivered.claimed - delivered.verified
    summary = f"verified {counted(len(delivered.citations), 'citation')}" + (
        f", {dropped} unverified" if dropped else ""
    )
    await context.journal.progress(
        step, "end", summary, step="verify", citations=len(delivered.citations), dropped=dropped
    )
    return {}


def _parts(delivered: Delivered, answer: Answer, state: RagState) -> list[dict[str, Any]]:
    data = {
        "answerer": answer.kind,
        "model": answer.model,
        **({"served": asdict(answer.served)} if answer.served is not None else {}),
        "citations": [{"n": n, **citation} for n, citation in delivered.citations],
        "claims": list(delivered.claims),
        **measured([delivered], unverified=state["unverified"]),
    }
    return [{"text": delivered.text}, {"data": data}]


def _answerer(context: WorkflowContext) -> Literal["extractive", "model"]:
    return "model" if context.chat.model else "extractive"


def build() -> StateGraph[RagState, WorkflowContext, RagState, RagState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(RagState, context_schema=WorkflowContext)
    graph.add_node("search", search, retry_policy=_RETRY)
    graph.add_node("rank", rank)
    graph.add_node("generate", generate, retry_policy=_RETRY)
    graph.add_node("verify", verify, retry_policy=_RETRY)
    graph.add_edge(START, "search")
    graph.add_edge("search", "rank")
    graph.add_conditional_edges("rank", after_rank)
    graph.add_edge("generate", "verify")
    graph.add_edge("verify", END)
    return graph
