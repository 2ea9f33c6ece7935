"""Paging cursors: minted by us, for one list of one tenant, or refused."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InvalidCursor
from rag.identity.cursors import MAX_CURSOR_CHARS, mint, read

KEY = b"k" * 32
TENANT, OTHER = UUID(int=1), UUID(int=2)


@given(st.text(min_size=1, max_size=1024).filter(lambda text: "\0" not in text))
def test_a_cursor_opens_with_the_same_key_list_and_tenant_only(source: str) -> None:
    encodable = source.encode(errors="replace").decode()
    cursor = mint(KEY, "list", TENANT, [encodable])
    assert len(cursor) <= MAX_CURSOR_CHARS
    assert read(KEY, "list", TENANT, cursor) == [encodable]
    for key, kind, tenant in ((b"K" * 32, "list", TENANT), (KEY, "other", TENANT), (KEY, "list", OTHER)):
        with pytest.raises(InvalidCursor):
            read(key, kind, tenant, cursor)


@given(st.text(max_size=200))
def test_no_other_text_is_a_cursor(text: str) -> None:
    with pytest.raises(InvalidCursor):
        read(KEY, "list", TENANT, text)


def test_the_longest_source_fits() -> None:
    assert len(mint(KEY, "list", TENANT, ["\U0001f600" * 1024])) <= MAX_CURSOR_CHARS
