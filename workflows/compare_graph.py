"""The graph of the workflow `compare`: choose, align, weigh by aspect, summarize, report.

    choose -> align -> weigh -> summarize -> report -> end

Above: `graphs`. Below: `comparing` and `comparison` (pure), `citations` and `checking` for what an answerer writes, the
MCP server, as the caller. Texts stay where they are: the state has spans of them, and counts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypedDict, cast
from uuid import UUID

import anyio.to_thread
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import RetryPolicy

from rag.errors import Conflict, InvalidInput, NotFound, RateLimited, Unavailable
from rag.llm.chat import Answer, Passage
from workflows import citations, comparing, comparison, evidence
from workflows.checking import check
from workflows.citations import Delivered
from workflows.comparing import Text
from workflows.journal import Step
from workflows.nodes import Tools, WorkflowContext, step_of, traced

__all__ = ["COMPARISON", "build"]

COMPARISON = "comparison"
"""Id of the artifact."""
MAX_READ_CHARS = 200_000
"""Of one document; about 65 printed pages. What was left out is told."""
MAX_READINGS = 3
"""Of a document that changes while it is read."""
PASSAGES = 4
"""Of one document for one aspect."""
SUMMARY_CHARS = 12_000
_NAME_CHARS = 100
_RETRY = RetryPolicy(retry_on=(Unavailable, RateLimited), max_attempts=3, initial_interval=0.5, backoff_factor=2.0)


class CompareState(TypedDict, total=False):
    """The graph's state; JSON values only."""

    question: str
    documents: list[Any] | None
    aspects: list[str]
    filter: dict[str, Any] | None
    count: int
    unverified: citations.Unverified
    chosen: list[dict[str, Any]]
    """{"document_id", "source", "title", "version", "characters", "read"}, in order."""
    pairs: list[dict[str, Any]]
    """See `comparing.align`: the first with each other one."""
    rows: list[dict[str, Any]]
    """{"aspect", "cells": [{"text", ...} or None for each document]}."""
    citations: list[dict[str, Any]]
    """Numbered from 1, in the order that the texts name them."""
    summary: dict[str, Any] | None


CompareRuntime = Runtime[WorkflowContext]


@traced
async def choose(state: CompareState, runtime: CompareRuntime) -> CompareState:
    """Find the documents that are named, or that the question is about."""
    step, context = step_of(runtime), runtime.context
    await context.journal.progress(step, "begin", "choosing documents…", step="choose")
    async with context.tools(step) as tools:
        named = state.get("documents")
        if named is None:
            chosen = await _found(tools, state)
        else:
            chosen = [await _named(tools, one) for one in named]
    for number, one in enumerate(chosen):
        if one["document_id"] in {other["document_id"] for other in chosen[:number]}:
            raise InvalidInput(
                f"documents: {_short(one['source'])} is named twice; only the latest version of a document is kept"
            )
    titles = ", ".join(one["title"][:_NAME_CHARS] for one in chosen)
    await context.journal.progress(step, "end", f"comparing {titles}", step="choose", documents=len(chosen))
    return {"chosen": chosen}


@traced
async def align(state: CompareState, runtime: CompareRuntime) -> CompareState:
    """Read the documents, and compare each to the first."""
    step, context = step_of(runtime), runtime.context
    texts: list[Text] = []
    async with context.tools(step) as tools:
        for one in state.get("chosen", []):
            text = await _read(tools, one["document_id"])
            texts.append(text)
            told = f"read {len(text.text):,} of {text.characters:,} characters of {text.title[:_NAME_CHARS]}"
            numbers = {"read": len(text.text), "characters": text.characters}
            await context.journal.progress(step, f"read {len(texts)}", told, step="align", **numbers)
    pairs: list[dict[str, Any]] = []
    for other in texts[1:]:
        pairs.append(await anyio.to_thread.run_sync(partial(comparing.align, texts[0], other)))
        told = comparison.in_short(pairs[-1], comparison.names_of(state.get("chosen", [])))
        await context.journal.progress(step, f"pair {len(pairs)}", told, step="align")
    return {"chosen": [_described(text) for text in texts], "pairs": pairs}


@traced
async def weigh(state: CompareState, runtime: CompareRuntime) -> CompareState:
    """Find what each document says of each aspect, and check the words that it stands on."""
    step, context = step_of(runtime), runtime.context
    question, unverified = state.get("question", ""), state.get("unverified", "drop")
    wanted = state.get("aspects") or ([question] if question else [])
    rows: list[dict[str, Any]] = []
    cited: list[dict[str, Any]] = []
    async with context.tools(step) as tools:
        for number, aspect in enumerate(wanted, start=1):
            before = len(cited)
            cells = [
                await _cell(context, tools, step, aspect=aspect, document=one, unverified=unverified, cited=cited)
                for one in state.get("chosen", [])
            ]
            rows.append({"aspect": aspect, "cells": cells})
            told = f"aspect {number} of {len(wanted)}: verified citations: {len(cited) - before}"
            await context.journal.progress(
                step, f"aspect {number}", told, step="weigh", aspect=number, citations=len(cited) - before
            )
    return {"rows": rows, "citations": cited}


