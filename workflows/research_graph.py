"""The graph of the workflow `research`. Documents are reached through the MCP server only, as the caller.

    plan -> find (one for each section, side by side) -> write -> verify -> end

Above: `graphs`. Below: `research_plan`, `research_writing`, `research_report`, `citations` (all pure), `checking`, the
run's context. What the sections say is decided in the order of the plan, whatever search ends first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy, Send

from rag.errors import RateLimited, Unavailable
from rag.llm.chat import Passage
from rag.llm.ports import Emit
from workflows import evidence
from workflows import research_plan as planning
from workflows import research_writing as writing
from workflows.checking import check
from workflows.evidence import Weights
from workflows.forms import AskUser, Question
from workflows.journal import Step
from workflows.markdown import counted
from workflows.nodes import WorkflowContext, step_of, traced
from workflows.research_plan import Plan, Section
from workflows.research_profiles import Profile
from workflows.research_report import ENOUGH, drafted, quotes_of_drafts, report_of
from workflows.research_writing import Draft
from workflows.together import together

__all__ = ["REPORT", "build"]

REPORT = "report"
"""Id of the artifact."""
ALL = "all of them"
OVERVIEW_LIMIT = 50
OF_ONE_DOCUMENT = 4
"""Passages, in the overview: it is to see many documents."""
SEARCHES_AT_A_TIME = 2
"""Of one section; the sections are searched side by side."""
MAX_PASSAGES = 24
MAX_PASSAGE_CHARS = 24_000
"""Of one section: what a checkpoint holds of it."""
MAX_PLAN_TOKENS = 1_200
TOPIC_LENIENCY = 0.5
"""A topic's documents are about the question as wholes: where little of them is by itself, more of them will do."""
MARKDOWN = "text/markdown"
_RETRY = RetryPolicy(retry_on=(Unavailable, RateLimited), max_attempts=3, initial_interval=0.5, backoff_factor=2.0)


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**one, **other}


class ResearchState(TypedDict):
    """The graph's state; JSON values only. The options stand beside the question."""

    question: str
    profile: Profile | None
    sections: int
    unverified: Any
    limit: int
    filter: dict[str, Any] | None
    confirm: bool
    weights: Weights
    known: bool
    """Whether anything at all was found on the question."""
    plan: Plan
    found: Annotated[dict[str, list[dict[str, Any]]], _both]
    """Passages by the section's id."""
    drafts: list[Draft]


class Finding(TypedDict):
    """What one search branch is given."""

    section: Section
    weights: Weights
    limit: int
    filter: dict[str, Any] | None


ResearchRuntime = Runtime[WorkflowContext]


@traced
async def plan(state: ResearchState, runtime: ResearchRuntime) -> dict[str, Any]:
    """Look over what the documents hold on the question, and decide on the sections."""
    step, context = step_of(runtime), runtime.context
    question = state["question"]
    await context.journal.progress(step, "begin", "looking over the documents…", step="plan")
    async with context.tools(step) as tools:
        arguments = {"query": question, "limit": OVERVIEW_LIMIT, "max_per_document": OF_ONE_DOCUMENT, "phrases": False}
        overview = await tools.call("hybrid_search", _filtered(arguments, state["filter"]))
    weights = evidence.weights_of(question, overview)
    hits = evidence.hits_of(overview, weights)
    known = await _known(context, step, question, weights, hits)
    made = await _plan(context, step, state, hits if known else [])
    titles = [section["title"] for section in made["sections"]]
    if state["confirm"] and len(titles) > 1:
        asked = Question(question="Which sections shall the report have?", choices=(ALL, *titles), multiple=True)
        (wanted,) = context.ask(step, AskUser(id="sections", questions=(asked,))).answers
        if ALL not in wanted:
            made = Plan(by=made["by"], sections=[one for one in made["sections"] if one["title"] in wanted])
            titles = [section["title"] for section in made["sections"]]
    text = f"planned {counted(len(titles), 'section')}: {', '.join(titles)}"
    await context.journal.progress(step, "end", text, step="plan", sections=titles, plannedBy=made["by"])
    return {"weights": weights, "known": known, "plan": made, "found": {}}


