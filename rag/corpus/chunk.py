"""Text becomes chunks here: spans of it, by section and sentence, small enough for the embedding model.

Above it: the ingest of `rag.corpus`. Below it: semantic-text-splitter, called on one window at a time.

Headings are lines of one to six `#` (ATX) outside fenced code. Sections are packed together while they are short, so
that a heading with one line under it is not a chunk of its own; a long section is cut at paragraphs, then sentences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from rag.corpus.text import headings

__all__ = ["MAX_CHUNK_CHARS", "Chunk", "chunk"]

MAX_CHUNK_CHARS = 1100
"""Longest chunk. Of chunks of this bound over samples/, under 1 % exceed the 256 word pieces that the default embedding
model reads, and they lose 0.1 % of all pieces; at 1200 it is 4 % (tests/integration/test_minilm.py measures it)."""

_SHORT_SECTION_CHARS = 400
"""A section shorter than this takes the next one in with it, if both fit into one chunk."""
_WINDOW_CHARS = 32_000
"""The splitter is called on this much at a time: its time grows faster than its input (22 s for 4 million characters in
one paragraph) and a call holds the interpreter."""
_MAX_LEAD_CHARS = 200
"""A first piece up to this long, usually a heading, is kept together with what follows it."""
_MAX_HEADING_CHARS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """`text[start:end]` of its document, offsets in characters."""

    number: int
    """Counts from 0 in the order of the document."""
    start: int
    end: int
    text: str
    heading: str
    """The headings that all of the chunk stands under, outermost first, joined by ` › `; empty without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    start: int
    end: int
    path: tuple[str, ...]


def chunk(text: str, *, markdown: bool) -> list[Chunk]:
    """Cut clean text (see `rag.corpus.text`) into chunks that cover everything but white space, in order, disjoint.

    No chunk is empty, longer than `MAX_CHUNK_CHARS`, or begins or ends with white space.
    """
    chunks: list[Chunk] = []
    for section in _packed(_sections(text) if markdown else [_Section(start=0, end=len(text), path=())]):
        heading = " › ".join(section.path)
        if len(heading) > _MAX_HEADING_CHARS:
            heading = heading[: _MAX_HEADING_CHARS - 1] + "…"
        for start, end in _spans(text, section, markdown=markdown):
            chunks.append(Chunk(number=len(chunks), start=start, end=end, text=text[start:end], heading=heading))
    return chunks


def _sections(text: str) -> Iterator[_Section]:
    """Yield the span from each heading to the next, with the path of headings that it stands under."""
    path: list[tuple[int, str]] = []
    start = 0
    for heading in headings(text):
        if heading.start > start:
            yield _Section(start=start, end=heading.start, path=tuple(words for _, words in path))
        start = heading.start
        path = [(level, words) for level, words in path if level < heading.level]
        path.append((heading.level, heading.words))
    yield _Section(start=start, end=len(text), path=tuple(words for _, words in path))


def _packed(sections: Iterator[_Section] | list[_Section]) -> Iterator[_Section]:
    """Join neighbours while the first is short and the whole fits into one chunk; keep what their paths share."""
    held: _Section | None = None
    for section in sections:
        if held is None:
            held = section
        elif held.end - held.start < _SHORT_SECTION_CHARS and section.end - held.start <= MAX_CHUNK_CHARS:
            held = _Section(start=held.start, end=section.end, path=_shared(held.path, section.path))
        else:
            yield held
            held = section
    if held is not None:
        yield held


def _shared(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def _spans(text: str, section: _Section, *, markdown: bool) -> Iterator[tuple[int, int]]:
    for start, end in pairwise(_cuts(text, section.start, section.end)):
        # The splitter trims what Unicode calls white space, Python a few separators more.
        for offset, piece in _pieces(text[start:end], markdown=markdown):
            left = start + offset + len(piece) - len(piece.lstrip())
            right = start + offset + len(piece.rstrip())
            if left < right:
                yield left, right


def _pieces(window: str, *, markdown: bool) -> list[tuple[int, str]]:
    if len(window) <= MAX_CHUNK_CHARS:
        return [(0, window)]
    pieces = _split(window, MAX_CHUNK_CHARS, markdown=markdown)
    if len(pieces) < 2 or pieces[1][0] > _MAX_LEAD_CHARS:
        return pieces
    # A heading before a paragraph that fills a chunk by itself came out alone: cut again, leaving room for it.
    lead = pieces[1][0]
    (_, first), *rest = _split(window[lead:], MAX_CHUNK_CHARS - lead, markdown=markdown)
    return [(0, window[: lead + len(first)]), *((lead + offset, piece) for offset, piece in rest)]


def _split(text: str, capacity: int, *, markdown: bool) -> list[tuple[int, str]]:
    splitter = MarkdownSplitter(capacity) if markdown else TextSplitter(capacity)
    return splitter.chunk_indices(text)


def _cuts(text: str, start: int, end: int) -> Iterator[int]:
    """Yield the borders of windows, each at the last paragraph, line or word border that the window holds."""
    yield start
    while end - start > _WINDOW_CHARS:
        limit = start + _WINDOW_CHARS
        for border in ("\n\n", "\n", ". ", " "):
            found = text.rfind(border, start + _WINDOW_CHARS // 2, limit)
            if found >= 0:
                limit = found + len(border)
                break
        start = limit
        yield start
    yield end
