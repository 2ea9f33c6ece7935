"""The graph of the workflow `hybrid`: own documents and external servers side by side, one answer, sources told apart.

    survey -> search -> fuse -> generate -> verify -> end
         \\_ authorize _/   \\__(nothing found)__/

Above: `graphs`. Below: `hybrid_sources` (pure), `checking`, the MCP server and the external servers, given by the run's
context. An external server's failure is an outcome to be told; only our own failing makes the run try again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypedDict, cast

import anyio
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from rag.errors import CostReached, Forbidden, InvalidInput, RateLimited, Unavailable
from rag.external.asking import query_argument
from rag.external.client import ExternalClient
from rag.llm.chat import Answer, Passage, answer_of
from rag.tasks.values import CallKind
from workflows import evidence, hybrid_sources
from workflows.checking import check
from workflows.citations import quotes_of, statements
from workflows.forms import AskUser, Question
from workflows.hybrid_sources import Outcome, Recorded
from workflows.journal import Called, Step
from workflows.nodes import WorkflowContext, step_of, traced
from workflows.together import together

__all__ = ["ANSWER", "RESULTS", "build"]

ANSWER, RESULTS = "answer", "external-results"
"""Ids of the artifacts."""
SEARCH_LIMIT = 16
MAX_SERVERS = 8
MAX_TOOLS = 4
"""Of one server that are asked the same question."""
SERVERS_AT_A_TIME = 4
SERVER_BOUND_S = 60.0
"""For all exchanges with one server."""
CONTINUE, SKIP = "continue", "skip"
STAYS_HERE = "no question of this organisation may be sent there"
TOO_MANY = f"a task asks {MAX_SERVERS} servers at most; name those to ask in servers"
NOTHING_FOUND = "Nothing in your documents or on the external servers matches this question."
_RETRY = RetryPolicy(retry_on=(Unavailable, RateLimited), max_attempts=3, initial_interval=0.5, backoff_factor=2.0)


class HybridState(TypedDict):
    """The graph's state; JSON values only. A node finds what the nodes before it left."""

    question: str
    servers: list[str] | None
    unverified: Literal["drop", "mark"]
    ask: list[str]
    """External servers that are asked."""
    missing: list[str]
    """Those that an operator has still to set a credential for."""
    outcomes: list[Outcome]
    hits: list[dict[str, Any]]
    results: list[Recorded]
    passages: list[dict[str, Any]]
    answer: dict[str, Any]


HybridRuntime = Runtime[WorkflowContext]


@traced
async def survey(state: HybridState, runtime: HybridRuntime) -> dict[str, Any]:
    """Look which external servers may be asked this question."""
    clients = await _clients(runtime.context, state["servers"])
    known = {client.server.name for client in clients}
    outcomes = [
        _outcome(name, "not asked", "there is no such server") for name in state["servers"] or () if name not in known
    ]
    ask: list[str] = []
    missing: list[str] = []
    for client in clients:
        server = client.server
        if not server.sends_queries:
            outcomes.append(_outcome(server.name, "not asked", STAYS_HERE))
        elif len(ask) + len(missing) == MAX_SERVERS:
            outcomes.append(_outcome(server.name, "not asked", TOO_MANY))
        else:
            (missing if server.lacks_credential else ask).append(server.name)
    return {"ask": ask, "missing": missing, "outcomes": outcomes}


def after_survey(state: HybridState) -> Literal["authorize", "search"]:
    """A missing credential is asked for once."""
    return "authorize" if state["missing"] else "search"


@traced
async def authorize(state: HybridState, runtime: HybridRuntime) -> dict[str, Any]:
    """Have the caller see to the missing credentials. They are an operator's to set; none goes through the task."""
    names = ", ".join(state["missing"])
    question = (
        f"These external servers need a credential that nobody has set: {names}. An operator sets it with "
        f"`bulkhead tenant servers credential`; do not send it here. Answer {CONTINUE} once it is set, or {SKIP} to go "
        "on without them."
    )
    form = AskUser(id="credentials", questions=(Question(question=question, choices=(CONTINUE, SKIP)),), auth=True)
    reply = runtime.context.ask(step_of(runtime), form)
    lacking = set(state["missing"])
    if reply.answers[0][0] == CONTINUE:
        clients = await _clients(runtime.context, state["missing"])
        lacking -= {client.server.name for client in clients if not client.server.lacks_credential}
    return {
        "ask": state["ask"] + [name for name in state["missing"] if name not in lacking],
        "missing": [],
        "outcomes": state["outcomes"]
        + [_outcome(name, "not asked", "its credential is missing") for name in state["missing"] if name in lacking],
    }


