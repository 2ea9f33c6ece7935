"""Passages: what a search found, reduced to what a run needs, and the best of it. Pure.

Above: the graphs that search. Below: the errors. What is claimed of passages and shown of it: `citations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from rag.errors import Unavailable
from rag.llm.sentences import content_words

__all__ = [
    "Weights",
    "best_passages",
    "hits_of",
    "label",
    "merged",
    "weights_of",
]

MAX_PASSAGES = 8
MAX_PASSAGE_CHARS = 12_000
"""All passages together: about 3 000 tokens, which leaves room in the smallest contexts in use."""
_FRAMING = frozenset(
    """concerning describe describ does explain find give happen happens happen know list long many mean much must need
    needs regarding report say says show summarise summarize tell want write""".split()  # noqa: SIM905  # as text
)
"""Words, and stems of them, that ask and are not asked about."""
_HIT_FIELDS = ("document_id", "source", "title", "version", "heading", "start", "end", "text", "score")


class Weights(TypedDict):
    """What the words of a question weigh in a collection: the rarer, the more."""

    terms: dict[str, float]
    """Those that occur."""
    total: float
    """Of all, those that occur nowhere included."""
    nearest: float
    """The cosine of the passage that comes nearest to the whole question; 0 where no vector took part."""


def hits_of(
    found: Mapping[str, Any], weights: Weights | None = None, *, by_meaning: bool = True
) -> list[dict[str, Any]]:
    """Return the hits of a search result, reduced to what the run needs.

    With weights, each hit has also `covers`, the part of the question's weight that its words have (0 to 1), and
    `near`: how near it comes to the question by meaning, the nearest hit of the overview being 1. `near` is None where
    no vector took part, or where `by_meaning` is off: the search was for other words than the question's.

    Raises:
        Unavailable: The result does not have the form that hybrid_search declares.
    """
    try:
        hits = [{name: hit[name] for name in _HIT_FIELDS} for hit in found["hits"]]
        if weights is not None:
            for hit, told in zip(hits, found["hits"], strict=True):
                has = {str(term["term"]) for term in told["explain"]["terms"]}
                weight = sum(weight for term, weight in weights["terms"].items() if term in has)
                hit["covers"] = round(weight / weights["total"], 3) if weights["total"] else 0.0
                cosine, nearest = told["explain"]["vector_score"], weights["nearest"]
                hit["near"] = None if cosine is None or not by_meaning or not nearest else round(cosine / nearest, 3)
    except (KeyError, TypeError) as exc:
        raise Unavailable("the search answered in an unknown form") from exc
    return hits


def weights_of(question: str, found: Mapping[str, Any]) -> Weights:
    """Return what the question's words weigh, out of the result of searching for it.

    Raises:
        Unavailable: The result does not have the form that hybrid_search declares.
    """
    try:
        occurring = {str(term): float(idf) for term, idf in found["report"]["terms"].items()}
        nearest = max((float(hit["explain"]["vector_score"] or 0.0) for hit in found["hits"]), default=0.0)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise Unavailable("the search answered in an unknown form") from exc
    terms = {term: idf for term, idf in occurring.items() if term not in _FRAMING}
    # a word that occurs nowhere has no weight of its own; it is at least as rare as the rarest that does
    missing = max(0, len(content_words(question) - _FRAMING) - len(terms))
    total = sum(terms.values()) + missing * max(terms.values(), default=1.0)
    return Weights(terms=terms, total=total, nearest=max(0.0, nearest))


def merged(lists: Iterable[Sequence[Mapping[str, Any]]], *, most: int, most_chars: int) -> list[dict[str, Any]]:
    """Return the hits of several searches as one list, each passage once, best first, within the bounds."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for hit in (hit for hits in lists for hit in hits):
        place = (str(hit["document_id"]), int(hit["start"]))
        other = best.get(place)
        if other is None:
            best[place] = dict(hit)
        else:
            near = max((one["near"] for one in (hit, other) if one["near"] is not None), default=None)
            best[place] = {**max(hit, other, key=lambda one: float(one["score"])), "near": near}
    kept: list[dict[str, Any]] = []
    for hit in sorted(best.values(), key=lambda hit: (-float(hit["score"]), hit["source"], hit["start"])):
        if len(kept) == most or len(hit["text"]) > most_chars:
            break
        kept.append(hit)
        most_chars -= len(hit["text"])
    return kept


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


def _repeats(hit: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if hit["text"] == other["text"]:
        return True
    same = hit["document_id"] == other["document_id"]
    return same and hit["start"] < other["end"] and other["start"] < hit["end"]
