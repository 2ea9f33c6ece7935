"""The extractive answerer copies sentences that can be found again; a model's citations are checked the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag import errors
from rag.errors import EmbedderUnavailable
from rag.llm.chat import NO_ANSWER, Answer, Citation, Passage
from rag.llm.citations import verify_citations
from rag.llm.extractive import MAX_SENTENCES, ExtractiveChat
from rag.llm.minilm import MiniLmEmbedder, load_minilm
from rag.llm.ports import Embedder, Vectors
from rag.llm.sentences import MAX_SENTENCE_CHARS, content_words, sentence_spans

SAMPLES = Path(__file__).parents[2] / "samples"
LAW = Passage(
    title="Manipulative and deceptive devices",
    text=(SAMPLES / "securities" / "15-78j-manipulative-and-deceptive-devices.md").read_text(encoding="utf-8"),
)
OTHER = Passage(
    text="# Fees\n\nThe annual fee is 0.4 % of the assets. It is due on 31 January.\n\n"
    "Either party may end the agreement with 90 days of notice. Notices are sent by registered mail."
)
PASSAGES = (LAW, OTHER)


class Unavailable:
    """An embedder whose server is down."""

    model = "down"
    dimension = 384

    async def embed(self, texts: Sequence[str]) -> Vectors:
        raise EmbedderUnavailable

    async def aclose(self) -> None:
        return


@pytest.fixture(scope="module")
def minilm() -> MiniLmEmbedder:
    return load_minilm()


async def ask(embedder: Embedder, question: str, passages: Sequence[Passage] = PASSAGES) -> Answer:
    emitted: list[str] = []

    async def emit(piece: str) -> None:
        emitted.append(piece)

    answer = await ExtractiveChat(embedder).answer(question, passages, emit=emit)
    assert "".join(emitted) == answer.text
    assert_verbatim(answer.citations, passages)
    assert (answer.kind, answer.model, answer.unverified, answer.usage) == ("extractive", None, 0, None)
    return answer


def assert_verbatim(citations: Sequence[Citation], passages: Sequence[Passage]) -> None:
    for citation in citations:
        assert passages[citation.passage].text[citation.start : citation.end] == citation.quote
        assert citation.quote.strip() == citation.quote != ""


@pytest.mark.anyio
async def test_the_sentence_that_answers_comes_first_with_its_place(minilm: MiniLmEmbedder) -> None:
    answer = await ask(minilm, "How can the contract be terminated?")
    first = answer.citations[0]
    assert (first.passage, first.quote) == (1, "Either party may end the agreement with 90 days of notice.")
    assert answer.text.startswith("Either party may end the agreement with 90 days of notice. [2]")
    assert len(answer.citations) <= MAX_SENTENCES


@pytest.mark.anyio
async def test_an_answer_is_the_same_each_time(minilm: MiniLmEmbedder) -> None:
    question = "What is unlawful about short sales?"
    assert await ask(minilm, question) == await ask(minilm, question)


@pytest.mark.anyio
async def test_a_sentence_that_two_passages_share_is_said_once(minilm: MiniLmEmbedder) -> None:
    answer = await ask(minilm, "When is the fee due?", [OTHER, OTHER])
    quotes = [citation.quote for citation in answer.citations]
    assert len(set(quotes)) == len(quotes)


@pytest.mark.anyio
async def test_sentences_that_say_the_same_in_other_letters_are_said_once(minilm: MiniLmEmbedder) -> None:
    passages = [
        Passage(text="The annual custody fee is due on 31 January."),
        Passage(text="The annual custody fee is due on the 31 January!"),
        Passage(text="The annual custody fee is due by transfer to the account of the bank in Zurich."),
    ]
    for embedder in (minilm, Unavailable()):
        answer = await ask(embedder, "When is the annual custody fee due?", passages)
        assert [citation.passage for citation in answer.citations] == [0, 2]


@pytest.mark.anyio
async def test_no_more_sentences_than_the_bound_are_said() -> None:
    text = " ".join(f"The custody fee of kind {number} is described in part {number}." for number in range(100))
    answer = await ask(Unavailable(), "What is the custody fee?", [Passage(text=text)])
    assert len(answer.citations) == MAX_SENTENCES


@pytest.mark.anyio
async def test_what_no_passage_answers_is_said_so(minilm: MiniLmEmbedder) -> None:
    assert (await ask(minilm, "zebra stripes genetics", [OTHER])).text == NO_ANSWER
    assert (await ask(minilm, "When is the fee due?", [])).text == NO_ANSWER
    assert (await ask(minilm, "When is the fee due?", [Passage(text="# Heading only")])).text == NO_ANSWER


@pytest.mark.anyio
async def test_without_the_embedder_words_alone_decide() -> None:
    answer = await ask(Unavailable(), "When is the annual fee due?")
    assert [citation.quote for citation in answer.citations] == ["The annual fee is 0.4 % of the assets."]
    assert (await ask(Unavailable(), "zebra")).text == NO_ANSWER


@pytest.mark.anyio
async def test_what_no_model_writes_is_refused() -> None:
    with pytest.raises(errors.Unavailable, match="needs a language model"):
        await ExtractiveChat(Unavailable()).complete("Rules.", "Data.", max_tokens=9)


@given(
    st.lists(st.text(max_size=200) | st.sampled_from(["# H\n", "\n\n", "A b. C d! ", "x" * 700, "😀. "]), max_size=12)
)
@settings(max_examples=150, deadline=None)
def test_sentences_are_bounded_spans_in_order(parts: list[str]) -> None:
    text = "".join(parts).encode("utf-8", "replace").decode()
    before = 0
    for start, end in sentence_spans(text):
        assert before <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        assert end - start <= MAX_SENTENCE_CHARS
        before = end


def test_headings_are_no_sentences_and_abbreviations_end_none() -> None:
    text = "# § 78j. Devices\nUnder the U.S. Code, Dr. Smith may file. He did.\n\n## (a)\n\n(1) Next."
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "Under the U.S. Code, Dr. Smith may file.",
        "He did.",
        "(1) Next.",
    ]


def test_a_sentence_longer_than_the_bound_is_cut_at_a_clause() -> None:
    text = "The broker shall keep records; " * 60
    spans = sentence_spans(text)
    assert len(spans) > 2
    assert all(text[a:b].endswith(";") for a, b in spans)


class TestCitationsOfAModel:
    def test_a_quotation_is_cited_where_it_stands_whatever_its_white_space(self) -> None:
        verified = verify_citations("The text says “90 days\nof notice.” [2]", PASSAGES)
        assert_verbatim(verified.citations, PASSAGES)
        assert [(c.passage, c.quote) for c in verified.citations] == [(1, "90 days of notice")]
        assert verified.unverified == 0

    def test_a_paraphrase_is_cited_by_the_sentence_that_shares_its_words(self) -> None:
        verified = verify_citations(
            "The annual fee amounts to 0.4 % of assets [2]. Notices go by registered mail. [2]", PASSAGES
        )
        assert_verbatim(verified.citations, PASSAGES)
        assert [c.quote for c in verified.citations] == [
            "The annual fee is 0.4 % of the assets.",
            "Notices are sent by registered mail.",
        ]

    @pytest.mark.parametrize(
        "answer",
        [
            "The fee is waived for charities [2].",  # nothing of the kind in the passage
            'It says "the annual fee is 0.9 % of the assets" [2].',  # an altered quotation
            "The annual fee is 0.4 % of the assets [3].",  # no such passage
            "The annual fee is 0.4 % of the assets [0].",
            "The annual fee is 0.4 % of the assets [1].",  # it stands in the other passage
            "[2]",
        ],
    )
    def test_what_the_passage_does_not_bear_out_is_dropped_and_counted(self, answer: str) -> None:
        verified = verify_citations(answer, PASSAGES)
        assert (verified.citations, verified.unverified) == ((), 1)

    def test_several_numbers_are_checked_one_by_one(self) -> None:
        for marker in ("[1, 2]", "[1][2]", "[2] [1]"):
            verified = verify_citations(f"The annual fee is 0.4 % of the assets {marker}.", PASSAGES)
            assert ([c.passage for c in verified.citations], verified.unverified) == ([1], 1)

    def test_a_marker_that_opens_a_sentence_belongs_to_it(self) -> None:
        verified = verify_citations("[2] says that notices are sent by registered mail.", PASSAGES)
        assert [c.quote for c in verified.citations] == ["Notices are sent by registered mail."]

    def test_a_citation_is_listed_once(self) -> None:
        twice = "The annual fee is 0.4 % of the assets [2]. " * 2
        assert len(verify_citations(twice, PASSAGES).citations) == 1

    @given(
        st.text(max_size=300) | st.lists(st.sampled_from(["[1]", "[2]", '"', "“", "”", " fee", ". ", "("])).map("".join)
    )
    @settings(max_examples=150, deadline=None)
    def test_whatever_a_model_writes_every_citation_is_verbatim(self, answer: str) -> None:
        answer = answer.encode("utf-8", "replace").decode()
        assert_verbatim(verify_citations(answer, PASSAGES).citations, PASSAGES)


def test_content_words_leave_out_what_says_nothing() -> None:
    assert content_words("When is the Fee due?") == {"fee", "due"}
    assert np.isclose(len(content_words("of the and")), 0)