@traced
async def search(state: HybridState, runtime: HybridRuntime) -> dict[str, Any]:
    """Search the caller's documents and ask the external servers, side by side."""
    step, context = step_of(runtime), runtime.context
    named = f" and asking {', '.join(state['ask'])}" if state["ask"] else ""
    await context.journal.progress(step, "begin", f"searching{named}…", step="search", servers=len(state["ask"]))
    by_name = {client.server.name: client for client in await _clients(context, state["ask"])}
    found: list[list[dict[str, Any]]] = []
    answers: dict[str, tuple[Outcome, list[Recorded]]] = {}

    async def inside() -> None:
        async with context.tools(step) as tools:
            arguments = {"query": state["question"], "limit": SEARCH_LIMIT, "mode": "hybrid"}
            found.append(evidence.hits_of(await tools.call("hybrid_search", arguments)))

    async def outside(name: str) -> None:
        answers[name] = await _ask(context, step, by_name.get(name), name, state["question"])

    await together([inside, *(partial(outside, name) for name in state["ask"])], at_a_time=1 + SERVERS_AT_A_TIME)
    outcomes = [answers[name][0] for name in state["ask"]]
    results = [recorded for name in state["ask"] for recorded in answers[name][1]]
    failed = [one["server"] for one in outcomes if one["status"] != "asked"]
    text = f"found {len(found[0])} passages here and {len(results)} results elsewhere"
    await context.journal.progress(
        step,
        "end",
        text + (f"; without {', '.join(failed)}" if failed else ""),
        step="search",
        passages=len(found[0]),
        results=len(results),
        failed=failed,
    )
    return {"hits": found[0], "results": results, "outcomes": state["outcomes"] + outcomes}


async def _ask(
    context: WorkflowContext, step: Step, client: ExternalClient | None, name: str, question: str
) -> tuple[Outcome, list[Recorded]]:
    """Ask one server with each of its allowed tools that takes a question."""
    if client is None:
        return _outcome(name, "not asked", "it was taken off the list meanwhile"), []
    if not client.server.sends_queries:  # an operator's word counts as it is now: the task may have waited for a day
        return _outcome(name, "not asked", STAYS_HERE), []
    results: list[Recorded] = []
    reasons: list[str] = []
    with anyio.move_on_after(SERVER_BOUND_S) as scope:
        offered = await _recorded(context, step, f"external:{name}", partial(_offered, client))
        if "failed" in offered:
            return _outcome(name, "failed", offered["failed"]), []
        usable: list[list[str]] = offered["tools"]
        for tool, argument in usable[:MAX_TOOLS]:
            perform = partial(_called, client, tool, {argument: question})
            made = await _recorded(context, step, f"external:{name}:{tool}", perform)
            if "failed" in made:
                reasons.append(made["failed"])
            elif made["text"].strip():
                results.append(cast("Recorded", made))
        if not usable:
            reasons.append("it offers no allowed tool that takes a question alone")
    if scope.cancelled_caught:
        reasons.append("it took too long")
    if reasons and not results:
        return _outcome(name, "failed", reasons[0]), []
    return Outcome(server=name, status="asked", reason="", results=len(results)), results


async def _recorded(context: WorkflowContext, step: Step, name: str, perform: Any) -> dict[str, Any]:
    async def safely() -> Called:
        try:
            return Called(result=await perform())
        except (CostReached, RateLimited):
            raise
        except (Forbidden, InvalidInput, Unavailable) as exc:
            # a stranger's failure is a result like any other: the run goes on, also when it is replayed
            return Called(result={"failed": exc.message})

    return await context.call(step, name, safely, kind=CallKind.EXTERNAL)


async def _offered(client: ExternalClient) -> dict[str, Any]:
    asked = [(tool.name, query_argument(tool.input_schema)) for tool in await client.tools()]
    return {"tools": [[name, argument] for name, argument in asked if argument is not None]}


async def _called(client: ExternalClient, tool: str, arguments: dict[str, str]) -> dict[str, Any]:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    result = await client.call(tool, arguments)
    return {
        "server": client.server.name,
        "tool": tool,
        "at": at,
        "sha256": result.sha256,
        "text": result.text,
        "truncated": result.truncated,
    }


