"""Citations: what is called verified stands word for word in the stored text; all else is dropped or marked."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import Unavailable
from rag.llm.chat import Answer, Citation, Passage
from rag.llm.citations import statements_of
from workflows.citations import (
    MAX_GAP_CHARS,
    MAX_READ_CHARS,
    Claim,
    Quote,
    Read,
    deliver,
    held,
    key_of,
    measured,
    quotes_of,
    reads,
    statements,
    without_markers,
)
from workflows.citations import Citation as VerifiedCitation

LAW = "It is unlawful to deceive any person. The Commission may sue in any court. Fines go to the Treasury."


def passage(text: str = LAW, *, start: int = 100, document: str = "d1") -> dict[str, Any]:
    return {"document_id": document, "source": f"{document}.md", "title": "Law", "start": start, "text": text}


def modelled(text: str) -> Answer:
    return Answer(kind="model", model="tiny", text=text)


def quote(words: str = "unlawful", start: int = 106, document: str = "d1") -> Quote:
    return Quote(document_id=document, source="d1.md", title="Law", start=start, end=start + len(words), quote=words)


def stored(text: str, *, start: int, version: int = 3) -> dict[str, Any]:
    return {"text": text, "start": start, "document": {"version": version}}


def all_held(answer: Answer, passages: list[dict[str, Any]]) -> dict[Any, Any]:
    """Return the quotes that hold where every document is as the passages say."""
    found: dict[Any, Any] = {}
    for read in reads(quotes_of(statements(answer, passages))):
        own = next(one for one in passages if one["document_id"] == read.document_id)
        text = own["text"][read.start - own["start"] : read.end - own["start"]]
        found |= held(read, stored(text, start=read.start))
    return found


def test_a_claim_of_a_model_is_placed_in_its_document_on_the_documents_words() -> None:
    (one,) = statements(modelled("Nobody may deceive any person, it is unlawful [1]."), [passage()])
    (claim,) = one["claims"]
    (found,) = claim["quotes"]
    assert (claim["n"], found["quote"]) == (1, "It is unlawful to deceive any person.")
    assert (found["start"], found["end"]) == (100, 137)


def test_what_is_held_stands_at_its_place_letter_by_letter() -> None:
    read = Read(document_id="d1", start=100, end=137, quotes=(quote(),))
    (citation,) = held(read, stored(LAW[:37], start=100)).values()
    assert (citation["version"], citation["verified"]) == (3, True)
    assert citation["quote_sha256"] == hashlib.sha256(b"unlawful").hexdigest()
    for text in (LAW[:37].replace("unlawful", "Unlawful"), " " + LAW[:37], LAW[:10], ""):
        assert held(read, stored(text, start=100)) == {}


@pytest.mark.parametrize("result", [{}, {"text": LAW, "start": "x", "document": {"version": 1}}, {"text": LAW}])
def test_a_document_in_an_unknown_form_is_not_guessed_at(result: dict[str, Any]) -> None:
    with pytest.raises(Unavailable):
        held(Read(document_id="d1", start=0, end=9, quotes=(quote(),)), result)


def test_near_quotes_of_a_document_are_read_together_and_far_ones_apart() -> None:
    quotes = [
        quote(start=0),
        quote(start=50_000),
        quote(start=20),
        quote(start=10, document="d2"),
        quote(start=50_000 + MAX_GAP_CHARS),
    ]
    found = [(read.document_id, read.start, read.end, len(read.quotes)) for read in reads(quotes)]
    assert found == [("d1", 0, 28, 2), ("d1", 50_000, 50_008 + MAX_GAP_CHARS, 2), ("d2", 10, 18, 1)]


@given(st.lists(st.tuples(st.integers(0, 90_000), st.integers(1, 600)), max_size=30))
def test_every_quote_is_read_within_the_bounds(spans: list[tuple[int, int]]) -> None:
    quotes = [quote("x" * length, start=start) for start, length in spans]
    found = reads(quotes)
    assert sorted(key_of(one) for read in found for one in read.quotes) == sorted(key_of(one) for one in quotes)
    for read in found:
        assert read.end - read.start <= MAX_READ_CHARS
        assert all(read.start <= one["start"] and one["end"] <= read.end for one in read.quotes)


ANSWER = (
    "It is unlawful to deceive a person [1]. The moon is green cheese [1]. Water is wet. "
    "The Commission may sue in a court [1, 7]."
)


@pytest.mark.parametrize(
    ("unverified", "shown", "coverage"),
    [
        (
            "drop",
            "It is unlawful to deceive a person [1]. Water is wet. The Commission may sue in a court [1].",
            0.6667,
        ),
        (
            "mark",
            "It is unlawful to deceive a person [1]. The moon is green cheese [unverified]. Water is wet. "
            "The Commission may sue in a court [1].",
            0.5,
        ),
    ],
)
def test_what_does_not_hold_is_dropped_or_marked_and_counted(unverified: Any, shown: str, coverage: float) -> None:
    answer, passages = modelled(ANSWER), [passage()]
    delivered = deliver(ANSWER, statements(answer, passages), all_held(answer, passages), unverified=unverified)
    assert delivered.text == shown
    figures = measured([delivered], unverified=unverified)
    assert (figures["claimed"], figures["verified"], figures["dropped"]) == (4, 2, 2)
    assert (figures["precision"], figures["coverage"]) == (0.5, coverage)
    assert [n for n, _ in delivered.citations] == [1, 1]
    assert all(claim["citations"] == ([1] if claim["verified"] else []) for claim in delivered.claims)


def test_a_quote_that_no_longer_holds_takes_its_claim_with_it() -> None:
    answer, passages = modelled(ANSWER), [passage()]
    delivered = deliver(ANSWER, statements(answer, passages), {}, unverified="drop")
    assert (delivered.text, delivered.citations, delivered.verified) == ("Water is wet.", (), 0)
    assert measured([delivered], unverified="drop")["coverage"] == 0.0


def test_a_claim_with_two_quotations_needs_both() -> None:
    text = 'It says "It is unlawful to deceive" and "Fines go to the Treasury" [1].'
    answer, passages = modelled(text), [passage()]
    found = all_held(answer, passages)
    assert len(found) == 2
    for missing in found:
        left = {key: citation for key, citation in found.items() if key != missing}
        assert deliver(text, statements(answer, passages), left, unverified="drop").verified == 0


def test_the_sentences_of_an_extractive_answer_are_its_quotes_whatever_stands_in_them() -> None:
    words = "See [9] below.\nNo. 5 applies;   not [2]."
    passages = [passage(f"Before. {words} After.", start=7)]
    cited = Citation(passage=0, start=8, end=8 + len(words), quote=words)
    answer = Answer(kind="extractive", model=None, text=f"{' '.join(words.split())} [1]", citations=(cited,))
    (one,) = statements(answer, passages)
    assert one["claims"][0]["quotes"][0]["quote"] == words
    delivered = deliver(answer.text, [one], all_held(answer, passages), unverified="drop")
    assert (delivered.text, delivered.verified, delivered.covered) == (answer.text, 1, 1)
    with pytest.raises(Unavailable):
        statements(Answer(kind="extractive", model=None, text="other", citations=(cited,)), passages)


def test_an_item_of_a_list_goes_with_its_statement() -> None:
    text = "Two things:\n\n- It is unlawful to deceive a person [1].\n- The moon is green cheese [1].\n"
    answer, passages = modelled(text), [passage()]
    delivered = deliver(text, statements(answer, passages), all_held(answer, passages), unverified="drop")
    assert delivered.text == "Two things:\n\n- It is unlawful to deceive a person [1]."


def test_a_text_that_was_not_checked_has_no_markers() -> None:
    shown = without_markers(ANSWER, statements(modelled(ANSWER), [passage()]))
    assert "[" not in shown
    assert shown.startswith("It is unlawful to deceive a person. The moon is green cheese. Water is wet.")


def test_a_number_of_the_callers_own_stands_for_the_marker() -> None:
    def numbered(claim: Claim, citation: VerifiedCitation) -> int:
        return claim["n"] + citation["start"]

    answer, passages = modelled("It is unlawful to deceive a person [1]."), [passage()]
    found = all_held(answer, passages)
    delivered = deliver(answer.text, statements(answer, passages), found, unverified="drop", number=numbered)
    assert (delivered.text, delivered.citations[0][0]) == ("It is unlawful to deceive a person [101].", 101)


MARKED = st.lists(
    st.sampled_from(["It is unlawful", " [1]", "[2][3]", ". ", "\n\n", " The Commission may sue", ", [1]", '"', " x"]),
    max_size=14,
).map("".join)


@given(st.text(max_size=80) | MARKED)
def test_statements_are_spans_in_order_and_every_marker_is_in_one_of_them(text: str) -> None:
    before = 0
    for one in statements_of(text, [Passage(text=LAW)]):
        assert before <= one.start < one.end <= len(text)
        if one.markers is not None:
            assert one.start <= one.markers[0] < one.markers[1] <= one.end
        before = one.end


@given(MARKED)
def test_nothing_is_shown_as_verified_that_does_not_hold(text: str) -> None:
    answer, passages = modelled(text), [passage()]
    for unverified in ("drop", "mark"):
        delivered = deliver(text, statements(answer, passages), {}, unverified=unverified)
        assert (delivered.citations, delivered.verified, delivered.covered) == ((), 0, 0)
        assert not any(f"[{n}]" in delivered.text for n in (1, 2, 3)), delivered.text


FEES = "The fee for each late filing is 100 dollars. No person shall trade on inside information."


@pytest.mark.parametrize(
    "claim",
    [
        "The fee for each late filing is 900 dollars [1].",
        "„Each late filing is a fee waived by the issuer“ [1].",
        "«Each late filing is a fee waived by the issuer» [1].",
        "‘Each late filing is a fee waived by the issuer’ [1].",
        "'Each late filing is the issuer's waived fee' [1].",
        '"Each late filing is a fee waived by the issuer [1]."',
        f'It says "{"waived dollars " * 45}the fee for late filing" [1].',
        "The fee for each late filing was waived for inside information of 2019 [1].",
    ],
)
def test_an_invented_number_or_quotation_of_any_kind_bears_nothing_out(claim: str) -> None:
    assert quotes_of(statements(modelled(claim), [passage(FEES)])) == []


@pytest.mark.parametrize(
    "claim",
    [
        "1. The fee for each late filing is 100 dollars [1].",
        "„fee for each late\u00a0filing“ is what it names [1].",
        "‘The fee for each late filing’ is 100 dollars [1].",
        "It says 'fee for each late filing' and nobody's fee else [1].",
        '"The fee for each late filing is 100 dollars [1]."',
        "Under § 78 of the Law the fee for each late filing is 100 dollars [1].",
    ],
)
def test_a_true_number_or_quotation_of_any_kind_is_found(claim: str) -> None:
    (found,) = quotes_of(statements(modelled(claim), [{**passage(FEES), "heading": "Law › § 78. Fees"}]))
    assert "fee for each late filing" in found["quote"]


@pytest.mark.parametrize("marker", ["[1-2]", "[ 1, 2 ]", "[Source 1; source 2]", "[^1][^2]", "【1】【2】", "[1 – 2]"])
@pytest.mark.parametrize("holds", [True, False])
def test_no_form_of_a_marker_is_shown_unchecked(marker: str, holds: bool) -> None:
    answer = modelled(f"The fee for each late filing is {100 if holds else 900} dollars {marker}.")
    passages = [passage(FEES), passage("Nothing of it.", document="d2")]
    made = statements(answer, passages)
    delivered = deliver(answer.text, made, all_held(answer, passages), unverified="mark")
    shown = "The fee for each late filing is 100 dollars [1]." if holds else "[unverified]."
    assert delivered.text.endswith(shown)
    assert (delivered.claimed, delivered.verified) == (2, int(holds))
