"""The graph of the workflow `react`: choose, do, look, until there is an answer or a bound is reached.

    begin -> think -> act -> think ... -> conclude -> end
               \\____(invalid)____/

Above: `graphs`. Below: `react_actions` and `react_prompt` (pure), `citations`, `checking`, the MCP server as the
caller. The tools are those that the server lists for the run's narrowed token. A message that comes while the run works
is read before the next decision; one that comes at the very end wakes the finished graph, which begins again with its
state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from rag.errors import Conflict, DocumentRefused, Forbidden, InvalidInput, NotFound, RateLimited, Unavailable
from rag.llm.chat import Answer, Passage
from rag.tasks.messages import text_of
from workflows import evidence
from workflows.checking import check
from workflows.citations import deliver, measured, quotes_of, statements
from workflows.forms import Approval, Pending
from workflows.journal import Step
from workflows.nodes import WorkflowContext, step_of, traced
from workflows.react_actions import (
    ACTION_SCHEMA,
    Action,
    Turn,
    digest_of,
    fault_of,
    next_of_sequence,
    parsed_action,
)
from workflows.react_prompt import SYSTEM, passages_in, prompt, told_of

__all__ = ["ANSWER", "build"]

ANSWER = "answer"
"""Id of the artifact."""
MAX_ACTION_TOKENS = 1_200
MAX_SOURCES = 60
MAX_REPEATS = 3
"""Decisions that change nothing (repeated or invalid ones), in a row, before the agent is stopped."""
MAX_ANSWER_PASSAGES = 10
MAX_MESSAGES = 20
"""The newest, where more were sent."""
MAX_MESSAGE_CHARS = 4_000
MAX_SHOWN_ARGUMENT_CHARS = 1_000
NOTHING_FOUND = "Nothing was found that answers this."
NOTHING_VERIFIED = (
    "Nothing of what was written could be verified against your documents, so there is no answer to give."
)
_REFUSALS = (InvalidInput, DocumentRefused, NotFound, Forbidden, Conflict)
_RETRY = RetryPolicy(retry_on=(Unavailable, RateLimited), max_attempts=3, initial_interval=0.5, backoff_factor=2.0)


class ReactState(TypedDict):
    """The graph's state; JSON values only. A node finds what the nodes before it left."""

    task: str
    max_steps: int
    max_calls: int
    unverified: Literal["drop", "mark"]
    woken: int
    """Seq of the message that woke the finished graph."""
    tools: list[dict[str, Any]]
    told: list[str]
    """The caller's messages, in their order."""
    read: int
    """Seq of the last of them."""
    turns: list[Turn]
    sources: list[dict[str, Any]]
    """Passages, by their number less one."""
    steps: int
    calls: int
    """Both since the task began or was woken."""
    action: Action
    stopped: str
    """Why the agent was stopped: `steps`, `calls`, `repeats`, or "" where it ended by itself."""


ReactRuntime = Runtime[WorkflowContext]


@traced
async def begin(state: ReactState, runtime: ReactRuntime) -> dict[str, Any]:
    """List the tools that this caller's run has; anew when it was woken, since rights change."""
    step, context = step_of(runtime), runtime.context
    async with context.tools(step) as tools:
        listed = await tools.declared()
    names = ", ".join(one["name"] for one in listed)
    who = f"{context.chat.model} chooses" if context.has_model else "no model: search, read, answer in this order"
    await context.journal.progress(step, "tools", f"tools: {names}; {who}", step="begin", tools=len(listed))
    started = {"tools": listed, "steps": 0, "calls": 0, "stopped": ""}
    return started if "turns" in state else {**started, "told": [], "read": 0, "turns": [], "sources": []}


@traced
async def think(state: ReactState, runtime: ReactRuntime) -> dict[str, Any]:
    """Read what the caller said meanwhile, and choose what is next."""
    step, context = step_of(runtime), runtime.context
    news = await context.inbox(state["read"])
    read = news[-1].seq if news else state["read"]
    told = [*state["told"], *(text_of(one.message)[:MAX_MESSAGE_CHARS] for one in news)][-MAX_MESSAGES:]
    if news:
        await context.journal.progress(step, f"read:{read}", f"read {len(news)} new messages", step="think", read=read)
    heard: dict[str, Any] = {"told": told, "read": read, "steps": state["steps"] + 1}
    stopped = _stopped(state)
    if stopped:
        return {**heard, "stopped": stopped, "action": _ending()}
    if not context.has_model:
        return {**heard, "action": next_of_sequence(state["task"], told, state["turns"], state["sources"])}
    left = state["max_calls"] - state["calls"]
    words = prompt(state["task"], told, state["tools"], state["turns"], state["sources"], left=left)
    # the name has what was read: replayed after a further message, the step asks anew, not with the former answer
    text = await context.complete(
        step, f"action:{read}", SYSTEM, words, max_tokens=MAX_ACTION_TOKENS, schema=ACTION_SCHEMA
    )
    action = parsed_action(text)
    if action["fault"]:
        return {**heard, "action": action, "turns": [*state["turns"], _turn(state, action, "invalid", action["fault"])]}
    return {**heard, "action": action}


