"""Which A2A requests are one request: the key in its three places, and what its digest is of."""

from __future__ import annotations

from typing import Any

import pytest
from a2a.types import a2a_pb2 as pb
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from a2a_server.protocol.idempotency import EXTENSION, IdempotencyKey, idempotency_key
from rag.errors import InvalidInput


def _request(**fields: Any) -> pb.SendMessageRequest:
    message = {"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": "why?"}], **fields.pop("message", {})}
    return ParseDict({"message": message, **fields}, pb.SendMessageRequest())


def _key(request: pb.SendMessageRequest | None = None, **headers: str) -> IdempotencyKey:
    found = idempotency_key({"idempotency-key": "k", **headers}, request or _request())
    assert found is not None
    return found


def test_without_a_key_there_is_none() -> None:
    assert idempotency_key({}, _request(message={"metadata": {"skillId": "rag"}})) is None


def test_the_key_is_read_quoted_bare_and_from_both_metadata() -> None:
    for text in ('"order-1"', "order-1", ' "order-1" '):
        found = idempotency_key({"idempotency-key": text}, _request())
        assert found is not None
        assert found.key == "order-1"
    for request in (_request(message={"metadata": {EXTENSION: "order-1"}}), _request(metadata={EXTENSION: "order-1"})):
        found = idempotency_key({}, request)
        assert found is not None
        assert found.key == "order-1"


def test_the_same_request_has_one_digest_wherever_its_key_stands() -> None:
    bare = _key()
    assert _key(_request(message={"metadata": {EXTENSION: "k"}})).body_hash == bare.body_hash
    assert _key(_request(metadata={EXTENSION: "k"})).body_hash == bare.body_hash


def test_how_the_answer_is_wanted_and_the_message_id_make_no_other_request() -> None:
    again = _request(message={"messageId": "m2"}, configuration={"returnImmediately": True, "historyLength": 3})
    assert _key(again).body_hash == _key().body_hash


@pytest.mark.parametrize(
    "other",
    [
        {"message": {"parts": [{"text": "how?"}]}},
        {"message": {"parts": [{"text": "why?", "mediaType": "text/markdown"}]}},
        {"message": {"parts": [{"text": "why?"}, {"data": {"depth": 2}}]}},
        {"message": {"contextId": "c"}},
        {"message": {"taskId": "t"}},
        {"message": {"referenceTaskIds": ["t"]}},
        {"message": {"metadata": {"skillId": "rag"}}},
        {"metadata": {"skillId": "rag"}},
    ],
)
def test_what_is_asked_for_makes_another_request(other: dict[str, Any]) -> None:
    assert _key(_request(**other)).body_hash != _key().body_hash


@given(st.dictionaries(st.text(max_size=5), st.integers(-5, 5) | st.text(max_size=5), max_size=6), st.randoms())
def test_the_order_of_metadata_makes_no_difference(metadata: dict[str, Any], order: Any) -> None:
    shuffled = list(metadata.items())
    order.shuffle(shuffled)
    one, other = (_request(message={"metadata": found}) for found in (metadata, dict(shuffled)))
    assert _key(one).body_hash == _key(other).body_hash


@pytest.mark.parametrize(
    "text", ["", '""', "a b", "a,b", '"a', 'a"b"c,', "é", "k" * 129, '"' + "k" * 129 + '"', '"a\x01"']
)
def test_a_key_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        idempotency_key({"idempotency-key": text}, _request())


@pytest.mark.parametrize("value", [7, "", "k" * 129, "é", ["k"]])
def test_metadata_that_is_no_key_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        idempotency_key({}, _request(message={"metadata": {EXTENSION: value}}))


def test_two_keys_are_refused() -> None:
    with pytest.raises(InvalidInput, match="two idempotency keys"):
        _key(_request(metadata={EXTENSION: "other"}))


def test_quoted_pairs_are_read() -> None:
    found = idempotency_key({"idempotency-key": r'"a \"b\" \\ c, d"'}, _request())
    assert found is not None
    assert found.key == r'a "b" \ c, d'
