"""Documents out of a message, batches for the tool that stores them, and the account of what became of each. Pure.

Above: `ingest`, `ingest_graph`. Below: `rag.corpus.parse`, which reads files. A broken document is refused by itself,
with its place in the message; whatever comes in comes out again, as a document to store or as a refusal.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema

from rag.corpus.parse import ParsedDocument, parse_many
from rag.corpus.text import clean_title, first_heading
from rag.errors import DocumentRefused, InvalidInput
from workflows.markdown import inert, table

__all__ = [
    "MAX_DOCUMENTS",
    "MAX_FILES",
    "MAX_TASK_DOCUMENTS",
    "SAME_SOURCE",
    "Entry",
    "ImportOptions",
    "Offer",
    "Refused",
    "Tally",
    "account",
    "batches",
    "offers",
    "parsed_options",
    "tally",
    "told",
]

MAX_DOCUMENTS = 2_000
"""Of one message."""
MAX_FILES = 100
"""Of one message."""
MAX_TASK_DOCUMENTS = 5_000
"""Of all messages of a task: its account, with a line for each, is one artifact of a megabyte then."""
BATCH_DOCUMENTS = 25
BATCH_CHARS = 1_000_000
"""Of a call's texts together, unless one text alone has more; far from the server's limits for a body and a call."""
SHOWN_ROWS = 100
"""Documents in the Markdown table; the data part has all of them."""
SAME_SOURCE = "another document of this message has the same source: the second would replace the first"
_SHOWN_CHARS = 200

_ENTRY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["source", "text"],
    "additionalProperties": False,
    "properties": {
        "source": {"type": "string", "description": "Your own stable name for it; the same source replaces it."},
        "title": {"type": "string", "description": "Default: its first heading, or the last part of its source."},
        "text": {"type": "string"},
        "media_type": {"enum": ["text/plain", "text/markdown"], "default": "text/plain"},
        "metadata": {"type": "object"},
        "groups": {"type": "array", "items": {"type": "string"}, "description": "Who may read it."},
    },
}
_FILE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["filename"],
    "properties": {
        "filename": {"type": "string"},
        "media_type": {"type": "string"},
        "text": {"type": "string"},
        "raw": {"type": "string", "contentEncoding": "base64"},
    },
}


class Entry(BaseModel):
    """One document as the caller wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: str
    title: str | None = None
    text: str
    media_type: Literal["text/plain", "text/markdown"] = "text/plain"
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    groups: list[str] | None = None


class ImportOptions(BaseModel):
    """What a message of an import may say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    documents: list[Annotated[dict[str, Any], WithJsonSchema(_ENTRY_SCHEMA)]] = Field(
        default_factory=list[dict[str, Any]],
        max_length=MAX_DOCUMENTS,
        description="Documents to store. One that is broken is refused alone, with the reason.",
    )
    files: list[Annotated[dict[str, Any], WithJsonSchema(_FILE_SCHEMA)]] = Field(
        default_factory=list[dict[str, Any]],
        max_length=MAX_FILES,
        description="The message's file parts: text, Markdown, HTML, PDF, DOCX, or JSON Lines with a document in each "
        "line, as the file name says.",
    )
    groups: list[str] | None = Field(
        default=None, description="Who may read what the files hold. Default: whoever may now; everyone, if it is new."
    )
    more: bool = Field(
        default=False, description="Further messages with documents follow: the task asks for them until told 'done'."
    )
    wait_for_vectors: bool = Field(
        default=False, description="Complete only when everything stored is found by its meaning too."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A document that can be handed to put_documents."""

    source: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A document that cannot."""

    source: str
    """Or its place in the message, where it has none."""
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of the documents so far."""

    total: int
    created: int
    updated: int
    unchanged: int
    refused: int

    @property
    def stored(self) -> int:
        """How many are in the collection now."""
        return self.created + self.updated + self.unchanged


def parsed_options(options: Mapping[str, Any]) -> ImportOptions:
    """Return what a message says besides its text.

    Raises:
        InvalidInput: A field is unknown or of the wrong form; the message names it.
    """
    try:
        return ImportOptions.model_validate(dict(options))
    except ValidationError as exc:
        raise InvalidInput(_invalid_field(exc)) from None


def offers(message: Mapping[str, Any]) -> list[Offer | Refused]:
    """Return the documents of a message, in order: its `documents`, then its `files`.

    Reading a file may hold the thread for seconds: run it in a worker thread.
    """
    found: list[Offer | Refused] = []
    known: set[str] = set()
    for one in _read(message):
        if isinstance(one, Refused):
            found.append(one)
            continue
        name = unicodedata.normalize("NFC", one.source)
        refused = Refused(source=one.source, code=DocumentRefused.code, reason=SAME_SOURCE)
        found.append(refused if name in known else one)
        known.add(name)
    return found


