"""The prompt `research_brief`: a structured brief on a topic, from the documents alone."""

from __future__ import annotations

from collections.abc import Mapping

import mcp_types as types

from mcp_server.call import Call, Done
from mcp_server.prompts.grounded_answer import TAG, with_filter
from mcp_server.prompts.prompt import MATERIAL, Argument, Prompt, as_message, with_inputs
from mcp_server.suggestions import one_of
from rag.errors import InvalidInput
from rag.identity.scopes import Scope

__all__ = ["RESEARCH_BRIEF"]

AUDIENCES = ("board", "client", "engineers", "general public", "legal counsel", "management", "regulator")
SECTIONS = ("Summary", "What the documents say", "Where they differ", "Open questions", "Sources")
MAX_SECTIONS = 12
MAX_SECTION_CHARS = 80
RULES = f"""\
Write a brief on the input "topic" for the input "audience", from the documents of my organisation and nothing else.

1. Split the topic into three to six questions that the brief must answer.
2. For each question call the tool hybrid_search, with max_per_document 3 so that many documents are heard. If the input
   "filter" is there, pass it as the filter of each search. The tool search_documents tells which documents there are.
3. Read around the passages that count with the tool retrieve_document: document_id, and start and end in characters.
4. Write the brief under the headings in the input "sections", in their order. After each statement cite its passage as
   [title, document_id, start-end], with the span that the tools gave. Cite only what you have read here.
5. Name contradictions between documents, and what they leave open. Do not fill gaps from general knowledge.
6. {MATERIAL}"""


async def write(call: Call, given: Mapping[str, str]) -> Done[list[types.PromptMessage]]:
    """Write one message.

    Raises:
        InvalidInput: There are too many sections, or a heading is too long.
    """
    del call
    inputs = {
        "topic": given["topic"],
        "audience": given.get("audience", "management"),
        "sections": _sections(given.get("sections", "")),
        **with_filter(given),
    }
    return Done(value=[as_message(types.TextContent(text=with_inputs(RULES, inputs)))])


def _sections(text: str) -> list[str]:
    headings = [heading for part in text.split(";") if (heading := " ".join(part.split()))]
    if len(headings) > MAX_SECTIONS or any(len(heading) > MAX_SECTION_CHARS for heading in headings):
        raise InvalidInput(
            f"sections are at most {MAX_SECTIONS} headings of at most {MAX_SECTION_CHARS} characters, with semicolons "
            "between them"
        )
    return headings or list(SECTIONS)


RESEARCH_BRIEF = Prompt(
    name="research_brief",
    title="Write a research brief",
    description="Gather what your organisation's documents say about a topic into a brief, with citations.",
    scope=Scope.CORPUS_READ,
    arguments=(
        Argument(name="topic", title="Topic", description="What the brief is about.", required=True, max_chars=1_000),
        Argument(
            name="audience",
            title="Audience",
            description="Whom it is written for, such as board or legal counsel. Left out: management.",
            completer=one_of(AUDIENCES),
        ),
        Argument(
            name="sections",
            title="Sections",
            description=f"Up to {MAX_SECTIONS} headings, separated by semicolons. Left out: {'; '.join(SECTIONS)}.",
            max_chars=MAX_SECTIONS * (MAX_SECTION_CHARS + 2),
            completer=one_of(("; ".join(SECTIONS),)),
        ),
        TAG,
    ),
    write=write,
)