@traced
async def summarize(state: CompareState, runtime: CompareRuntime) -> CompareState:
    """Have the model, where there is one, say what the differences come to; only what is borne out is kept."""
    step, context = step_of(runtime), runtime.context
    passages = _evidence(state)
    if not context.has_model or not passages:
        return {"summary": None}
    await context.journal.progress(step, "begin", f"summarising with {context.chat.model}…", step="summarize")
    question = "What do these documents have in common, and what are the main differences between them?"
    if state.get("question"):
        question = f"{state.get('question')}\n{question}"
    answer = await context.answer(step, COMPARISON, question, [_passage(one) for one in passages])
    cited = list(state.get("citations", []))
    async with context.tools(step) as tools:
        delivered = await _delivered(tools, answer, passages, state.get("unverified", "drop"), cited)
    told = f"verified {delivered.verified} of {delivered.claimed} claims"
    await context.journal.progress(step, "end", told, step="summarize", claims=delivered.claimed)
    return {"summary": _told(delivered, answer, state.get("unverified", "drop")), "citations": cited}


@traced
async def report(state: CompareState, runtime: CompareRuntime) -> CompareState:
    """Write the comparison."""
    step, context = step_of(runtime), runtime.context
    async with context.tools(step) as tools:
        await _look_again(tools, state.get("chosen", []))
    pairs, cited = state.get("pairs", []), state.get("citations", [])
    data: dict[str, Any] = {
        "documents": state.get("chosen", []),
        "answerer": "model" if context.has_model else "extractive",
        "model": context.chat.model,
        "pairs": pairs,
        "aspects": state.get("rows", []),
        "summary": state.get("summary"),
        "citations": cited,
    }
    await context.journal.artifact(step, COMPARISON, [{"text": comparison.markdown(data)}, {"data": data}])
    differences = sum(pair["changed"] + pair["only_base"] + pair["only_other"] for pair in pairs)
    told = f"differences: {differences}, verified citations: {len(cited)}"
    await context.journal.progress(step, "end", told, step="report", differences=differences, citations=len(cited))
    return {}


async def _found(tools: Tools, state: CompareState) -> list[dict[str, Any]]:
    """Return the documents that answer the question best."""
    arguments: dict[str, Any] = {"query": state.get("question"), "limit": state.get("count"), "max_per_document": 1}
    if state.get("filter") is not None:
        arguments["filter"] = state.get("filter")
    hits = (await tools.call("hybrid_search", arguments))["hits"]
    if len(hits) < 2:
        raise NotFound(
            f"the question finds {len(hits)} of your documents, and a comparison takes two: name them in documents"
        )
    return [await _document(tools, hit["document_id"]) for hit in hits]


