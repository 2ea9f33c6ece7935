"""A quoted phrase's pattern finds in PostgreSQL the texts that say it, and only those."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator
from typing import cast

import asyncpg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rag.retrieval.query import parse_query
from tests.support.world import Cluster

pytestmark = pytest.mark.anyio


@pytest.fixture(name="connection")
async def connection_fixture(cluster: Cluster) -> AsyncIterator[asyncpg.Connection]:
    """A connection with no more than PostgreSQL's own settings."""
    connection = cast("asyncpg.Connection", await asyncpg.connect(cluster.server.superuser_url))
    yield connection
    await connection.close()


async def found(connection: asyncpg.Connection, query: str, text: str) -> bool:
    """Say whether `text` matches every phrase of `query`."""
    phrases = parse_query(query).phrases
    assert phrases
    return bool(
        await connection.fetchval(
            "select bool_and($1 ~* pattern) from unnest($2::text[]) as p (pattern)", text, phrases
        )
    )


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ('"Smith v. Jones"', "In SMITH  v.\nJONES, 12 U.S. 3", True),
        ('"Smith v. Jones"', "Jones v. Smith", False),
        ('"Smith v. Jones"', "Goldsmith v. Jones", False),
        ('"Smith v. Jones"', "Smith v. Joneses", False),
        ('"Smith v. Jones"', "Smith was v. Jones", False),
        ('"§ 78j"', "15 U.S.C. § 78j(b)", True),
        ('"§ 78j"', "15 U.S.C. §78jj", False),
        ('"10b-5"', "Rule 10b-5.", True),
        ('"10b-5"', "Rule 10b–5 (an en dash)", True),
        ('"10b-5"', "Rule 10b-51", False),
        ('"10b-5"', "Rule 110b-5", False),
        ('"O\'Brien"', "said O’Brien", True),
        ('"O’Brien"', "said O'BRIEN", True),
        ('"naïve"', "Naïve and more", True),
        ('"naïve"', "NAÏVE", True),
        ('"naïve"', "naive", False),
        ('"naïve"', "naïveté", False),
        ('"ΣΟΦΟΣ"', "σοφοσ", True),
        ('"שלום עולם"', "\u200fשלום, עולם!", True),
        ('"שלום"', "בשלום", False),
        ('"مرحبا بالعالم"', "مرحبا، بالعالم", True),
        ('"हिन्दी भाषा"', "यह हिन्दी भाषा है", True),
        ('"東京"', "今の東京都は", True),
        ('"東京 大阪"', "東京・大阪", True),
        ('"東京 大阪"', "東京の大阪", False),
        ('"tea 🎉 party"', "tea party", True),
        ('"tea party"', "tea🎉party", True),
        ('"under_score"', "under_score", True),
        ('"a.*b"', "axxb", False),
        ('"a.*b"', "a.*b", True),
        ('"(?i)x"', "(?I)X", True),
        ('"***:x"', "an x", True),
        ('"***:x"', "axe", False),
        ('"a" "b"', "b and a", True),
        ('"a" "b"', "b and c", False),
    ],
)
async def test_what_a_phrase_finds(connection: asyncpg.Connection, query: str, text: str, expected: bool) -> None:
    assert await found(connection, query, text) is expected


WORDS = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]) | st.sampled_from("ab1 -.'§"), max_size=20)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=WORDS, phrase=WORDS, after=WORDS)
async def test_a_phrase_finds_the_text_that_it_was_copied_from(
    connection: asyncpg.Connection, before: str, phrase: str, after: str
) -> None:
    before, phrase, after = (
        unicodedata.normalize("NFC", part.replace('"', "").strip()) for part in (before, phrase, after)
    )
    parsed = parse_query(f'"{phrase}"')
    assume(len(parsed.phrases) == 1)
    assert await found(connection, f'"{phrase}"', unicodedata.normalize("NFC", f"{before} {phrase} {after}"))