def after_think(state: ReactState) -> Literal["act", "think", "conclude"]:
    """Do it, choose again, or end."""
    if state["action"]["fault"]:
        return "think"
    return "act" if state["action"]["tool"] else "conclude"


@traced
async def act(state: ReactState, runtime: ReactRuntime) -> dict[str, Any]:
    """Carry out one call, if it can be, is not a repetition, and, where it destroys, is approved of."""
    step, context, action = step_of(runtime), runtime.context, state["action"]
    fault = fault_of(action, state["tools"])
    if fault:
        return await _done(state, context, step, _turn(state, action, "invalid", fault))
    made = {digest_of(turn["tool"], turn["arguments"]) for turn in state["turns"] if turn["outcome"] != "invalid"}
    if digest_of(action["tool"], action["arguments"]) in made:
        told = "this very call was made before; its outcome stands above. Do something else, or answer."
        return await _done(state, context, step, _turn(state, action, "repeated", told))
    if state["calls"] >= state["max_calls"]:
        return await _done(state, context, step, _turn(state, action, "invalid", "no more calls may be made: answer"))
    refusal = _refused_approval(state, context, step)
    if refusal is not None:
        return await _done(state, context, step, _turn(state, action, "rejected", refusal))
    text = f"calling {action['tool']}…" + (f" ({action['thought']})" if action["thought"] else "")
    await context.journal.progress(step, "begin", text, step="act", tool=action["tool"])
    try:
        async with context.tools(step) as tools:
            result = await tools.call(action["tool"], action["arguments"])
    except _REFUSALS as exc:
        return await _done(state, context, step, _turn(state, action, "refused", exc.message), calls=1)
    found = passages_in(action["tool"], result)
    sources, numbers = _numbered(state["sources"], found)
    found = [one for one, number in zip(found, numbers, strict=True) if number]
    kept = [number for number in numbers if number]
    turn = _turn(state, action, "called", told_of(result, found, kept), kept)
    return {**await _done(state, context, step, turn, calls=1), "sources": sources}


def _refused_approval(state: ReactState, context: WorkflowContext, step: Step) -> str | None:
    """Return None if the call may be made: it destroys nothing, or the caller has approved of it, here and now."""
    action = state["action"]
    tool = next(one for one in state["tools"] if one["name"] == action["tool"])
    if not tool["destructive"]:
        return None
    pending = Pending(id="call", name=action["tool"], args=action["arguments"])
    hint = f"The agent wants to call {action['tool']}, which changes or removes what is stored."
    decision = context.ask(step, Approval(id="approve", hint=hint, tools=(pending,))).approvals[pending.id]
    if decision.approved:
        return None
    return "the user does not allow this call" + (f": {decision.reason}" if decision.reason else "")


async def _done(
    state: ReactState, context: WorkflowContext, step: Step, turn: Turn, *, calls: int = 0
) -> dict[str, Any]:
    number = len(turn["sources"])
    text = f"{turn['tool']}: {turn['outcome']}" + (f", {number} sources" if number else "")
    await context.journal.progress(step, "end", text, step="act", tool=turn["tool"], outcome=turn["outcome"])
    return {"turns": [*state["turns"], turn], "calls": state["calls"] + calls}


