"""Refusals of one kind: the first is written, the rest is counted, and memory stays bounded."""

from __future__ import annotations

import dataclasses
from uuid import UUID

import pytest

from rag.audit import floods
from rag.audit.floods import Floods
from rag.audit.values import Entry
from rag.identity.principal import Principal

TENANT = UUID("11111111-1111-4111-8111-111111111111")


def caller(subject: str = "ada") -> Principal:
    return Principal(
        tenant_id=TENANT, subject=subject, scopes=frozenset(), token_ids=("t",), issued_at=0.0, expires_at=1.0
    )


def refusal(target: str = "hybrid_search") -> Entry:
    return Entry(door="mcp", method="tools/call", target=target, outcome="rate_limited", trace_id="0" * 32)


def test_the_first_of_a_kind_is_written_and_the_rest_is_one_entry_with_their_number() -> None:
    counted = Floods(every_s=10)
    assert counted.take(caller(), refusal(), 0.0) == [(caller(), refusal())]
    assert [counted.take(caller(), refusal(), at) for at in (1.0, 2.0, 9.9)] == [[], [], []]
    assert counted.due(9.9) == []
    [(_, told)] = counted.due(10.0)
    assert (told.repeats, told.trace_id) == (3, None)


def test_what_was_asked_for_is_not_kept_while_counting_nor_told_of_those_that_asked_for_something_else() -> None:
    counted = Floods(every_s=10)
    [(_, first)] = counted.take(caller(), dataclasses.replace(refusal(), query="harbour"), 0.0)
    counted.take(caller(), dataclasses.replace(refusal(), query="other words"), 1.0)
    [(_, told)] = counted.due(10.0)
    assert (first.query, told.query, told.repeats) == ("harbour", None, 1)


def test_a_flood_that_goes_on_is_told_once_per_interval_and_one_that_ended_is_forgotten() -> None:
    counted = Floods(every_s=10)
    counted.take(caller(), refusal(), 0.0)
    counted.take(caller(), refusal(), 1.0)
    assert [told.repeats for _, told in counted.due(10.0)] == [1]
    counted.take(caller(), refusal(), 11.0)
    assert counted.due(19.0) == []
    assert [told.repeats for _, told in counted.due(20.0)] == [1]
    assert counted.due(30.0) == []
    assert len(counted) == 0


def test_users_and_targets_are_counted_apart() -> None:
    counted = Floods(every_s=10)
    for principal, entry in ((caller(), refusal()), (caller("eve"), refusal()), (caller(), refusal("list_documents"))):
        assert counted.take(principal, entry, 0.0) == [(principal, entry)]


def test_a_kind_too_many_pushes_the_oldest_out_with_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floods, "MAX_KINDS", 2)
    counted = Floods(every_s=10)
    for subject in ("ada", "ada", "eve"):
        counted.take(caller(subject), refusal(), 0.0)
    out = counted.take(caller("bob"), refusal(), 0.0)
    assert [(principal.subject, entry.repeats) for principal, entry in out] == [("bob", 1), ("ada", 1)]
    assert len(counted) == 2
    assert counted.rest() == []