def batches(documents: Sequence[Offer]) -> Iterator[list[Offer]]:
    """Yield the documents in calls of at most BATCH_DOCUMENTS and, unless it is one alone, BATCH_CHARS."""
    batch: list[Offer] = []
    characters = 0
    for document in documents:
        size = len(document.arguments["text"])
        if batch and (len(batch) == BATCH_DOCUMENTS or characters + size > BATCH_CHARS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += size
    if batch:
        yield batch


def tally(rows: Sequence[Mapping[str, Any]], *, total: int | None = None) -> Tally:
    """Count the rows by their outcome; `total` is how many there will be, if more."""
    counts = dict.fromkeys(("created", "updated", "unchanged"), 0)
    for row in rows:
        if row["outcome"] in counts:
            counts[row["outcome"]] += 1
    return Tally(total=len(rows) if total is None else total, refused=len(rows) - sum(counts.values()), **counts)


def told(counts: Tally) -> str:
    """Return the counts in words, for a status."""
    refused = f", {counts.refused} refused" if counts.refused else ""
    return f"{counts.stored} of {counts.total} stored{refused}"


def account(
    rows: Sequence[Mapping[str, Any]], *, messages: int, corpus_version: int | None, vectors: str
) -> tuple[str, dict[str, Any]]:
    """Return the account of an import, as Markdown and as data: a line for every document that came in.

    Args:
        rows: {"source", "outcome", "document_id", "version", "chunks", "code", "reason", "message"}.
        messages: How many messages were read.
        corpus_version: For a search's min_version, or None when nothing was stored.
        vectors: "ready", "pending", or "not waited for".
    """
    counts = tally(rows)
    refused = [row for row in rows if row["document_id"] is None]
    data = {
        "total": counts.total,
        "stored": counts.stored,
        "created": counts.created,
        "updated": counts.updated,
        "unchanged": counts.unchanged,
        "refused": counts.refused,
        "messages": messages,
        "corpus_version": corpus_version,
        "vectors": vectors,
        "documents": [dict(row) for row in rows],
    }
    return "\n\n".join(_markdown(counts, refused, rows, vectors)), data


def _invalid_field(error: ValidationError, *within: str) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join((*within, *(str(part) for part in first['loc'])))}: {first['msg']}"


def _markdown(
    counts: Tally, refused: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], vectors: str
) -> Iterator[str]:
    yield f"# Import: {told(counts)}"
    yield f"{counts.created} created, {counts.updated} updated, {counts.unchanged} unchanged, {counts.refused} refused."
    if vectors == "pending":
        yield "Not all of it is found by its meaning yet; by its words it is."
    if refused:
        yield "## Refused"
        yield _table(("document", "why"), [(row["source"], f"{row['code']}: {row['reason']}") for row in refused])
    stored = [row for row in rows if row["document_id"] is not None]
    if stored:
        yield "## Stored"
        lines = [(row["source"], row["outcome"], str(row["version"]), str(row["chunks"])) for row in stored]
        yield _table(("document", "outcome", "version", "passages"), lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    shown = table(head, [[_cell(cell) for cell in line] for line in lines[:SHOWN_ROWS]])
    left = len(lines) - SHOWN_ROWS
    return shown if left <= 0 else f"{shown}\n\n… and {left:,} more, in the data."


def _cell(text: str) -> str:
    return inert(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…")


def _read(message: Mapping[str, Any]) -> Iterator[Offer | Refused]:
    for number, value in enumerate(message.get("documents") or ()):
        yield _entry(value, place=f"documents.{number}")
    groups = message.get("groups")
    for number, file in enumerate(message.get("files") or ()):
        yield from _file(file, place=f"files.{number}", groups=groups)


def _entry(value: Mapping[str, Any], *, place: str) -> Offer | Refused:
    try:
        entry = Entry.model_validate(dict(value))
    except ValidationError as exc:
        source = value.get("source")
        named = source if isinstance(source, str) and source.strip() else place
        return Refused(source=named, code=DocumentRefused.code, reason=_invalid_field(exc, place))
    markdown = entry.media_type == "text/markdown"
    title = entry.title if entry.title is not None else _title(entry.source, entry.text, markdown=markdown)
    return _offer(entry.source, title, entry.text, markdown=markdown, metadata=entry.metadata, groups=entry.groups)


def _file(file: Mapping[str, Any], *, place: str, groups: list[str] | None) -> Iterator[Offer | Refused]:
    name, text, raw = file.get("filename"), file.get("text"), file.get("raw")
    if not isinstance(name, str) or not name.strip():
        yield Refused(source=place, code=DocumentRefused.code, reason=f"{place}: a file part has a filename")
        return
    try:
        data = text.encode() if isinstance(text, str) else base64.b64decode(str(raw or ""), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        yield Refused(source=name, code=DocumentRefused.code, reason=f"{place}: its content is not base64")
        return
    lines = data.count(b"\n") + 1
    if name.lower().endswith((".jsonl", ".ndjson")) and lines > MAX_DOCUMENTS:
        reason = f"{place}: it has {lines:,} lines; a message has at most {MAX_DOCUMENTS:,} documents: split the file"
        yield Refused(source=name, code=DocumentRefused.code, reason=reason)
        return
    for found in parse_many(data, name=name):
        if isinstance(found, ParsedDocument):
            # as `bulkhead ingest` names them, so that one document has one source by whichever door it comes
            source = f"{name}#{found.external_id}" if found.external_id else found.source
            title, markdown, metadata = found.title, found.markdown, found.metadata
            yield _offer(source, title, found.text, markdown=markdown, metadata=metadata, groups=groups)
        else:
            yield Refused(source=found.source, code=DocumentRefused.code, reason=found.reason)


def _offer(
    source: str, title: str, text: str, *, markdown: bool, metadata: Mapping[str, Any], groups: list[str] | None
) -> Offer:
    arguments: dict[str, Any] = {
        "source": source,
        "title": title,
        "text": text,
        "media_type": "text/markdown" if markdown else "text/plain",
        "metadata": dict(metadata),
    }
    if groups is not None:
        arguments["groups"] = groups
    return Offer(source=source, arguments=arguments)


def _title(source: str, text: str, *, markdown: bool) -> str:
    heading = clean_title(first_heading(text)) if markdown else None
    return heading or clean_title(PurePosixPath(source).stem) or "Untitled"
