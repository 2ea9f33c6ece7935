"""The graph of the workflow `rag`: search, rank, generate, verify. Documents are reached through the MCP server only,
as the caller.

    search -> rank -> generate -> verify -> end
                 \\____(nothing found)____/

Above: `graphs`. Below: `evidence` (pure), the MCP client and the answerer, both given by the run's context.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from rag.errors import NotFound, RateLimited, Unavailable
from rag.llm.chat import Answer, Passage
from rag.llm.ports import Emit
from workflows import evidence
from workflows.nodes import Tools, WorkflowContext, step_of, traced

__all__ = ["ANSWER", "build"]

ANSWER = "answer"
"""Id of the artifact."""
SEARCH_LIMIT = 16
NOTHING_FOUND = "Nothing in your documents matches this question, so there is no answer to give."
_RETRY = RetryPolicy(retry_on=(Unavailable, RateLimited), max_attempts=3, initial_interval=0.5, backoff_factor=2.0)


class RagState(TypedDict):
    """The graph's state; JSON values only. A node finds what the nodes before it left."""

    question: str
    hits: list[dict[str, Any]]
    passages: list[dict[str, Any]]
    answer: dict[str, Any]


RagRuntime = Runtime[WorkflowContext]


@traced
async def search(state: RagState, runtime: RagRuntime) -> dict[str, Any]:
    """Ask the MCP server for passages."""
    step, journal = step_of(runtime), runtime.context.journal
    await journal.progress(step, "begin", "searching…", step="search")
    async with runtime.context.tools() as tools:
        arguments = {"query": state["question"], "limit": SEARCH_LIMIT, "mode": "hybrid"}
        found = await tools.call("hybrid_search", arguments)
    hits = evidence.hits_of(found)
    documents = len({hit["document_id"] for hit in hits})
    text = f"found {_count(len(hits), 'passage')} in {_count(documents, 'document')}"
    await journal.progress(step, "end", text, step="search", passages=len(hits), documents=documents)
    return {"hits": hits}


@traced
async def rank(state: RagState, runtime: RagRuntime) -> dict[str, Any]:
    """Keep the best passages that fit."""
    passages = evidence.best_passages(state["hits"])
    text = f"kept the best {_count(len(passages), 'passage')}"
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

    async def produce(emit: Emit) -> Answer:
        return await context.chat.answer(state["question"], passages, emit=emit, cache_salt=context.cache_salt)

    answer = await context.journal.stream(step, ANSWER, produce)
    return {"answer": asdict(answer)}


@traced
async def verify(state: RagState, runtime: RagRuntime) -> dict[str, Any]:
    """Read every cited span again, as the caller, and keep only the citations whose words stand there."""
    step, context = step_of(runtime), runtime.context
    if not state["passages"]:
        result = evidence.result(answerer=_answerer(context), model=context.chat.model, citations=[], dropped=0)
        await context.journal.artifact(step, ANSWER, [{"text": NOTHING_FOUND}, {"data": result}])
        return {}
    answer = state["answer"]
    claimed = evidence.claims(answer, state["passages"])
    await context.journal.progress(
        step, "begin", f"checking {_count(len(claimed), 'citation')}…", step="verify", citations=len(claimed)
    )
    async with context.tools() as tools:
        kept = [held for claim in claimed if (held := await _held(tools, claim)) is not None]
    dropped = len(claimed) - len(kept) + int(answer["unverified"])
    result = evidence.result(answerer=str(answer["kind"]), model=answer["model"], citations=kept, dropped=dropped)
    text = evidence.without_markers(answer["text"], keep={int(citation["n"]) for citation in kept})
    await context.journal.artifact(step, ANSWER, [{"text": text}, {"data": result}])
    summary = f"verified {_count(len(kept), 'citation')}" + (f", dropped {dropped}" if dropped else "")
    await context.journal.progress(step, "end", summary, step="verify", citations=len(kept), dropped=dropped)
    return {}


async def _held(tools: Tools, claim: evidence.Claimed) -> dict[str, Any] | None:
    """Return the citation if the stored text, as the caller may read it now, has the quoted words at that place."""
    arguments = {"document_id": claim["document_id"], "start": claim["start"], "end": claim["end"]}
    try:
        stored = await tools.call("retrieve_document", arguments)
    except NotFound:  # deleted since the search, or no longer the caller's to read
        return None
    return evidence.citation(claim, stored)


def _answerer(context: WorkflowContext) -> str:
    return "model" if context.chat.model else "extractive"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
