"""The prompt `compare_sources`: what two documents say about one question, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import mcp_types as types

from mcp_server.call import Call, Done
from mcp_server.prompts.prompt import MATERIAL, Argument, Prompt, as_message, with_inputs
from mcp_server.resources.documents import as_link
from mcp_server.suggestions import document_names
from rag.corpus.text import MAX_TITLE_CHARS
from rag.corpus.titles import Entry, find_entry, get_entry
from rag.db.pool import Session
from rag.errors import InvalidInput, NotFound
from rag.identity.scopes import Scope
from rag.retrieval.values import MAX_QUERY_CHARS

__all__ = ["COMPARE_SOURCES"]

RULES = f"""\
Compare what two documents of my organisation say about the input "question". They are the inputs "document_a" and
"document_b", and are linked below.

1. Search each of them by itself: call the tool hybrid_search with the question, and as filter {{"source": S}}, where S
   is the "source" of the one document, then of the other.
2. Read around the passages that count with the tool retrieve_document: the document's "document_id", and start and end
   in characters.
3. Write for each point of the question: what A says, what B says, and whether they agree, differ or contradict one
   another. Then say in one paragraph what follows, and which of them is the newer.
4. After each statement cite its passage as [title, document_id, start-end], with the span that the tools gave. Cite
   only what you have read here.
5. Where one of them is silent, say that it is silent. Do not fill gaps from general knowledge.
6. {MATERIAL}"""
_DOCUMENT = "By its id or its exact title, as hybrid_search or list_documents shows them."


async def write(call: Call, given: Mapping[str, str]) -> Done[list[types.PromptMessage]]:
    """Write one message, and one for each document, which the caller may read.

    Raises:
        NotFound: One of them is not there, or not for the caller.
        InvalidInput: A title is that of several documents, or both name the same.
    """
    async with call.runtime.database.tenant(call.principal) as session:
        first = await _found(call, session, "document_a", given)
        second = await _found(call, session, "document_b", given)
    if first.document_id == second.document_id:
        raise InvalidInput("document_a and document_b name the same document: name two")
    inputs = {"question": given["question"], "document_a": _shown(first), "document_b": _shown(second)}
    messages = [
        as_message(types.TextContent(text=with_inputs(RULES, inputs))),
        as_message(as_link(first)),
        as_message(as_link(second)),
    ]
    return Done(value=messages, documents=(str(first.document_id), str(second.document_id)))


async def _found(call: Call, session: Session, name: str, given: Mapping[str, str]) -> Entry:
    try:
        try:
            document_id = UUID(given[name])
        except ValueError:
            return await find_entry(session, call.principal, given[name])
        return await get_entry(session, call.principal, document_id)
    except NotFound as exc:
        raise NotFound(f"{name}: there is no document of that id or title") from exc
    except InvalidInput as exc:
        raise InvalidInput(f"{name}: {exc.message}") from exc


def _shown(entry: Entry) -> dict[str, str]:
    return {
        "document_id": str(entry.document_id),
        "title": entry.title,
        "source": entry.source,
        "updated_at": entry.updated_at.isoformat(),
    }


COMPARE_SOURCES = Prompt(
    name="compare_sources",
    title="Compare two documents",
    description="Set side by side what two of your organisation's documents say about a question, with citations.",
    scope=Scope.CORPUS_READ,
    arguments=(
        Argument(
            name="question",
            title="Question",
            description="What to compare them on.",
            required=True,
            max_chars=MAX_QUERY_CHARS,
        ),
        Argument(
            name="document_a",
            title="First document",
            description=_DOCUMENT,
            required=True,
            max_chars=MAX_TITLE_CHARS,
            completer=document_names,
        ),
        Argument(
            name="document_b",
            title="Second document",
            description=_DOCUMENT,
            required=True,
            max_chars=MAX_TITLE_CHARS,
            completer=document_names,
        ),
    ),
    write=write,
)
