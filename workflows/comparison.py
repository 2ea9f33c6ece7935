"""The artifact of a comparison: Markdown for people, data for programs. Pure.

Above: `compare_graph`. Below: `comparing`, for the words that differ, and `markdown`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workflows.comparing import words_changed
from workflows.markdown import harmless, inert, table

__all__ = ["in_short", "markdown", "names_of"]

SHOWN_CHANGES = 30
"""Of one pair in the Markdown; the data has more."""
SHOWN_SECTIONS = 60
_STATES = (("changed", "changed"), ("only_base", "only in {base}"), ("only_other", "only in {other}"))


def in_short(pair: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return what a pair comes to, in a sentence."""
    base, other = names[pair["base"]], names[pair["other"]]
    return (
        f"{base} and {other}: of the sentences {pair['same']:,} are the same, {pair['changed']:,} changed, "
        f"{pair['moved']:,} moved, {pair['only_base']:,} only in {base}, {pair['only_other']:,} only in {other}"
    )


def markdown(data: Mapping[str, Any]) -> str:
    """Return the whole comparison for people."""
    names = names_of(data["documents"])
    return "\n\n".join(block for block in _blocks(data, names) if block)


def names_of(documents: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a short name for each document: a letter."""
    return {str(one["document_id"]): chr(ord("A") + number) for number, one in enumerate(documents)}


def _blocks(data: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    documents = data["documents"]
    yield "# Comparison"
    rows = [
        (names[one["document_id"]], inert(one["title"]), inert(one["source"]), str(one["version"]), _extent(one))
        for one in documents
    ]
    yield table(("", "document", "source", "version", "characters"), rows)
    yield "\n".join(f"- {in_short(pair, names)}." for pair in data["pairs"])
    if data["summary"] is not None:
        yield "## Summary"
        yield (
            harmless(data["summary"]["text"])
            or "No statement of the model's summary stood on stored words: none is shown."
        )
    if data["aspects"]:
        yield "## By aspect"
        heads = ("aspect", *(names[one["document_id"]] for one in documents))
        yield table(heads, [(inert(one["aspect"]), *map(_said, one["cells"])) for one in data["aspects"]])
    for pair in data["pairs"]:
        yield from _pair(pair, names)
    if data["citations"]:
        yield "## Sources"
        yield "\n".join(_source(one) for one in data["citations"])


def _pair(pair: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    base, other = names[pair["base"]], names[pair["other"]]
    yield f"## {base} and {other}: sections"
    rows = [
        (_heading(one["base"]), _heading(one["other"]), str(one["same"]), _state(one, base, other))
        for one in pair["sections"]
    ]
    yield table((base, other, "same", "not the same"), rows[:SHOWN_SECTIONS])
    yield _left(len(rows) - SHOWN_SECTIONS, "sections")
    changes = pair["changes"]
    if not changes:
        return
    yield f"## {base} and {other}: changes"
    yield table(("section", base, other), [_change(one) for one in changes[:SHOWN_CHANGES]])
    yield _left(len(changes) + pair["left_out"] - SHOWN_CHANGES, "changes")


def _change(change: Mapping[str, Any]) -> tuple[str, str, str]:
    base, other = change["base"], change["other"]
    if change["kind"] == "changed":
        before, after = words_changed(base["quote"], other["quote"])
        return inert(change["section"]), _struck(before, "~~", base), _struck(after, "**", other)
    moved = "moved: " if change["kind"] == "moved" else ""
    return inert(change["section"]), _quoted(base, moved), _quoted(other, moved)


def _struck(pieces: Sequence[tuple[bool, str]], mark: str, quote: Mapping[str, Any]) -> str:
    return "".join(_marked(inert(text), mark) if differs else inert(text) for differs, text in pieces) + _place(quote)


def _marked(text: str, mark: str) -> str:
    words = text.strip()
    return text.replace(words, f"{mark}{words}{mark}") if words else text


def _quoted(quote: Mapping[str, Any] | None, before: str) -> str:
    return "" if quote is None else f"{before}{inert(quote['quote'])}{_place(quote)}"


def _place(quote: Mapping[str, Any]) -> str:
    return f" ({quote['start']}-{quote['end']})"


def _said(cell: Mapping[str, Any] | None) -> str:
    return "says nothing of it" if cell is None else harmless(cell["text"]).replace("\\", "\\\\").replace("|", "\\|")


def _state(row: Mapping[str, Any], base: str, other: str) -> str:
    told = [f"{row[kind]} {words.format(base=base, other=other)}" for kind, words in _STATES if row[kind]]
    return ", ".join(told) or "nothing"


def _heading(heading: str | None) -> str:
    return "—" if heading is None else inert(heading) or "(before any heading)"


def _extent(document: Mapping[str, Any]) -> str:
    if document["read"] < document["characters"]:
        return f"the first {document['read']:,} of {document['characters']:,}; the rest was not compared"
    return f"{document['characters']:,}"


def _source(citation: Mapping[str, Any]) -> str:
    at = f"version {citation['version']}, characters {citation['start']}-{citation['end']}"
    return f"[{citation['n']}] {inert(citation['title'])} ({inert(citation['source'])}), {at}"


def _left(number: int, what: str) -> str:
    return f"… and {number:,} more {what}, in the data as far as they are quoted." if number > 0 else ""