async def _known(
    context: WorkflowContext, step: Step, question: str, weights: Weights, hits: list[dict[str, Any]]
) -> bool:
    """Tell whether the documents have anything on the question: a search alone always returns what is nearest."""
    if any(hit["covers"] >= planning.MIN_COVERED for hit in hits):
        return True
    if not hits or (not context.has_model and sum(weights["terms"].values()) <= weights["total"] / 2):
        return False
    if context.has_model:
        return True  # it reads the passages before it says anything
    # the answerer looks at sentences, and what a document is about often stands in its title alone
    passages = [Passage(text=f"{hit['title']}.\n\n{hit['text']}") for hit in evidence.best_passages(hits)]
    return bool((await context.answer(step, None, question, passages)).citations)


async def _plan(context: WorkflowContext, step: Step, state: ResearchState, hits: list[dict[str, Any]]) -> Plan:
    question, most = state["question"], state["sections"]
    if state["profile"] is not None:
        return planning.from_profile(state["profile"], question)
    if context.has_model and hits:
        said = await context.complete(
            step,
            "plan",
            planning.PLAN_PROMPT,
            planning.planning_request(question, hits, most=most),
            max_tokens=MAX_PLAN_TOKENS,
            schema=planning.plan_schema(most),
        )
        proposed = planning.from_model(said, most=most)
        if proposed is not None:
            return proposed
    return planning.from_topics(question, planning.topics_of(hits, most=most - 1))


def to_sections(state: ResearchState) -> list[Send]:
    """Search for every section at once."""
    return [
        Send(
            "find",
            Finding(section=section, weights=state["weights"], limit=state["limit"], filter=state["filter"]),
        )
        for section in state["plan"]["sections"]
    ]


@traced
async def find(state: Finding, runtime: ResearchRuntime) -> dict[str, Any]:
    """Search for one section: each of its queries, in the documents that its topic was found in."""
    step, context, section = step_of(runtime), runtime.context, state["section"]
    within = state["filter"]
    if section["sources"]:
        own: dict[str, Any] = {"field": "source", "in": section["sources"]}
        within = own if within is None else {"all": [within, own]}
    async with context.tools(step) as tools:
        searches = [
            partial(
                tools.call,
                "hybrid_search",
                _filtered({"query": query, "limit": state["limit"], "phrases": False}, within),
            )
            for query in dict.fromkeys(section["queries"])
        ]
        answers = await together(searches, at_a_time=SEARCHES_AT_A_TIME)
    lists = [evidence.hits_of(one, state["weights"], by_meaning=not number) for number, one in enumerate(answers)]
    hits = evidence.merged(lists, most=MAX_PASSAGES, most_chars=MAX_PASSAGE_CHARS)
    documents = _documents(hits)
    text = f"{section['title']}: found {counted(len(hits), 'passage')} in {counted(documents, 'document')}"
    await context.journal.progress(
        step, "end", text, step="find", section=section["title"], passages=len(hits), documents=documents
    )
    return {"found": {section["id"]: hits}}


@traced
async def write(state: ResearchState, runtime: ResearchRuntime) -> dict[str, Any]:
    """Write section after section; each is shown as it is done."""
    step, context = step_of(runtime), runtime.context

    async def produce(emit: Emit) -> list[Draft]:
        if context.has_model:
            return [await _by_model(context, step, state, section, emit) for section in state["plan"]["sections"]]
        return await _extracted(context, step, state, emit)

    drafts = await context.journal.stream(step, REPORT, produce)
    return {"drafts": drafts, "found": {section["id"]: [] for section in state["plan"]["sections"]}}


async def _by_model(context: WorkflowContext, step: Step, state: ResearchState, section: Section, emit: Emit) -> Draft:
    hits = state["found"][section["id"]]
    passages = evidence.best_passages(hits)
    await _begun(context, step, state, section)
    blocks: list[writing.Block] = []
    if passages:
        shown = [Passage(text=hit["text"], title=evidence.label(hit)) for hit in passages]
        answer = await context.answer(step, None, f"{section['title']}: {section['question']}", shown)
        blocks = writing.written(answer, passages)
    draft = Draft(id=section["id"], kind="model", blocks=blocks, passages=len(hits), documents=_documents(hits))
    await _done(context, step, section, draft, emit)
    return draft


