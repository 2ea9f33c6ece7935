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


def _told(text: str, *, score: float, cosine: float | None, terms: tuple[str, ...]) -> dict[str, Any]:
    named = [{"term": term, "idf": 1.0, "frequency": 1} for term in terms]
    return {**_hit(text, score=score), "explain": {"vector_score": cosine, "terms": named}}


def test_a_hit_says_how_much_of_the_question_it_has_and_how_near_it_comes() -> None:
    found = {
        "hits": [
            _told("both", score=0.9, cosine=0.8, terms=("insid", "trade")),
            _told("one", score=0.5, cosine=0.4, terms=("trade", "other")),
            _told("none", score=0.1, cosine=None, terms=()),
        ],
        "report": {"terms": {"insid": 3.0, "trade": 1.0}},
    }
    weights = evidence.weights_of("insider trading", found)
    assert weights == {"terms": {"insid": 3.0, "trade": 1.0}, "total": 4.0, "nearest": 0.8}
    hits = evidence.hits_of(found, weights)
    assert [(hit["covers"], hit["near"]) for hit in hits] == [(1.0, 1.0), (0.25, 0.5), (0.0, None)]
    assert {hit["near"] for hit in evidence.hits_of(found, weights, by_meaning=False)} == {None}


def test_a_word_that_occurs_nowhere_weighs_as_much_as_the_rarest_that_does() -> None:
    found: dict[str, Any] = {"hits": [], "report": {"terms": {"corpor": 3.0}}}
    assert evidence.weights_of("Acme Corporation", found)["total"] == 6.0
    with pytest.raises(Unavailable):
        evidence.weights_of("x", {"hits": []})


def test_the_hits_of_several_searches_are_one_list_without_repetition() -> None:
    def hit(text: str, score: float, start: int, near: float | None) -> dict[str, Any]:
        return {**_hit(text, score=score, start=start), "near": near}

    lists = [[hit("a" * 10, 0.9, 0, 0.7), hit("b" * 10, 0.2, 50, None)], [hit("a" * 10, 1.0, 0, None)]]
    merged = evidence.merged(lists, most=9, most_chars=100)
    assert [(one["start"], one["score"], one["near"]) for one in merged] == [(0, 1.0, 0.7), (50, 0.2, None)]
    assert len(evidence.merged(lists, most=1, most_chars=100)) == 1
    assert len(evidence.merged(lists, most=9, most_chars=15)) == 1


@pytest.mark.parametrize("found", [{}, {"hits": [{}]}, {"hits": None}, {"hits": [1]}])
def test_a_search_result_of_an_unknown_form_is_not_guessed_at(found: dict[str, Any]) -> None:
    with pytest.raises(Unavailable):
        evidence.hits_of(found)