@traced
async def fuse(state: HybridState, runtime: HybridRuntime) -> dict[str, Any]:
    """Put the best of all lists into one."""
    lists = [state["hits"], *(hybrid_sources.passages_of(one, state["question"]) for one in state["results"])]
    passages = hybrid_sources.fused(lists)
    outside = sum(hybrid_sources.is_external(one["document_id"]) for one in passages)
    text = f"kept {len(passages) - outside} passages from here and {outside} from elsewhere"
    await runtime.context.journal.progress(
        step_of(runtime), "end", text, step="fuse", passages=len(passages), external=outside
    )
    return {"passages": passages}


def after_fuse(state: HybridState) -> Literal["generate", "verify"]:
    """Without a passage nothing is generated."""
    return "generate" if state["passages"] else "verify"


@traced
async def generate(state: HybridState, runtime: HybridRuntime) -> dict[str, Any]:
    """Have the answerer write, streaming its text into the artifact."""
    step, context = step_of(runtime), runtime.context
    how = f"writing with {context.chat.model}" if context.has_model else "extracting sentences (extractive, no model)"
    await context.journal.progress(step, "begin", f"{how}…", step="generate")
    passages = [Passage(text=hit["text"], title=evidence.label(hit)) for hit in state["passages"]]
    return {"answer": asdict(await context.answer(step, ANSWER, state["question"], passages))}


@traced
async def verify(state: HybridState, runtime: HybridRuntime) -> dict[str, Any]:
    """Check own citations against the stored text, external ones against what was recorded, and tell them apart."""
    step, context = step_of(runtime), runtime.context
    answer = (
        answer_of(state["answer"])
        if state["passages"]
        else Answer(kind=_kind(context), model=context.chat.model, text="")
    )
    said = statements(answer, state["passages"])
    quotes = quotes_of(said)
    own = [quote for quote in quotes if not hybrid_sources.is_external(quote["document_id"])]
    await context.journal.progress(
        step, "begin", f"checking {len(quotes)} citations…", step="verify", citations=len(quotes)
    )
    async with context.tools(step) as tools:
        held = await check(tools, own)
    held |= hybrid_sources.holding(quotes, state["results"])
    shown = hybrid_sources.shown(
        answer.text or NOTHING_FOUND, said, held, state["results"], state["outcomes"], unverified=state["unverified"]
    )
    data: dict[str, Any] = {"answerer": answer.kind, "model": answer.model, **shown.data}
    if state["results"]:
        await context.journal.artifact(step, RESULTS, [{"data": dict(one)} for one in state["results"]])
    await context.journal.artifact(step, ANSWER, [{"text": shown.text}, {"data": data}])
    await context.journal.progress(
        step,
        "end",
        f"verified {len(data['citations'])} citations, quoted {len(data['external'])} of external servers",
        step="verify",
        citations=len(data["citations"]),
        external=len(data["external"]),
        dropped=data["dropped"],
    )
    return {}


def _kind(context: WorkflowContext) -> Literal["extractive", "model"]:
    return "model" if context.has_model else "extractive"


async def _clients(context: WorkflowContext, names: Sequence[str] | None) -> list[ExternalClient]:
    return [one for one in await context.open_external() if names is None or one.server.name in names]


def _outcome(server: str, status: Literal["asked", "not asked", "failed"], reason: str) -> Outcome:
    return Outcome(server=server, status=status, reason=reason, results=0)


def build() -> StateGraph[HybridState, WorkflowContext, HybridState, HybridState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(HybridState, context_schema=WorkflowContext)
    graph.add_node("survey", survey, retry_policy=_RETRY)
    graph.add_node("authorize", authorize, retry_policy=_RETRY)
    graph.add_node("search", search, retry_policy=_RETRY)
    graph.add_node("fuse", fuse)
    graph.add_node("generate", generate, retry_policy=_RETRY)
    graph.add_node("verify", verify, retry_policy=_RETRY)
    graph.add_edge(START, "survey")
    graph.add_conditional_edges("survey", after_survey)
    graph.add_edge("authorize", "search")
    graph.add_edge("search", "fuse")
    graph.add_conditional_edges("fuse", after_fuse)
    graph.add_edge("generate", "verify")
    graph.add_edge("verify", END)
    return graph
