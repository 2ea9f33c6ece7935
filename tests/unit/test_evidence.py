"""Which passages are kept, and which citations stand: the pure part of the workflow `rag`."""

from __future__ import annotations

from typing import Any

import pytest

from rag.errors import Unavailable
from workflows import evidence


def _hit(text: str, *, score: float = 0.5, document: str = "d1", start: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "document_id": document,
        "source": "law.txt",
        "title": "Law",
        "version": 3,
        "heading": "",
        "start": start,
        "end": start + len(text),
        "text": text,
        "score": score,
        **more,
    }


def test_passages_come_best_first_without_repeats_or_overlaps() -> None:
    hits = [
        _hit("worst", score=0.1, document="d2"),
        _hit("best text", score=0.9),
        _hit("overlaps", score=0.8, start=4),
        _hit("best text", score=0.7, document="d3"),
        _hit("next to it", score=0.6, start=9),
    ]
    assert [one["text"] for one in evidence.best_passages(hits)] == ["best text", "next to it", "worst"]


def test_passages_fit_the_budget_and_a_smaller_one_may_still_fit() -> None:
    big, second, small = "a" * 9_000, "b" * 9_000, "c" * 2_000
    hits = [
        _hit(text, score=1.0 - number / 10, document=f"d{number}") for number, text in enumerate((big, second, small))
    ]
    assert [one["text"][0] for one in evidence.best_passages(hits)] == ["a", "c"]
    many = [_hit(f"text {number}", document=f"d{number}") for number in range(30)]
    assert len(evidence.best_passages(many)) == evidence.MAX_PASSAGES


def test_a_citation_is_placed_in_its_document_and_stands_on_the_stored_words_only() -> None:
    passage = _hit("It is unlawful to deceive.", start=100)
    answer = {"citations": [{"passage": 0, "start": 6, "end": 14, "quote": "unlawful"}]}
    (claim,) = evidence.claims(answer, [passage])
    assert (claim["n"], claim["start"], claim["end"]) == (1, 106, 114)
    held = evidence.citation(claim, {"text": "unlawful", "document": {"version": 4}})
    assert held is not None
    assert (held["version"], held["verified"]) == (4, True)
    for stored in ("Unlawful", "unlawful ", "lawful", ""):
        assert evidence.citation(claim, {"text": stored, "document": {"version": 4}}) is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One [1]. Two [2].", "One [1]. Two."),
        ("Both [1, 2].", "Both [1]."),
        ("None [3][4].", "None."),
        ("No markers.", "No markers."),
    ],
)
def test_a_marker_without_a_citation_is_taken_out_of_the_text(text: str, kept: str) -> None:
    assert evidence.without_markers(text, keep={1}) == kept


@pytest.mark.parametrize("found", [{}, {"hits": [{}]}, {"hits": None}, {"hits": [1]}])
def test_a_search_result_of_an_unknown_form_is_not_guessed_at(found: dict[str, Any]) -> None:
    with pytest.raises(Unavailable):
        evidence.hits_of(found)
