"""Passages in, checked citations out. Pure: what the nodes of `rag_graph` compute between their calls.

Above: `rag_graph`. Below: nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from rag.errors import Unavailable

__all__ = [
    "Claimed",
    "best_passages",
    "citation",
    "claims",
    "hits_of",
    "label",
    "result",
    "without_markers",
]

MAX_PASSAGES = 8
MAX_PASSAGE_CHARS = 12_000
"""All passages together: about 3 000 tokens, which leaves room in the smallest contexts in use."""
_HIT_FIELDS = ("document_id", "source", "title", "version", "heading", "start", "end", "text", "score")
_MARKER = re.compile(r"\s*\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")
_NUMBER = re.compile(r"\d+")


class Claimed(TypedDict):
    """A citation as the answerer claims it: these words, at this place of this document."""

    n: int
    """The marker [n] in the answer's text."""
    document_id: str
    source: str
    title: str
    start: int
    end: int
    quote: str


def hits_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the hits of a search result, reduced to what the run needs.

    Raises:
        Unavailable: The result does not have the form that hybrid_search declares.
    """
    try:
        return [{name: hit[name] for name in _HIT_FIELDS} for hit in found["hits"]]
    except (KeyError, TypeError) as exc:
        raise Unavailable("the search answered in an unknown form") from exc


def best_passages(hits: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the best hits by score, without repeated or overlapping text, within MAX_PASSAGES and MAX_PASSAGE_CHARS.

    The scores are the search's own fusion; nothing is added to them here.
    """
    kept: list[dict[str, Any]] = []
    left = MAX_PASSAGE_CHARS
    for hit in sorted(hits, key=lambda hit: -float(hit["score"])):
        if len(kept) == MAX_PASSAGES:
            break
        if len(hit["text"]) <= left and not any(_repeats(hit, other) for other in kept):
            kept.append(dict(hit))
            left -= len(hit["text"])
    return kept


def label(hit: Mapping[str, Any]) -> str:
    """Return the passage's title for the answerer."""
    return f"{hit['title']}: {hit['heading']}" if hit["heading"] else str(hit["title"])


def claims(answer: Mapping[str, Any], passages: Sequence[Mapping[str, Any]]) -> list[Claimed]:
    """Return the answer's citations with their places in the documents instead of in the passages."""
    found: list[Claimed] = []
    for cited in answer["citations"]:
        passage = passages[cited["passage"]]
        found.append(
            Claimed(
                n=cited["passage"] + 1,
                document_id=str(passage["document_id"]),
                source=str(passage["source"]),
                title=str(passage["title"]),
                start=passage["start"] + cited["start"],
                end=passage["start"] + cited["end"],
                quote=cited["quote"],
            )
        )
    return found


def citation(claim: Claimed, stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the verified citation, or None unless the stored text has exactly the quoted words at the place."""
    if stored["text"] != claim["quote"]:
        return None
    digest = hashlib.sha256(claim["quote"].encode()).hexdigest()
    return {**claim, "version": stored["document"]["version"], "quote_sha256": digest, "verified": True}


def result(*, answerer: str, model: str | None, citations: Sequence[Mapping[str, Any]], dropped: int) -> dict[str, Any]:
    """Return the data part of the answer: who answered, on what evidence, and how many claims of it did not hold."""
    return {"answerer": answerer, "model": model, "citations": [dict(one) for one in citations], "dropped": dropped}


def without_markers(text: str, *, keep: set[int]) -> str:
    """Return `text` with only those of its [n] markers whose n is in `keep`."""

    def kept(marker: re.Match[str]) -> str:
        numbers = [number for number in _NUMBER.findall(marker[1]) if int(number) in keep]
        space = marker[0][: len(marker[0]) - len(marker[0].lstrip())]
        return f"{space}[{', '.join(numbers)}]" if numbers else ""

    return _MARKER.sub(kept, text)


def _repeats(hit: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if hit["text"] == other["text"]:
        return True
    same = hit["document_id"] == other["document_id"]
    return same and hit["start"] < other["end"] and other["start"] < hit["end"]