async def _named(tools: Tools, named: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of that id, or else of that source.

    Raises:
        NotFound: The caller can read none.
        InvalidInput: A version is asked for that is not the stored one.
    """
    name, version = (named, None) if isinstance(named, str) else (str(named["document"]), int(named["version"]))
    found = await _by_id(tools, name) or await _by_source(tools, name)
    if found is None:
        raise NotFound(f"documents: there is no document of the id or source {_short(name)} that you may read")
    if version is not None and version != found["version"]:
        raise InvalidInput(
            f"documents: version {version} of {_short(found['source'])} is not stored: only the latest version of a "
            f"document is kept, here version {found['version']}; store the other text under a source of its own"
        )
    return found


async def _by_id(tools: Tools, name: str) -> dict[str, Any] | None:
    try:
        document_id = str(UUID(name))
        return await _document(tools, document_id)
    except (ValueError, NotFound):
        return None


async def _by_source(tools: Tools, name: str) -> dict[str, Any] | None:
    source = unicodedata.normalize("NFC", name)
    # in the order of their sources: the one that is no longer than the prefix comes first
    listed = (await tools.call("list_documents", {"source_prefix": source, "limit": 1}))["documents"]
    return _shown(listed[0]) if listed and listed[0]["source"] == source else None


async def _document(tools: Tools, document_id: str) -> dict[str, Any]:
    part = await tools.call("retrieve_document", {"document_id": document_id, "start": 0, "end": 1})
    return _shown(part["document"])


async def _look_again(tools: Tools, compared: Sequence[Mapping[str, Any]]) -> None:
    """Look whether the caller may still read what is about to be quoted, and as it was: the task may have waited.

    Raises:
        NotFound: A document was deleted meanwhile, or is no longer the caller's to read.
        Conflict: It was changed.
    """
    for one in compared:
        try:
            found = await _document(tools, one["document_id"])
        except NotFound:
            raise NotFound(f"documents: {_short(one['source'])} can no longer be read") from None
        if found["version"] != one["version"]:
            raise Conflict(f"documents: {_short(one['source'])} was changed while it was compared; ask again")


def _shown(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in ("document_id", "source", "title", "version", "characters")}


async def _read(tools: Tools, document_id: str) -> Text:
    """Return the document's text, of one version, up to MAX_READ_CHARS.

    Raises:
        Conflict: It was changed again and again meanwhile.
    """
    for _ in range(MAX_READINGS):
        parts: list[dict[str, Any]] = []
        at: int | None = 0
        while at is not None and at < MAX_READ_CHARS:
            part = await tools.call("retrieve_document", {"document_id": document_id, "start": at})
            parts.append(part)
            at = part["next_start"]
        document = parts[0]["document"]
        if all(part["document"]["version"] == document["version"] for part in parts):
            return Text(
                document_id=document["document_id"],
                source=document["source"],
                title=document["title"],
                version=document["version"],
                markdown=document["media_type"] == "text/markdown",
                text="".join(part["text"] for part in parts)[:MAX_READ_CHARS],
                characters=document["characters"],
            )
    raise Conflict("a document was changed while it was read, again and again; ask once it rests")


def _described(text: Text) -> dict[str, Any]:
    return {
        "document_id": text.document_id,
        "source": text.source,
        "title": text.title,
        "version": text.version,
        "characters": text.characters,
        "read": len(text.text),
    }


async def _cell(
    context: WorkflowContext,
    tools: Tools,
    step: Step,
    *,
    aspect: str,
    document: Mapping[str, Any],
    unverified: citations.Unverified,
    cited: list[dict[str, Any]],
) -> dict[str, Any] | None:
    """Return what one document says of one aspect, or None if it says nothing that holds."""
    of_it = {"field": "source", "eq": document["source"]}
    arguments = {"query": aspect, "limit": PASSAGES, "filter": of_it, "phrases": False}
    hits: list[dict[str, Any]] = (await tools.call("hybrid_search", arguments))["hits"]
    if not hits:
        return None
    answer = await context.answer(step, None, aspect, [_passage(hit) for hit in hits])
    delivered = await _delivered(tools, answer, hits, unverified, cited)
    return _told(delivered, answer, unverified) if delivered.verified else None


def _passage(hit: Mapping[str, Any]) -> Passage:
    return Passage(text=hit["text"], title=evidence.label(hit))


async def _delivered(
    tools: Tools,
    answer: Answer,
    passages: Sequence[Mapping[str, Any]],
    unverified: citations.Unverified,
    cited: list[dict[str, Any]],
) -> Delivered:
    """Return what holds of the answer. Its citations are appended to `cited`, by whose numbers the text names them."""
    made = citations.statements(answer, passages)
    holding = await check(tools, citations.quotes_of(made))
    numbers = {citations.key_of(one): one["n"] for one in cast("list[Any]", cited)}

    def number(claim: citations.Claim, citation: citations.Citation) -> int:
        del claim
        return numbers.setdefault(citations.key_of(citation), len(numbers) + 1)

    delivered = citations.deliver(answer.text, made, holding, unverified=unverified, number=number)
    known = {one["n"] for one in cited}
    cited += [{"n": n, **citation} for n, citation in delivered.citations if n not in known]
    return delivered


def _evidence(state: CompareState) -> list[dict[str, Any]]:
    """Return what a summary is made of: what was cited for the aspects, then what changed, as long as there is room."""
    found = list(state.get("citations", []))
    for pair in state.get("pairs", []):
        found += [one for change in pair["changes"] for one in (change["base"], change["other"]) if one is not None]
    passages: list[dict[str, Any]] = []
    left = SUMMARY_CHARS
    for one in found:
        if len(one["quote"]) <= left:
            passages.append({**one, "text": one["quote"], "heading": ""})
            left -= len(one["quote"])
    return passages


def _told(delivered: Delivered, answer: Answer, unverified: citations.Unverified) -> dict[str, Any]:
    return {"text": delivered.text, "answerer": answer.kind, **citations.measured([delivered], unverified=unverified)}


def _short(name: str) -> str:
    return repr(name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…")


def build() -> StateGraph[CompareState, WorkflowContext, CompareState, CompareState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(CompareState, context_schema=WorkflowContext)
    graph.add_node("choose", choose, retry_policy=_RETRY)
    graph.add_node("align", align, retry_policy=_RETRY)
    graph.add_node("weigh", weigh, retry_policy=_RETRY)
    graph.add_node("summarize", summarize, retry_policy=_RETRY)
    graph.add_node("report", report, retry_policy=_RETRY)
    graph.add_edge(START, "choose")
    graph.add_edge("choose", "align")
    graph.add_edge("align", "weigh")
    graph.add_edge("weigh", "summarize")
    graph.add_edge("summarize", "report")
    graph.add_edge("report", END)
    return graph
