"""What a message of an import is taken for, how it is cut into calls, and that nothing of it goes missing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InvalidInput, Unavailable
from workflows import importing, storing
from workflows.importing import BATCH_CHARS, BATCH_DOCUMENTS, MAX_DOCUMENTS, Offer, Refused


def _offer(number: int, text: str = "words") -> Offer:
    return Offer(source=str(number), arguments={"source": str(number), "title": "T", "text": text})


def _file(name: str, content: bytes) -> dict[str, Any]:
    return {"filename": name, "media_type": "", "raw": base64.b64encode(content).decode()}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.dictionaries(
    st.sampled_from(["source", "title", "text", "media_type", "metadata", "groups", "other"]), JSON, max_size=7
)


@given(st.lists(ENTRIES, max_size=12))
def test_whatever_comes_in_comes_out_as_an_offer_or_a_refusal(entries: list[dict[str, Any]]) -> None:
    found = importing.offers({"documents": entries})
    assert len(found) == len(entries)
    sources = [one.source for one in found if isinstance(one, Offer)]
    assert len(sources) == len(set(sources))


@given(st.lists(st.integers(min_value=0, max_value=3 * BATCH_CHARS // 2), max_size=60))
def test_batches_hold_every_document_once_in_order_within_their_bounds(sizes: list[int]) -> None:
    texts = {size: "x" * size for size in set(sizes)}
    offers = [_offer(number, texts[size]) for number, size in enumerate(sizes)]
    batches = list(importing.batches(offers))
    assert [one for batch in batches for one in batch] == offers
    for batch in batches:
        assert 0 < len(batch) <= BATCH_DOCUMENTS
        assert len(batch) == 1 or sum(len(one.arguments["text"]) for one in batch) <= BATCH_CHARS


@pytest.mark.parametrize(
    ("entry", "title"),
    [
        ({"source": "a/b.md", "text": "# Head\n\nwords", "media_type": "text/markdown"}, "Head"),
        ({"source": "a/b.md", "text": "# Head\n\nwords"}, "b"),
        ({"source": "a/b.md", "text": "words", "title": "Given"}, "Given"),
        ({"source": "…", "text": "words"}, "…"),
    ],
)
def test_a_document_without_a_title_gets_its_heading_or_its_name(entry: dict[str, Any], title: str) -> None:
    (offer,) = importing.offers({"documents": [entry]})
    assert isinstance(offer, Offer)
    assert offer.arguments["title"] == title


def test_sources_that_differ_in_their_normal_form_only_are_the_same() -> None:
    entries = [{"source": source, "text": "words"} for source in ("caf\u00e9", "cafe\u0301")]
    first, second = importing.offers({"documents": entries})
    assert isinstance(first, Offer)
    assert isinstance(second, Refused)
    assert second.reason == importing.SAME_SOURCE


def test_files_carry_the_groups_of_the_message_and_documents_their_own() -> None:
    message = {
        "documents": [{"source": "a", "text": "x", "groups": ["own"]}, {"source": "b", "text": "x"}],
        "files": [{"filename": "c.txt", "media_type": "text/plain", "text": "x"}],
        "groups": ["all"],
    }
    groups = [one.arguments.get("groups") for one in importing.offers(message) if isinstance(one, Offer)]
    assert groups == [["own"], None, ["all"]]


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ({"filename": " ", "raw": ""}, "files.0", "files.0: a file part has a filename"),
        ({"filename": "a.txt", "raw": "not base64!"}, "a.txt", "files.0: its content is not base64"),
        (_file("a.txt", b""), "a.txt", "the file is empty"),
        (_file("a.pdf", b"no pdf"), "a.pdf", "the file is damaged or not what its name says (application/pdf)"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(file: dict[str, Any], source: str, reason: str) -> None:
    (refused,) = importing.offers({"files": [file]})
    assert isinstance(refused, Refused)
    assert (refused.source, refused.reason) == (source, reason)


def test_a_file_of_too_many_lines_is_refused_whole_and_says_so() -> None:
    (refused,) = importing.offers({"files": [_file("many.jsonl", b"\n" * MAX_DOCUMENTS)]})
    assert isinstance(refused, Refused)
    assert "split the file" in refused.reason


def test_options_that_are_wrong_are_named() -> None:
    for options, field in (
        ({"documents": 1}, "documents"),
        ({"documents": ["x"]}, "documents.0"),
        ({"more": "yes"}, "more"),
        ({"colour": 1}, "colour"),
    ):
        with pytest.raises(InvalidInput, match=f"^{field}: "):
            importing.parsed_options(options)


def test_the_account_shows_every_refusal_and_says_what_it_leaves_out() -> None:
    stored = [
        {"source": f"s|{n}", "outcome": "created", "document_id": "d", "version": 1, "chunks": 1} for n in range(150)
    ]
    refused = {"source": "bad", "outcome": "refused", "document_id": None, "code": "conflict", "reason": "a\nreason"}
    text, data = importing.account([*stored, refused], messages=1, corpus_version=7, vectors="pending")
    assert text.startswith("# Import: 150 of 151 stored, 1 refused")
    assert "| bad | conflict: a reason |" in text
    assert "| s\\|99 | created | 1 | 1 |" in text
    assert "s\\|100" not in text
    assert "… and 50 more, in the data." in text
    assert "by its words it is" in text
    assert (data["stored"], data["refused"], len(data["documents"])) == (150, 1, 151)


class Answers:
    """A server of put_documents as it answers when it is short of time: what a fast machine never shows."""

    def __init__(self, *answers: Sequence[str] | Exception) -> None:
        """Each call gets the next: the outcomes, in the order of its documents."""
        self._answers = list(answers)
        self.asked: list[list[str]] = []

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Answer."""
        assert tool == "put_documents"
        sources = [one["source"] for one in arguments["documents"]]
        self.asked.append(sources)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        results = [
            {"source": source, "outcome": outcome, "document_id": "d" if outcome == "created" else None}
            for source, outcome in zip(sources, answer, strict=True)
        ]
        return {"results": results, "corpus_version": 3 if "created" in answer else None}


@pytest.mark.anyio
async def test_what_the_server_had_no_time_for_is_sent_again() -> None:
    server = Answers(["created", "not_tried", "not_tried"], ["created", "created"])
    rows, version = await storing.store_batch(server.call, [_offer(n) for n in range(3)])
    assert server.asked == [["0", "1", "2"], ["1", "2"]]
    assert [(row["source"], row["outcome"]) for row in rows] == [(str(n), "created") for n in range(3)]
    assert version == 3


@pytest.mark.anyio
async def test_what_it_never_had_time_for_is_told_and_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "ROUND_PAUSE_S", 0.0)
    rows, version = await storing.store_batch(Answers(*[["not_tried"]] * storing.ROUNDS).call, [_offer(1)])
    assert (rows[0]["outcome"], rows[0]["code"], version) == ("not_tried", "unavailable", None)


@pytest.mark.anyio
async def test_a_call_that_is_refused_as_a_whole_is_made_for_each_document_alone() -> None:
    server = Answers(InvalidInput("too large"), ["created"], InvalidInput("too large"))
    rows, version = await storing.store_batch(server.call, [_offer(1), _offer(2)])
    assert server.asked == [["1", "2"], ["1"], ["2"]]
    assert [row["outcome"] for row in rows] == ["created", "refused"]
    assert (rows[1]["reason"], version) == ("too large", 3)


@pytest.mark.anyio
async def test_a_server_that_is_away_is_nobodys_refusal() -> None:
    with pytest.raises(Unavailable):
        await storing.store_batch(Answers(Unavailable("away")).call, [_offer(1)])
