"""The prompt `grounded_answer`: a question, answered from the documents alone, each statement with its span."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import mcp_types as types

from mcp_server.call import Call, Done
from mcp_server.prompts.prompt import MATERIAL, Argument, Prompt, as_message, with_inputs
from mcp_server.suggestions import one_of, tags
from rag.identity.scopes import Scope
from rag.retrieval.values import MAX_QUERY_CHARS

__all__ = ["GROUNDED_ANSWER", "TAG", "with_filter"]

STYLES: Final = {
    "concise": "a few sentences that answer the question directly",
    "detailed": "paragraphs that give conditions, exceptions and dates too",
    "bullet points": "a list with one statement a line",
    "plain language": "everyday words that need no knowledge of the field",
}
RULES = f"""\
Answer the input "question" from the documents of my organisation and from nothing else.

1. Call the tool hybrid_search with the question. If the input "filter" is there, pass it as the filter of each search.
2. If the passages do not settle the question, search again in other words, and for exact terms in double quotes.
3. Where a passage breaks off or depends on what stands around it, read on with the tool retrieve_document: its
   document_id, and start and end in characters.
4. Write the answer in the form of the input "style". After each statement cite the passage it rests on, as
   [title, document_id, start-end], with the span that the tools gave. Cite only what you have read here.
5. If documents contradict one another, say so and cite both sides. If they do not answer the question, say that and
   what is missing. Do not fill gaps from general knowledge.
6. {MATERIAL}"""
TAG = Argument(
    name="tag",
    title="Tag",
    description='Only documents that have this under "tags" in their metadata. Left out: all documents.',
    max_chars=256,
    completer=tags,
)
"""For every prompt that searches."""


async def write(call: Call, given: Mapping[str, str]) -> Done[list[types.PromptMessage]]:
    """Write one message."""
    del call
    inputs = {"question": given["question"], "style": STYLES[given.get("style", "concise")], **with_filter(given)}
    return Done(value=[as_message(types.TextContent(text=with_inputs(RULES, inputs)))])


def with_filter(given: Mapping[str, str]) -> dict[str, object]:
    """Return the input that narrows searches to a tag, as docs/filters.md writes it; nothing without one."""
    return {"filter": {"metadata": {"tags": given["tag"]}}} if "tag" in given else {}


GROUNDED_ANSWER = Prompt(
    name="grounded_answer",
    title="Answer from the documents",
    description="Answer a question from your organisation's documents alone, with a citation for each statement.",
    scope=Scope.CORPUS_READ,
    arguments=(
        Argument(
            name="question",
            title="Question",
            description="What you want to know, in your own words.",
            required=True,
            max_chars=MAX_QUERY_CHARS,
        ),
        Argument(
            name="style",
            title="Style",
            description=f"How to answer: {', '.join(STYLES)}. Left out: concise.",
            choices=tuple(STYLES),
            completer=one_of(tuple(STYLES)),
        ),
        TAG,
    ),
    write=write,
)