@traced
async def conclude(state: ReactState, runtime: ReactRuntime) -> dict[str, Any]:
    """Deliver the answer with what of it holds: the agent's own, or else one made of the passages it has found."""
    step, context = step_of(runtime), runtime.context
    final = state["action"]["final"]
    if final:
        answer = Answer(kind="model", model=context.chat.model, text=final)
        passages = state["sources"]
    else:
        passages = _best(state)
        question = "\n".join([state["task"], *state["told"]])
        answer = await _answered(context, step, question, passages)
    said = statements(answer, passages)
    quotes = quotes_of(said)
    await context.journal.progress(
        step, "begin", f"checking {len(quotes)} citations…", step="verify", citations=len(quotes)
    )
    async with context.tools(step) as tools:
        held = await check(tools, quotes)
    delivered = deliver(answer.text or NOTHING_FOUND, said, held, unverified=state["unverified"])
    if said and not delivered.statements:
        delivered = replace(delivered, text=NOTHING_VERIFIED)
    data: dict[str, Any] = {
        "answerer": answer.kind,
        "model": answer.model,
        "planner": "model" if context.has_model else "fixed sequence",
        "stopped": state["stopped"] or None,
        "citations": [{"n": n, **one} for n, one in delivered.citations],
        "claims": list(delivered.claims),
        **measured([delivered], unverified=state["unverified"]),
        "turns": [_shown(turn) for turn in state["turns"]],
        "messages": len(state["told"]),
    }
    await context.journal.artifact(step, ANSWER, [{"text": delivered.text}, {"data": data}])
    citations = len(delivered.citations)
    await context.journal.progress(
        step, "end", f"verified {citations} citations", step="verify", citations=citations, dropped=data["dropped"]
    )
    ended = _turn(state, state["action"], "answered", delivered.text)
    return {"turns": [*state["turns"], ended]}


async def _answered(context: WorkflowContext, step: Step, question: str, passages: list[dict[str, Any]]) -> Answer:
    if not passages:
        return Answer(kind="model" if context.has_model else "extractive", model=context.chat.model, text="")
    shown = [Passage(text=one["text"], title=evidence.label(one)) for one in passages]
    return await context.answer(step, ANSWER, question, shown)


def _best(state: ReactState) -> list[dict[str, Any]]:
    """Return the sources that came first of each call, in turn, without those that others contain."""
    ranked = sorted(
        (rank, -turn["number"], number) for turn in state["turns"] for rank, number in enumerate(turn["sources"])
    )
    kept: list[dict[str, Any]] = []
    for _, _, number in ranked:
        one = state["sources"][number - 1]
        if len(kept) < MAX_ANSWER_PASSAGES and not any(_overlap(one, other) for other in kept):
            kept.append(one)
    return kept


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = one["document_id"] == other["document_id"]
    return same and one["start"] < other["end"] and other["start"] < one["end"]


def _numbered(sources: list[dict[str, Any]], found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the sources with what was found, and the number of each passage found; 0: there is no room for it."""
    known = {(one["document_id"], one["start"], one["end"]): number for number, one in enumerate(sources, start=1)}
    grown, numbers = list(sources), list[int]()
    for one in found:
        place = (one["document_id"], one["start"], one["end"])
        if place not in known and len(grown) < MAX_SOURCES:
            grown.append(one)
            known[place] = len(grown)
        numbers.append(known.get(place, 0))
    return grown, numbers


def _stopped(state: ReactState) -> str:
    idle = 0
    for turn in reversed(state["turns"]):
        if turn["outcome"] not in {"repeated", "invalid"}:
            break
        idle += 1
    if idle >= MAX_REPEATS:
        return "repeats"
    return "steps" if state["steps"] >= state["max_steps"] else ""


def _ending() -> Action:
    return Action(thought="", tool="", arguments={}, final="", fault="")


def _turn(state: ReactState, action: Action, outcome: str, told: str, sources: list[int] | None = None) -> Turn:
    return Turn(
        number=len(state["turns"]) + 1,
        tool=action["tool"],
        arguments=action["arguments"],
        outcome=outcome,
        told=told,
        sources=sources or [],
    )


def _shown(turn: Turn) -> dict[str, Any]:
    arguments = json.dumps(turn["arguments"], ensure_ascii=False)
    return {
        "number": turn["number"],
        "tool": turn["tool"],
        "arguments": arguments[:MAX_SHOWN_ARGUMENT_CHARS],
        "outcome": turn["outcome"],
        "sources": turn["sources"],
    }


def build() -> StateGraph[ReactState, WorkflowContext, ReactState, ReactState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(ReactState, context_schema=WorkflowContext)
    graph.add_node("begin", begin, retry_policy=_RETRY)
    graph.add_node("think", think, retry_policy=_RETRY)
    graph.add_node("act", act, retry_policy=_RETRY)
    graph.add_node("conclude", conclude, retry_policy=_RETRY)
    graph.add_edge(START, "begin")
    graph.add_edge("begin", "think")
    graph.add_conditional_edges("think", after_think)
    graph.add_edge("act", "think")
    graph.add_edge("conclude", END)
    return graph