async def _extracted(context: WorkflowContext, step: Step, state: ResearchState, emit: Emit) -> list[Draft]:
    """Choose sentences for the sections that are choosy first, so that what only they can have is left to them."""
    plan = state["plan"]
    elsewhere = planning.clashing(plan)
    used: list[str] = []
    drafts: dict[str, Draft] = {}
    for section in sorted(plan["sections"], key=lambda one: plan["by"] == "profile" and not one["cue"]):
        await _begun(context, step, state, section)
        hits = state["found"][section["id"]]
        quoted: list[Mapping[str, Any]] = []
        if state["known"]:
            among = writing.candidates(section, hits, used, elsewhere=elsewhere)
            answer = await context.answer(step, None, section["question"], [Passage(text=one["text"]) for one in among])
            quoted = writing.chosen(section, state["question"], among, writing.picked(answer, among))
            if (
                len(quoted) < ENOUGH
            ):  # rather again what another section has, or the next best of its topic, than nothing
                among = writing.candidates(section, hits, ())
                leniency = TOPIC_LENIENCY if section["sources"] else 1.0
                others = writing.chosen(section, state["question"], among, (), leniency=leniency)
                quoted = writing.filled(quoted, others, upto=ENOUGH)
        used.extend(writing.told(str(one["text"])) for one in quoted)
        drafts[section["id"]] = Draft(
            id=section["id"],
            kind="extractive",
            blocks=writing.copied(quoted),
            passages=len(hits),
            documents=_documents(hits),
        )
        if plan["by"] != "profile":
            await _done(context, step, section, drafts[section["id"]], emit)
    if plan["by"] == "profile":
        for section in plan["sections"]:
            await _done(context, step, section, drafts[section["id"]], emit)
    return [drafts[section["id"]] for section in plan["sections"]]


async def _begun(context: WorkflowContext, step: Step, state: ResearchState, section: Section) -> None:
    number = state["plan"]["sections"].index(section) + 1
    text = f"writing section {number} of {len(state['plan']['sections'])}: {section['title']}"
    await context.journal.progress(step, f"begin:{section['id']}", text, step="write", section=section["title"])


async def _done(context: WorkflowContext, step: Step, section: Section, draft: Draft, emit: Emit) -> None:
    await emit(drafted(section, draft))
    statements = sum(len(block["statements"]) for block in draft["blocks"])
    text = (
        f"{section['title']}: {counted(statements, 'statement')}" if statements else f"{section['title']}: no evidence"
    )
    await context.journal.progress(
        step, f"end:{section['id']}", text, step="write", section=section["title"], statements=statements
    )


@traced
async def verify(state: ResearchState, runtime: ResearchRuntime) -> dict[str, Any]:
    """Read every cited span again, as the caller, and hand out the report with what holds."""
    step, context = step_of(runtime), runtime.context
    quotes = quotes_of_drafts(state["drafts"])
    await context.journal.progress(
        step, "begin", f"checking {counted(len(quotes), 'citation')}…", step="verify", citations=len(quotes)
    )
    async with context.tools(step) as tools:
        holding = await check(tools, quotes)
    usage = context.journal.tally.usage
    report = report_of(
        state["question"],
        state["plan"],
        state["drafts"],
        holding,
        unverified=state["unverified"],
        answerer={"answerer": "model" if context.has_model else "extractive", "model": context.chat.model},
        cost={
            "calls": usage.calls,
            "promptTokens": usage.prompt_tokens,
            "completionTokens": usage.completion_tokens,
        },
    )
    parts = [{"text": report.markdown, "media_type": MARKDOWN}, {"data": report.data}]
    await context.journal.artifact(step, REPORT, parts)
    data = report.data
    summary = f"verified {data['verified']} of {counted(data['claimed'], 'claim')}"
    await context.journal.progress(
        step, "end", summary, step="verify", citations=len(data["citations"]), dropped=data["dropped"]
    )
    return {}


def _filtered(arguments: Mapping[str, Any], within: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**arguments, "filter": dict(within)} if within is not None else dict(arguments)


def _documents(hits: list[dict[str, Any]]) -> int:
    return len({hit["document_id"] for hit in hits})


def build() -> StateGraph[ResearchState, WorkflowContext, ResearchState, ResearchState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(ResearchState, context_schema=WorkflowContext)
    graph.add_node("plan", plan, retry_policy=_RETRY)
    graph.add_node("find", find, retry_policy=_RETRY)
    graph.add_node("write", write, retry_policy=_RETRY)
    graph.add_node("verify", verify, retry_policy=_RETRY)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", to_sections, ["find"])
    graph.add_edge("find", "write")
    graph.add_edge("write", "verify")
    graph.add_edge("verify", END)
    return graph
