"""Ways to complete a value that somebody is typing: documents, passages, tasks, tags, fixed lists.

Above: the arguments of prompts and the variables of resource templates, which name one of these each, and
`completions`. Below: `call`, rag.corpus.titles, rag.tasks.results. Each reads a bounded number of rows.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from mcp_server.call import Call
from rag.corpus.titles import MAX_LOOKED_AT, Title, get_entry, ids_between, recent_tags, titles_from
from rag.errors import NotFound
from rag.tasks import results

__all__ = [
    "MAX_VALUES",
    "Completer",
    "Suggestions",
    "artifact_names",
    "chunk_numbers",
    "document_ids",
    "document_names",
    "nothing",
    "one_of",
    "tags",
    "task_ids",
]

MAX_VALUES = 100
"""MCP, server/utilities/completion: a response holds no more."""
_MIN_ID_CHARS = 4
"""Shorter hexadecimal words are taken for the beginning of a title alone."""
_ID = re.compile(r"[0-9a-f-]{1,36}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestions:
    """Up to MAX_VALUES values, best first."""

    values: tuple[str, ...] = ()
    total: int | None = 0
    """How many there are in all; None: more than were looked at."""
    documents: tuple[str, ...] = ()
    """Ids of those whose existence the values tell of."""


Completer = Callable[[Call, str, Mapping[str, str]], Awaitable[Suggestions]]
"""From the caller, what was typed, and the other values that stand already."""


async def nothing(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
    """Suggest nothing: the value is free text."""
    del call, typed, others
    return Suggestions()


def one_of(choices: Sequence[str]) -> Completer:
    """Return what suggests those of a fixed list that begin with what was typed."""

    async def chosen(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
        del call, others
        return _limited([choice for choice in choices if choice.lower().startswith(typed.lower())])

    return chosen


async def document_ids(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
    """Suggest the ids of documents whose title, or whose id, begins so."""
    del others
    by_title, by_id, whole = await _documents(call, typed)
    return _told([(str(one.document_id), one) for one in (*by_title, *by_id)], whole=whole)


async def document_names(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
    """Suggest titles that begin so, and the ids that do."""
    del others
    by_title, by_id, whole = await _documents(call, typed)
    named = [(one.title, one) for one in by_title]
    return _told([*named, *((str(one.document_id), one) for one in by_id)], whole=whole)


async def chunk_numbers(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
    """Suggest the numbers of the passages of the document that the variable `id` names."""
    document_id = _uuid(others.get("id", ""))
    if document_id is None:
        return Suggestions()
    try:
        async with call.runtime.database.tenant(call.principal) as session:
            entry = await get_entry(session, call.principal, document_id)
    except NotFound:
        return Suggestions()
    numbers = [str(number) for number in _numbers(typed, entry.chunks)]
    return _limited(numbers, documents=(str(document_id),))


async def task_ids(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
    """Suggest the ids of tasks that begin so; without a beginning, of those that changed last."""
    del others
    database, principal = call.runtime.database, call.principal
    if not typed:
        found = await results.latest_tasks(database, principal, limit=MAX_LOOKED_AT)
    elif (between := _uuids(typed)) is not None:
        found = await results.tasks_between(database, principal, *between, limit=MAX_LOOKED_AT)
    else:
        found = []
    return _limited([str(one) for one in found], whole=len(found) < MAX_LOOKED_AT)


async def artifact_names(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
    """Suggest the names of the artifacts of the task that the variable `id` names."""
    task_id = _uuid(others.get("id", ""))
    if task_id is None:
        return Suggestions()
    names = await results.artifact_names(call.runtime.database, call.principal, task_id)
    return _limited([name for name in names if name.lower().startswith(typed.lower())])


async def tags(call: Call, typed: str, others: Mapping[str, str]) -> Suggestions:
    """Suggest tags that the documents written last have in their metadata."""
    del others
    found = await recent_tags(call.runtime.database, call.principal, typed, limit=MAX_VALUES + 1)
    return _limited(found, whole=len(found) <= MAX_VALUES)


async def _documents(call: Call, typed: str) -> tuple[list[Title], list[Title], bool]:
    """Return the documents by title, those by id, and whether these are all."""
    database, principal = call.runtime.database, call.principal
    by_title = await titles_from(database, principal, typed)
    by_id: list[Title] = []
    between = _uuids(typed) if len(typed) >= _MIN_ID_CHARS else None
    if between is not None:
        by_id = await ids_between(database, principal, *between, limit=MAX_LOOKED_AT)
    return by_title, by_id, max(len(by_title), len(by_id)) < MAX_LOOKED_AT


def _told(found: Sequence[tuple[str, Title]], *, whole: bool) -> Suggestions:
    documents = {value: str(title.document_id) for value, title in reversed(found)}
    limited = _limited([value for value, _ in found], whole=whole)
    return Suggestions(
        values=limited.values, total=limited.total, documents=tuple(documents[value] for value in limited.values)
    )


def _limited(values: Sequence[str], *, whole: bool = True, documents: tuple[str, ...] = ()) -> Suggestions:
    different = tuple(dict.fromkeys(values))
    return Suggestions(values=different[:MAX_VALUES], total=len(different) if whole else None, documents=documents)


def _uuid(text: str) -> UUID | None:
    between = _uuids(text) if len(text) == len(str(UUID(int=0))) else None
    return between[0] if between else None


def _uuids(beginning: str) -> tuple[UUID, UUID] | None:
    """Return the least and the greatest id that begin so; None where none does."""
    beginning = beginning.lower()
    digits = beginning.replace("-", "")
    if not _ID.fullmatch(beginning) or len(digits) > len(UUID(int=0).hex):
        return None
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    return (first, last) if str(first).startswith(beginning) else None


def _numbers(beginning: str, count: int) -> Iterator[int]:
    """Yield the numbers below `count` whose digits begin so, in their order."""
    if not beginning:
        yield from range(count)
        return
    if not _NUMBER.fullmatch(beginning):
        return
    width = 1
    while (first := int(beginning) * width) < count:
        yield from range(first, min(first + width, count))
        if first == 0:
            return
        width *= 10
